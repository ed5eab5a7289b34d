"""A database with models, measurements, predictions and records of builds; the pages over it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modelmill.records import Database, Latencies, Measurement, ModelFacts, Platform, Record, Where

pytest.importorskip("fastapi", reason="run: pip install 'modelmill[serve]'")
from fastapi.testclient import TestClient

from modelmill.web.app import create
from modelmill.web.start import open_site

FAMILIES = ("resnet", "mobilenetv2", "squeezenet", "vgg")
HOSTILE = "<script>alert(1)</script>&\"'"
ORT = Platform("ort_cpu", "1.32.0", "A Processor", "avx512_vnni")
PLATFORMS = (
    ORT,
    replace(ORT, precision="w8a8"),
    Platform("openvino_cpu", "2026.4", "A & B", "avx2"),
)
MODELS = 54  # more than a page holds
MORE = 20  # of these are measured on the second platform too
SAMPLED = 12  # of these the samples are kept


def structure(i: int) -> str:
    return f"{i:064x}"


def moment(minute: int) -> str:
    return f"2026-11-01T{minute // 60 % 24:02}:{minute % 60:02}:00+00:00"


def measured(i: int, platform: Platform, draw: np.random.Generator) -> Measurement:
    """The p50 of model i is (i + 1) / 10 ms on the first platform, less on the others."""
    p50 = (i + 1) / 10 / (1 + PLATFORMS.index(platform))
    blocks = (
        p50 * (1 + 0.02 * draw.standard_normal((8, 40)) ** 2) if i < SAMPLED else np.zeros((0, 0))
    )
    return Measurement(
        structure(i), platform, p50, p50 * 1.05, p50 * 1.3, 320, 0.01 + i / 10_000, moment(i),
        "a machine", 1.25, tuple(tuple(block) for block in blocks.tolist()), {"note": HOSTILE},
    )  # fmt: skip


def predicted(i: int, platform: Platform, ratio: float, when: str) -> Record:
    """A prediction of `ratio` times what model i takes, its interval 10 % to both sides."""
    value = ratio * (i + 1) / 10 / (1 + PLATFORMS.index(platform))
    extra = {"platform": platform.key, "low_ms": 0.9 * value, "high_ms": 1.1 * value}
    where = Where(platform.device, platform.target, platform.version, 1, platform.isa)
    return Record("latency_predicted_p50_ms", value, "ms", structure(i), where, when, extra=extra)


def deployed(build: str, target: str, name: str, facts: dict[str, float]) -> list[Record]:
    where = Where("A Processor", "onnxruntime", "1.32.0", 1, "avx512_vnni")
    extra = {"target": target, "precision": "w8a8", "model": name}
    return [
        Record(what, value, "", "f" * 64, where, moment(90), 100, None, build, extra)
        for what, value in facts.items()
    ]


TINY_REPORT = {
    "version": 2,
    "model": {"name": HOSTILE, "fingerprint": "f" * 64, "params": 1000, "macs": 2e6},
    "task": "classification",
    "metric": "top1",
    "float": {"score": 0.9, "n": 100},
    "deployments": [
        {
            "target": "ort_cpu", "runtime": "onnxruntime", "version": "1.32.0", "precision": "w8a8",
            "bytes": 12345, "score": {"deployed": 0.89, "simulated": 0.885},
            "latency_ms": {"p50": 0.5}, "float_latency_ms": {"p50": 1.0},
            "speedup": {"ratio": 2.0, "verdict": "faster"}, "failed": None,
        },
        {
            "target": "openvino_cpu", "runtime": "openvino", "version": "2026.4",
            "precision": "w8a8", "bytes": 0, "failed": f"it did not run {HOSTILE}",
        },
    ],
    "accepted": False,
    "findings": [{"what": "note", "where": "ort_cpu", "why": HOSTILE, "next": ""}],
}  # fmt: skip


def write_build(folder: Path, build: str = "", page: bool = True) -> None:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(TINY_REPORT))
    if build:
        (folder / "manifest.json").write_text(json.dumps({"version": 1, "build": build}))
    if page:
        (folder / "report.html").write_text("<!DOCTYPE html><title>r</title><style>p{}</style>hi")


def fill(location: str) -> None:
    """Write what the tests know to an empty database."""
    database, draw = Database(location), np.random.default_rng(0)
    latencies = Latencies(database)
    latencies.add_models(
        ModelFacts(
            structure(i), HOSTILE if i == 3 else f"{FAMILIES[i % 4]}-{i:03}", FAMILIES[i % 4],
            b"", {"macs": 1e6 * (i + 1), "params": 1e5, "bytes": 4e5},
        )
        for i in range(MODELS)
    )  # fmt: skip
    latencies.add(measured(i, ORT, draw) for i in range(MODELS))
    latencies.add(measured(i, PLATFORMS[1], draw) for i in range(MORE))
    latencies.add([measured(0, PLATFORMS[2], draw)])
    before, after = "2026-10-31T00:00:00+00:00", "2026-11-30T00:00:00+00:00"
    database.add(predicted(i, ORT, 1.05, before) for i in range(10))
    database.add(predicted(i, ORT, 1.3, after) for i in range(10, 14))
    database.add([predicted(1, PLATFORMS[2], 1.0, after)])  # never measured there
    facts = {"top1": 0.89, "simulated_top1": 0.885, "float_top1": 0.9, "artifact_bytes": 12345.0}
    timed = {**facts, "latency_p50_ms": 0.5, "float_latency_p50_ms": 1.0}
    database.add(deployed("b0b0b0b0b0b0b0b0", "ort_cpu", HOSTILE, timed))
    database.add(deployed("c0c0c0c0c0c0c0c0", "ort_cpu", "elsewhere", timed))
    database.add(deployed("c0c0c0c0c0c0c0c0", "emulated", "elsewhere", facts))  # not timed


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file."""
    path = tmp_path_factory.mktemp("web") / "records.db"
    fill(str(path))
    return path


@pytest.fixture
def filled_server(request: pytest.FixtureRequest) -> str:
    """The same in PostgreSQL, by its URL."""
    url: str = request.getfixturevalue("postgresql").new_url()
    fill(url)
    return url


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds in folders, one of them with records in the database, and one broken."""
    root = tmp_path_factory.mktemp("folders")
    write_build(root / "deep" / "er" / "one", "b0b0b0b0b0b0b0b0")
    write_build(root / "two", page=False)
    (root / "broken").mkdir()
    (root / "broken" / "report.json").write_text('{"model": NaN}')
    return root


@pytest.fixture(scope="session")
def client(filled: Path, folders: Path) -> Iterator[TestClient]:
    site = open_site(str(filled), [folders])
    with TestClient(create(site, site.reader.database.location)) as made:
        yield made
