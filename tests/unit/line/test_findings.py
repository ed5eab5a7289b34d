"""What is accepted, what is not, and what is said about it."""

from dataclasses import replace

import pytest

from modelmill.line.findings import conclude
from modelmill.line.report import (
    AgreementReport,
    AttemptReport,
    Deployment,
    LatencyReport,
    ReconstructionReport,
    Report,
    ScoreReport,
    SpeedupReport,
    deployment_from_json,
)

LATENCY = LatencyReport(1.0, 1.1, 1.2, 100, 1, 1, 0.01)
GOOD = Deployment(
    target="ort_cpu", runtime="onnxruntime", version="1", precision="w8a8",
    artifact="artifacts/ort_cpu.onnx", bytes=10,
    score=ScoreReport(0.9, 0.9, 100, 50, 0.9, {"top1": 0.9}),
    agreement=AgreementReport(1000, 0, 0, None, 50),
    latency_ms=LATENCY, float_latency_ms=LATENCY,
    speedup=SpeedupReport(2.0, 1.9, 2.1, "faster"), peak_memory_mib=50.0,
)  # fmt: skip
REPORT = Report(
    model={"name": "m"}, task="classification", metric="top1",
    float_score={"score": 0.9, "n": 100}, deployments=(GOOD,), accepted=False, findings=(),
    max_drop=0.01, peak_memory_mib=1.0, seconds=1.0,
)  # fmt: skip
LOG = {"layers": [], "verdicts": [], "protected": []}


def said(deployment, log=LOG, allow_fallback=False, notes=(), other=()):
    report = replace(REPORT, deployments=(deployment, *other))
    logs = {d.target: log for d in report.deployments}
    found = conclude(report, notes, logs, allow_fallback)
    return found.accepted, {f.what: f for f in found.findings}


def scored(deployed):
    return replace(GOOD, score=replace(GOOD.score, deployed=deployed))


def test_nothing_to_say():
    assert said(GOOD) == (True, {})


@pytest.mark.parametrize(
    ("deployed", "accepted"), [(0.9, True), (0.95, True), (0.89, True), (0.8899, False), (0, False)]
)
def test_the_drop(deployed, accepted):
    """A drop of exactly the limit is allowed: 0.9 - 0.89 is a bit more than 0.01 in binary."""
    ok, found = said(scored(deployed))
    assert ok is accepted and ("accuracy drop above the limit" in found) is not accepted


def test_the_drop_in_words():
    _, found = said(scored(0.5))
    finding = found["accuracy drop above the limit"]
    assert finding.where == "ort_cpu" and finding.next.startswith(
        "modelmill explain OUT -t ort_cpu,"
    )
    assert "0.5000 is 0.4000 below float 0.9000" in finding.why and "0.01" in finding.why


def test_a_failed_deployment():
    failed = replace(
        GOOD, failed="the worker was killed by SIGSEGV", score=None, agreement=None,
        latency_ms=None, float_latency_ms=None, speedup=None,
    )  # fmt: skip
    ok, found = said(failed)
    assert not ok and found["deployment failed"].why == "the worker was killed by SIGSEGV"
    assert "modelmill" in found["deployment failed"].next
    assert len(found) == 1


def test_one_bad_deployment_refuses_the_build():
    ok, found = said(scored(0.1), other=(replace(GOOD, target="openvino_cpu"),))
    assert not ok and found["accuracy drop above the limit"].where == "ort_cpu"


def test_fallback():
    fallen = replace(GOOD, fallback_ops=("Conv_0 (FusedConv)",))
    ok, found = said(fallen)
    assert not ok and "Conv_0 (FusedConv)" in found["operators fell back to float"].why
    assert "--allow-fallback" in found["operators fell back to float"].next
    assert said(fallen, allow_fallback=True) == (True, {})


@pytest.mark.parametrize("verdict", ["slower", "no significant difference"])
def test_not_faster_is_said_and_accepted(verdict):
    slow = replace(GOOD, speedup=SpeedupReport(0.8, 0.7, 0.9, verdict))
    ok, found = said(slow)
    assert ok and verdict in found["int8 is not faster here"].why
    assert found["int8 is not faster here"].next


def test_agreement_weak_layers_and_float_layers_are_said():
    parted = replace(GOOD, agreement=AgreementReport(1000, 5, 2, "conv3", 50, 1000, 3, 1))
    log = {
        "layers": [
            {"value": "a", "node": "n", "op": "Conv", "sqnr_db": 30.0},
            {"value": "b", "node": "m", "op": "Relu", "sqnr_db": 4.0},
        ],
        "verdicts": [{"node": "s", "op": "Sigmoid", "runs": "float", "why": "no rule"}],
        "protected": [{"node": "conv9", "sqnr_db": 7.25}],
    }
    ok, found = said(parted, log)
    assert ok
    assert "conv3" in found["simulation and engine part"].why
    assert "b (Relu) with 4.0 dB" in found["weak layers"].why
    assert "conv9 (7.2 dB)" in found["layers kept in float to save accuracy"].why
    assert "s (Sigmoid)" in found["operators left in float by plan"].why


TRIED = (
    AttemptReport("round", 0.4, 0.5, None, 1.0),
    AttemptReport("ranges", None, None, None, 1.0, failed="out of memory"),
    AttemptReport("qdrop", 0.5, 0.4, 0.1, 9.0, kept=True),
)
LEARNED = ReconstructionReport("qdrop", 9, ("block2", "head"), 30.0, 0.0, 8.0)


def test_the_best_of_what_was_tried_is_said():
    ok, found = said(replace(scored(0.5), attempts=TRIED))
    why = found["accuracy drop above the limit"].why
    assert not ok and "the best of all that was tried, qdrop" in why
    assert "round 0.4000, ranges failed, qdrop 0.5000" in why


def test_units_that_learned_nothing_are_said():
    ok, found = said(replace(GOOD, reconstruction=LEARNED))
    why = found["units that learned nothing"].why
    assert ok and "in 2 of 9 units qdrop" in why and "block2, head" in why
    assert said(replace(GOOD, reconstruction=replace(LEARNED, kept_rounding=()))) == (True, {})


def test_why_it_is_simulated_is_said():
    alone = replace(
        GOOD, runtime="simulated", agreement=None, latency_ms=None, float_latency_ms=None,
        speedup=None,
    )  # fmt: skip
    ok, found = said(alone, LOG | {"simulated": "w4a4 is simulated: no engine here"})
    assert ok and found["simulated only"].why == "w4a4 is simulated: no engine here"
    assert found["simulated only"].next.startswith("modelmill check MODEL -t ort_cpu --precision")


def test_notes_are_kept():
    ok, found = said(GOOD, notes=("weights have 7 bits",))
    assert ok and found["note"].why == "weights have 7 bits"


def test_a_deployment_survives_json():
    import json
    from dataclasses import asdict

    learned = replace(GOOD, attempts=TRIED, reconstruction=LEARNED)
    bad = replace(GOOD, failed="no", score=None, fallback_ops=("a", "b"))
    for deployment in (GOOD, bad, learned):
        assert deployment_from_json(json.loads(json.dumps(asdict(deployment)))) == deployment
