"""The page from hand-made reports: everything said, nothing loaded, nothing unescaped."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from modelmill.line import findings, page
from modelmill.line.report import (
    AgreementReport,
    AttemptReport,
    Deployment,
    Finding,
    LatencyReport,
    Report,
    ScoreReport,
    SpeedupReport,
)
from modelmill.line.store import Store

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Reader(HTMLParser):
    """Collects text, tags and attributes; every tag must be closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return flat("".join(self.words))

    def classed(self, name: str) -> list[str]:
        return [tag for tag, a in self.tags if name in (a.get("class") or "").split()]


def flat(text: str) -> str:
    return " ".join(text.split())


def deployment(target: str = "ort_cpu", mismatched: int = 0, **changes: Any) -> Deployment:
    made = Deployment(
        target=target,
        runtime="onnxruntime",
        version="1.32.0",
        precision="w8a8",
        artifact=f"artifacts/{target}.onnx",
        bytes=403_387,
        score=ScoreReport(0.873, 0.874, 1000, 500, 0.872, {"top1": 0.873, "top5": 0.996}),
        agreement=AgreementReport(
            1_000_000, mismatched, 3 if mismatched else 0, "relu" if mismatched else None, 500
        ),
        latency_ms=LatencyReport(0.33, 0.44, 0.73, 6, 1, 1, 0.01),
        float_latency_ms=LatencyReport(0.77, 0.92, 1.43, 6, 1, 1, 0.01),
        speedup=SpeedupReport(2.29, 2.27, 2.31, "faster"),
        peak_memory_mib=83.4,
        seconds={"quantize": 4.5, "evaluate": 24.4},
    )
    return replace(made, **changes)


def failed(target: str = "openvino_cpu") -> Deployment:
    return Deployment(
        target, "openvino", "2026.4.1", "w8a8", f"artifacts/{target}.onnx", 381_382,
        failed="the worker ended with signal 9 (Killed)\nlast words: bad_alloc",
    )  # fmt: skip


def log() -> dict[str, Any]:
    return {
        "layers": [
            {"value": "x", "node": "x", "op": "input", "sqnr_db": 46.8},
            {"value": "y", "node": "conv", "op": "Conv", "sqnr_db": 8.5},
            {"value": "z", "node": "pool", "op": "MaxPool", "sqnr_db": 200.0},
        ],
        "verdicts": [
            {"node": "conv", "op": "Conv", "runs": "integer", "why": "rule Conv(activation)"},
            {"node": "relu", "op": "Relu", "runs": "fused", "why": "part of the kernel of conv"},
            {"node": "nms", "op": "TopK", "runs": "float", "why": "no rule for TopK"},
        ],
    }


def details(mismatched: int = 0) -> dict[str, Any]:
    return {
        "tensors": [
            {
                "value": "x", "node": "x", "op": "input", "elements": 1000,
                "mismatched": 0, "max_codes": 0,
            },
            {
                "value": "y", "node": "conv", "op": "Conv", "elements": 999_000,
                "mismatched": mismatched, "max_codes": 3 if mismatched else 0,
            },
        ],
        "latency_samples_ms": {
            "quantized": [[0.33, 0.34, 0.33], [0.32, 0.33, 0.8]],
            "float": [[0.77, 0.78, 0.76], [0.77, 0.9, 9.5]],
        },
        "warmup": {"quantized": 296, "float": 68},
        "executed": [
            {
                "name": "conv_q", "op": "QLinearConv", "precision": "uint8",
                "kind": "integer", "us": 95.0,
            },
            {"name": "topk", "op": "TopK", "precision": "float32", "kind": "float", "us": 5.0},
        ],
    }  # fmt: skip


MANIFEST = {
    "options": {"flags": ["avx2"]},
    "inputs": {"calibration": {"images": 512, "sha256": "ab" * 32}},
    "recipe": {
        "equalize": None, "calibrate": {"activations": "mse"}, "bias_correction": {"images": 128},
    },
    "machine": {
        "cpu": "Some CPU", "flags": ["avx2", "avx512_vnni", "fpu"], "cores": 2, "memory_mib": 2048,
        "os": "Linux 6", "python": "3.11.7", "arch": "x86_64",
    },
    "versions": {"numpy": "2.4.6", "modelmill": "0.1.0"},
}  # fmt: skip


