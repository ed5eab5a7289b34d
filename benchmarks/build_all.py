"""The whole line on four real models: what must be reached, what was measured, pass or fail.

    python benchmarks/build_all.py [--models NAME ...] [--limit N] [--keep FOLDER] [--write]

Each model is one `modelmill build` in a process of its own, so that times include starting it and
peak memory is its own. Ratios of latencies come from one build each, where float and int8 of one
engine take turns. With --limit fewer images are scored and the verdicts are only a rehearsal.
Exit code 1: something that must be reached was not.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provenance import data_folder, passed, publish, table

PROGRAM = "from modelmill.cli.main import main; main(prog_name='modelmill')"
SOURCES = {  # model -> (data, calibration), below the data folder
    "resnet20_cifar10": ("cifar10/test.zip", "cifar10/train.zip"),
    "resnet56_cifar10": ("cifar10/test.zip", "cifar10/train.zip"),
    "mobilenetv1_025_imagenet": ("imagenet", "coco/images"),
    "fastestdet_coco": ("coco", "imagenet/images"),
}
TARGETS = ("ort_cpu", "openvino_cpu")
Facts = dict[str, Any]


@dataclass(frozen=True)
class Must:
    """One line of the table of what must be reached.

    measure takes a report and a deployment; low, high bound what it gives.
    """

    model: str
    what: str
    measure: Callable[[Facts, Facts], float]
    low: float = float("-inf")
    high: float = float("inf")
    target: str | None = None  # None: every target
    whole: bool = False  # of the build, not of a deployment

    @property
    def bound(self) -> str:
        return f">= {self.low:g}" if self.high == float("inf") else f"<= {self.high:g}"

    def fine(self, value: float) -> bool:
        return self.low - 1e-9 <= value <= self.high + 1e-9


def top(report: Facts, d: Facts) -> float:
    return 100 * float(d["score"]["deployed"])


def drop(report: Facts, d: Facts) -> float:
    return 100 * (float(report["float"]["score"]) - float(d["score"]["deployed"]))


def score(report: Facts, d: Facts) -> float:
    return float(d["score"]["deployed"])


def ratio(report: Facts, d: Facts) -> float:
    return float(d["latency_ms"]["p50"] / d["float_latency_ms"]["p50"])


def share(report: Facts, d: Facts) -> float:
    return float(d["agreement"]["mismatched"] / max(d["agreement"]["elements"], 1))


def codes(report: Facts, d: Facts) -> float:
    return float(d["agreement"]["max_codes"])


def seconds(report: Facts, d: Facts) -> float:
    return float(report["wall_s"])


MUSTS = (
    Must("resnet20_cifar10", "deployed top-1, %", top, low=88.0),
    Must("resnet20_cifar10", "int8 / float p50", ratio, high=0.55, target="ort_cpu"),
    Must("resnet20_cifar10", "int8 / float p50", ratio, high=0.69, target="openvino_cpu"),
    Must("resnet20_cifar10", "share of differing codes", share, high=1e-5, target="ort_cpu"),
    Must("resnet20_cifar10", "largest difference, codes", codes, high=1, target="ort_cpu"),
    Must("resnet20_cifar10", "whole build, s", seconds, high=90, whole=True),
    Must("resnet56_cifar10", "deployed drop, points", drop, high=0.2),
    Must("mobilenetv1_025_imagenet", "deployed drop, points", drop, high=1.0),
    Must("fastestdet_coco", "deployed AP50", score, low=0.295),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--limit", type=int, help="images to score; default: all")
    parser.add_argument("--simulate", type=int, default=1000)
    parser.add_argument("--keep", type=Path, help="folder for the builds; default: thrown away")
    parser.add_argument("--write", action="store_true", help="keep the table in docs/benchmarks")
    asked = parser.parse_args()
    data = data_folder()
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.keep or Path(scratch)
        reports = {
            name: build(name, data, folder / name, asked.limit, asked.simulate)
            for name in asked.models
        }
    verdicts = list(judge(reports))
    limited = f"\nRehearsal: only {asked.limit} images were scored.\n" if asked.limit else ""
    body = "\n".join(
        [
            limited,
            table(("model", "target", "what", "must", "measured", "verdict"), verdicts),
            "",
            "All that was measured; int8 / float is the ratio of median latencies, one thread, "
            "batch 1:",
            "",
            table(
                ("model", "target", "metric", "float", "deployed", "simulated", "same images",
                 "differing codes", "int8 ms", "float ms", "int8 / float", "verdict",
                 "nodes left in float", "worker MiB"),
                (row for name, report in reports.items() for row in facts(name, report)),
            ),
            "",
            table(
                ("model", "build s", "peak MiB of the build", "accepted"),
                (
                    (name, f"{r['wall_s']:.1f}", f"{r['peak_memory_mib']:.0f}", r["accepted"])
                    for name, r in reports.items()
                ),
            ),
        ]
    )  # fmt: skip
    publish(__file__, "The whole line on four models", body.lstrip(), asked.write)
    return 0 if all(row[-1] == passed(True) for row in verdicts) else 1


def build(
    name: str,
    data: Path,
    out: Path,
    limit: int | None,
    simulate: int,
    targets: Sequence[str] = TARGETS,
    more: Sequence[str] = (),
) -> Facts:
    """The report of one build, with `wall_s`: seconds of the whole command. more: options."""
    images, calibration = SOURCES[name]
    command = [sys.executable, "-c", PROGRAM, "build", str(data / "models" / f"{name}.onnx")]
    command += ["-d", str(data / images), "--calib", str(data / calibration)]
    command += [word for target in targets for word in ("-t", target)]
    command += ["-o", str(out), "--format", "json"]
    command += ["--simulate", str(simulate), *more] + (["--limit", str(limit)] if limit else [])
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    wall = time.perf_counter() - start
    if done.returncode not in (0, 1):
        sys.exit(f"the build of {name} ended with exit code {done.returncode}")
    report: Facts = json.loads(done.stdout)
    return report | {"wall_s": wall}


def judge(reports: dict[str, Facts], musts: Sequence[Must] = MUSTS) -> Iterator[tuple[str, ...]]:
    """A row for everything that must be reached."""
    for must in musts:
        report = reports.get(must.model)
        if report is None:
            continue
        for d in report["deployments"]:
            if must.target not in (None, d["target"]) or (must.whole and d["target"] != "ort_cpu"):
                continue
            target = "all" if must.whole else d["target"]
            if d["failed"] is not None and not must.whole:
                yield must.model, target, must.what, must.bound, "failed", passed(False)
                continue
            value = must.measure(report, d)
            verdict = passed(must.fine(value))
            yield must.model, target, must.what, must.bound, f"{value:.4g}", verdict


def facts(name: str, report: Facts) -> Iterator[tuple[object, ...]]:
    """A row for every deployment."""
    for d in report["deployments"]:
        if d["failed"] is not None:
            yield (name, d["target"], "failed: " + d["failed"], *[""] * 11)
            continue
        s, a = d["score"], d["agreement"]
        left = [f for f in report["findings"] if f["where"] == d["target"]]
        kept = next((f["why"].split(":")[0] for f in left if "by plan" in f["what"]), "0")
        yield (
            name, d["target"], report["metric"], f"{report['float']['score']:.4f}",
            f"{s['deployed']:.4f}", f"{s['simulated']:.4f}",
            f"{s['deployed_same']:.4f} ({s['simulated_n']})",
            f"{a['mismatched']:,} of {a['elements']:,}, by {a['max_codes']} at most",
            f"{d['latency_ms']['p50']:.3f}", f"{d['float_latency_ms']['p50']:.3f}",
            f"{ratio(report, d):.2f}", d["speedup"]["verdict"], kept,
            f"{d['peak_memory_mib']:.0f}",
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
