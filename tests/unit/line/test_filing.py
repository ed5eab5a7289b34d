"""Records: one a number, none for a deployment that failed or was not measured anew."""

from dataclasses import replace

import pytest

from modelmill.line.filing import file_records
from modelmill.line.options import BuildOptions
from modelmill.line.report import (
    AgreementReport,
    Deployment,
    LatencyReport,
    Report,
    ScoreReport,
    SpeedupReport,
)
from modelmill.line.store import Store
from modelmill.records.database import Database

DEPLOYMENT = Deployment(
    target="ort_cpu", runtime="onnxruntime", version="1.2", precision="w8a8", artifact="a.onnx",
    bytes=1234, score=ScoreReport(0.75, 0.5, 100, 50, 0.7, {"top1": 0.75, "top5": 0.9}),
    agreement=AgreementReport(1000, 3, 1, "conv", 50),
    latency_ms=LatencyReport(1.5, 2.0, 3.0, 200, 1, 1, 0.01),
    float_latency_ms=LatencyReport(3.0, 4.0, 5.0, 210, 1, 1, 0.02),
    speedup=SpeedupReport(2.0, 1.9, 2.1, "faster"), peak_memory_mib=55.5,
)  # fmt: skip


@pytest.fixture
def filed(tmp_path):
    def make(deployments, redone, db=None):
        report = Report(
            {"name": "m", "fingerprint": "f00"}, "classification", "top1",
            {"score": 0.8, "n": 100, "metrics": {}}, tuple(deployments), True, (), 0.01, 1.0, 1.0,
        )  # fmt: skip
        store = Store(tmp_path / "out", resume=True)
        store.redone.extend(redone)
        options = BuildOptions("m.onnx", "d", ("ort_cpu",), tmp_path / "out", db=db)
        file_records(report, options, store, "build7")
        return Database(db or tmp_path / "out" / "records.db").query()

    return make


def test_each_number_once(filed):
    found = {r.what: r for r in filed([DEPLOYMENT], ["deploy-ort_cpu"])}
    numbers = {what: (r.value, r.unit, r.n) for what, r in found.items()}
    assert numbers == {
        "top1": (0.75, "fraction", 100), "simulated_top1": (0.5, "fraction", 50),
        "float_top1": (0.8, "fraction", 100), "mismatched_codes": (3, "elements", 1000),
        "latency_p50_ms": (1.5, "ms", 200), "float_latency_p50_ms": (3.0, "ms", 210),
        "speedup": (2.0, "ratio", 200), "peak_memory_mib": (55.5, "MiB", 1),
        "artifact_bytes": (1234, "bytes", 1),
    }  # fmt: skip
    assert all(r.subject == "f00" and r.build == "build7" for r in found.values())
    assert found["latency_p50_ms"].where.engine == "onnxruntime"
    assert found["latency_p50_ms"].where.version == "1.2"
    assert found["latency_p50_ms"].where.threads == 1
    assert found["top1"].extra["target"] == "ort_cpu"


def test_what_was_not_measured_anew_is_not_filed_again(filed):
    assert filed([DEPLOYMENT], ["quantize-ort_cpu"]) == []


def test_a_failed_deployment_has_no_facts(filed):
    failed = replace(DEPLOYMENT, target="openvino_cpu", failed="crashed", score=None)
    found = filed([failed, DEPLOYMENT], ["deploy-ort_cpu", "deploy-openvino_cpu"])
    assert {r.extra["target"] for r in found} == {"ort_cpu"}


def test_another_database(filed, tmp_path):
    assert len(filed([DEPLOYMENT], ["deploy-ort_cpu"], db=str(tmp_path / "all.db"))) == 9


class Told:
    def __init__(self):
        self.words = []

    def say(self, text):
        self.words.append(text)


def test_a_database_that_cannot_be_reached_loses_nothing(tmp_path):
    db = str(tmp_path / "no folder" / "all.db")
    store = Store(tmp_path / "out", resume=True)
    store.redone.append("deploy-ort_cpu")
    report = Report(
        {"name": "m", "fingerprint": "f00"}, "classification", "top1",
        {"score": 0.8, "n": 100, "metrics": {}}, (DEPLOYMENT,), True, (), 0.01, 1.0, 1.0,
    )  # fmt: skip
    options = BuildOptions("m.onnx", "d", ("ort_cpu",), tmp_path / "out", db=db)
    told = Told()
    file_records(report, options, store, "build7", told)
    assert len(Database(tmp_path / "out" / "records.db").query()) == 9
    assert "check that the folder exists" in told.words[0]
    assert f"modelmill latency merge {tmp_path / 'out' / 'records.db'}" in told.words[0]


def test_the_database_of_the_build_by_name_gets_each_once(filed, tmp_path):
    own = str(tmp_path / "out" / "records.db")
    assert len(filed([DEPLOYMENT], ["deploy-ort_cpu"], db=own)) == 9