def report(
    deployments: Sequence[Deployment],
    name: str = "resnet20",
    allow_fallback: bool = False,
    **changes: Any,
) -> Report:
    made = Report(
        model={
            "name": name,
            "fingerprint": "ee" * 32,
            "params": 269_035,
            "macs": 40_551_040,
            "input": [1, 3, 32, 32],
        },
        task="classification",
        metric="top1",
        float_score={"score": 0.875, "n": 1000, "metrics": {"top1": 0.875, "top5": 0.997}},
        deployments=tuple(deployments),
        accepted=False,
        findings=(),
        max_drop=0.01,
        peak_memory_mib=562.9,
        seconds=75.1,
        folder="out/my build",
    )
    logs = {d.target: log() for d in deployments}
    notes = ["calibrated on 512 images of train.zip"]
    return findings.conclude(replace(made, **changes), notes, logs, allow_fallback)


def rendered(held: Report, folder: Path, mismatched: int = 0) -> str:
    """The page with details for every deployment that has some, and a manifest."""
    store = Store(folder, resume=False)
    for d in held.deployments:
        if d.failed is None:
            store.write_json(f"details/{d.target}.json", details(mismatched))
    store.write("artifacts/float.onnx", b"x" * 1_000_000)
    store.write_json("manifest.json", MANIFEST)
    return page.render(held, store, {d.target: log() for d in held.deployments})


def test_full_report(tmp_path: Path) -> None:
    held = report([deployment(), deployment("openvino_cpu")])
    html = rendered(held, tmp_path / "out")
    read = Reader(html)
    assert held.accepted and "✓ Accepted" in read.text and "✗" not in read.text
    for words in (
        "largest loss against float (87.50 % top-1) is 0.20 points, on ort_cpu",
        "2.29 times as fast as float on ort_cpu",
        "−0.20 against float",
        "87.40 % Δ +0.20 500 images",  # 0.874 simulated, 0.872 deployed, on the same 500
        "p90 0.440",
        "2.29× 2.27 to 2.31 faster",
        "394 KiB 40 % of float",
        "269 k",
        "40.6 M",
        "All 1,000,000 codes are those of the simulation.",
        "integer 95 % (1 kernel)",
        "float 5 % (1 kernel)",
        "no rule for TopK",
        "Some CPU (x86_64), 2 cores, 2.0 GiB memory",
        "avx2 avx512_vnni (with VNNI)",
        "a processor with avx2",
        "calibrate (activations mse); bias correction (images 128)",
        "modelmill build --manifest 'out/my build/manifest.json' -o NEW",
    ):
        assert words in read.text, words
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b|Undefined", html)


def test_every_finding_is_said(tmp_path: Path) -> None:
    deployments = [
        deployment(mismatched=7, speedup=SpeedupReport(0.8, 0.79, 0.81, "slower")),
        failed(),
        deployment(
            "far", score=ScoreReport(0.5, 0.1, 1000, 1000, 0.5, {}), fallback_ops=("n (Conv)",)
        ),
    ]
    held = report(deployments)
    assert len({f.what for f in held.findings}) == 8, "not every kind of finding is tried"
    read = Reader(rendered(held, tmp_path / "out", mismatched=7))
    for finding in held.findings:
        for part in (finding.where, finding.why, finding.next, finding.what[1:]):
            assert flat(part) in read.text, part


def test_findings_that_refuse_are_marked_and_come_first(tmp_path: Path) -> None:
    bad = [
        failed(),
        deployment("far", score=ScoreReport(0.5, 0.5, 9, 9, 0.5, {}), fallback_ops=("n",)),
    ]
    fine = report([deployment()])
    held = report([deployment(), *bad])
    refusals = {f.what for f in held.findings} - {f.what for f in fine.findings}
    assert refusals == page.LOUD
    listed = list(map(page.tone, held.findings))
    read = Reader(rendered(held, tmp_path / "out"))
    shown = [a.get("class") for tag, a in read.tags if tag == "li"]
    assert shown == sorted(listed, key=("bad", "remark", "note").index)
    assert [page.tone(f) for f in fine.findings].count("bad") == 0


def test_failed_deployment(tmp_path: Path) -> None:
    held = report([deployment(), failed()])
    read = Reader(rendered(held, tmp_path / "out"))
    assert "✗ Not accepted openvino_cpu failed." in read.text
    assert "✗ Failed the worker ended with signal 9 (Killed) last words: bad_alloc" in read.text
    assert read.classed("failed").count("tr") == 1
    assert "87.30 %" in read.text, "the other deployment's result is lost"


def test_nothing_deployed(tmp_path: Path) -> None:
    held = report([failed("ort_cpu"), failed("openvino_cpu")])
    read = Reader(rendered(held, tmp_path / "out"))
    assert "ort_cpu failed; openvino_cpu failed." in read.text
    assert "faster" not in read.text
    assert not any(a.get("class") == "charts" for _, a in read.tags)


def test_details_of_an_earlier_build_are_not_shown(tmp_path: Path) -> None:
    rendered(report([deployment()]), tmp_path / "out")
    store = Store(tmp_path / "out", resume=True)
    read = Reader(page.render(report([failed("ort_cpu")]), store, {"ort_cpu": log()}))
    assert "measured" not in read.text and "QLinearConv" not in read.text


def test_no_deployment_agrees(tmp_path: Path) -> None:
    held = report([deployment(mismatched=999), deployment("openvino_cpu", mismatched=600_000)])
    read = Reader(rendered(held, tmp_path / "out", mismatched=999))
    assert "1 code in 1,001 differs by at most 3 first at relu" in read.text
    assert "60 % differs" in read.text
    assert "1 of 2 tensors differ somewhere; in graph order the first is conv (Conv)" in read.text
    assert len(read.classed("apart")) == 2


def test_no_details_no_logs(tmp_path: Path) -> None:
    held = report([deployment()])
    read = Reader(page.render(held, Store(tmp_path / "out", resume=False), {}))
    assert "87.30 %" in read.text and "Latency" not in [w.strip() for w in read.words]


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    note = Finding("note", HOSTILE, HOSTILE, f"modelmill check {HOSTILE}, {HOSTILE}")
    held = report([deployment(artifact=HOSTILE)], name=HOSTILE, folder=HOSTILE, task=HOSTILE)
    held = replace(held, findings=(note,))
    store = Store(tmp_path / "out", resume=False)
    spoiled = json.loads(json.dumps(details(5)).replace('"conv"', json.dumps(HOSTILE)))
    store.write_json("details/ort_cpu.json", spoiled)
    named = json.loads(json.dumps(log()).replace('"conv"', json.dumps(HOSTILE)))
    html = page.render(held, store, {"ort_cpu": named})
    assert "<script" not in html and "<img" not in html
    assert Reader(html).text.count(HOSTILE) > 5


def test_nothing_is_loaded(tmp_path: Path) -> None:
    html = rendered(report([deployment(), failed()]), tmp_path / "out")
    assert "http" not in html
    assert not re.search(r"@import|url\(", html)
    for tag, attributes in Reader(html).tags:
        assert tag not in {"script", "link", "img", "iframe", "object"}
        assert not {"src", "href", "srcset", "data"} & attributes.keys()


def test_charts_have_words(tmp_path: Path) -> None:
    read = Reader(rendered(report([deployment()]), tmp_path / "out"))
    pictures = [a for tag, a in read.tags if tag == "svg"]
    assert len(pictures) >= 6
    assert all(a.get("role") == "img" and a.get("aria-label") for a in pictures)
    assert "conv (Conv): 8.5 dB" in read.text
    assert len(read.classed("weak")) == 1


def test_average_precision_is_no_percentage(tmp_path: Path) -> None:
    score = ScoreReport(0.296, 0.296, 132, 132, 0.296, {"ap50": 0.296, "ap": 0.12})
    held = report(
        [deployment(score=score)],
        metric="ap50",
        task="detection",
        float_score={"score": 0.305, "n": 132},
    )
    read = Reader(rendered(held, tmp_path / "out"))
    assert "Deployed AP50" in read.text and "0.2960 −0.0090 against float" in read.text
    assert "ort_cpu loses 0.0090 against float (0.3050 AP50); 0.0100 may be lost" in read.text


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([0.875, 0.880], "On every target the score is not below float (87.50 % top-1)."),
        (
            [0.870],
            "ort_cpu loses 0.50 points against float (87.50 % top-1); 1.00 points may be lost.",
        ),
        (
            [0.5, 0.6],
            "ort_cpu loses 37.50 points and b loses 27.50 points against float (87.50 % top-1), "
            "where 1.00 points may be lost.",
        ),
    ],
)
def test_headline(scores: list[float], words: str) -> None:
    held = report(
        [
            deployment(name, score=ScoreReport(s, s, 1000, 1000, s, {}))
            for name, s in zip(("ort_cpu", "b"), scores, strict=False)
        ]
    )
    assert flat(page.headline(held, page.Unit("top1"))) == words


def test_allowed_fallback_is_no_reason() -> None:
    far = ScoreReport(0.5, 0.5, 9, 9, 0.5, {})
    deployments = [deployment(fallback_ops=("n (Conv)",), score=far)]
    unit = page.Unit("top1")
    assert "1 planned integer operator in float" in page.headline(report(deployments), unit)
    assert "in float" not in page.headline(report(deployments, allow_fallback=True), unit)


@pytest.mark.parametrize(
    ("text", "command", "words"),
    [
        ("modelmill check M -t a, or accept it", "modelmill check M -t a", ", or accept it"),
        ("modelmill check M -t a", "modelmill check M -t a", ""),
        ("see the chart", "", "see the chart"),
    ],
)
def test_commands_stand_apart(text: str, command: str, words: str) -> None:
    assert page.next_step(text) == (command, words)


UNITS = [
    {"unit": "block1", "layers": ["a", "b"], "loss_before": 0.2, "loss_after": 0.05,
     "flipped": 0.125, "kept": False, "seconds": 1.5},
    {"unit": HOSTILE, "layers": ["c"], "loss_before": 0.1, "loss_after": 0.1,
     "flipped": 0.0, "kept": True, "seconds": 0.5},
    {"unit": "dead", "layers": ["d"], "loss_before": 0.0, "loss_after": None,
     "flipped": 0.0, "kept": True, "seconds": 0.1},
]  # fmt: skip
LEARNED = {
    "algorithm": "qdrop", "units": UNITS, "notes": ["cut layer by layer at c"],
    "cache_mib": 12.5, "spilled_mib": 7.0, "seconds": 2.1,
}  # fmt: skip
TRIED = (
    AttemptReport("round", 0.8, 0.075, None, 3.0),
    AttemptReport("ranges", None, None, None, 0.0, failed=HOSTILE),
    AttemptReport("qdrop", 0.873, 0.002, 0.073, 40.0, kept=True),
)


def test_what_was_tried_and_learned(tmp_path: Path) -> None:
    store = Store(tmp_path / "out", resume=False)
    recipe = MANIFEST["recipe"] | {"reconstruct": {"step": "qdrop", "seed": 0}}  # type: ignore[operator]
    store.write_json("manifest.json", MANIFEST | {"attempts": {"ort_cpu": {"recipe": recipe}}})
    held = report([deployment(attempts=TRIED)])
    html = page.render(held, store, {"ort_cpu": log() | {"reconstruction": LEARNED}})
    read = Reader(html)
    assert "<script" not in html.replace("&lt;script", "")
    for words in (
        "What was tried", "80.00 %", "−7.50", "qdrop kept", "+7.30",
        "failed: " + flat(HOSTILE), "qdrop in 3 units", "at most 12 MiB, 7 MiB on disk",
        "2 became worse and kept plain rounding", "Cut layer by layer at c.",
        "12.5 %", "worse, plain rounding kept", "Recipe of ort_cpu",
        "reconstruct (step qdrop, seed 0)",
    ):  # fmt: skip
        assert flat(words) in read.text.replace("\N{NO-BREAK SPACE}", " "), words
    assert "25 % of the loss of plain rounding" in html


def test_one_attempt_is_not_worth_a_table(tmp_path: Path) -> None:
    one = (AttemptReport("round", 0.873, 0.002, None, 3.0, kept=True),)
    read = Reader(rendered(report([deployment(attempts=one)]), tmp_path / "out"))
    assert "What was tried" not in read.text and "Learned roundings" not in read.text
