"""What a measurement keeps and in which order it is taken, not how long anything took."""

from pathlib import Path

import numpy as np
import pytest

from modelmill.latency import Effort, Latency, measure
from modelmill.runtimes import EngineCrashed, SessionOptions, open_session

ADAPTER = str(Path(__file__).parent / "sleeper.py")
QUICK = Effort(blocks=4, block_ms=1.0, least=3, warmups=2, noise=1e9)
X = {"x": np.zeros((8, 2), np.float32)}


@pytest.fixture
def sessions(tmp_path):
    opened = {}
    for name in ("float", "int8"):
        path = tmp_path / name
        path.write_text("1")
        opened[name] = open_session(ADAPTER, path, SessionOptions(threads=2))
    yield opened
    for session in opened.values():
        session.close()


def test_percentiles_are_those_of_all_samples():
    blocks = ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), (7.0, 8.0, 100.0))
    latency = Latency(blocks, threads=1, batch=1)
    flat = np.concatenate(blocks)
    assert latency.n == 9 and latency.p50_ms == 5.0
    assert (latency.p90_ms, latency.p99_ms) == tuple(np.percentile(flat, (90, 99)))
    assert latency.noise == pytest.approx((6.5 - 3.5) / 5)  # quartiles of 2, 5, 8


def test_a_machine_that_was_slower_than_it_can_be_adds_to_the_noise():
    """Blocks that were all disturbed alike agree, and are no less wrong."""
    assert Latency(((2.0, 2.0), (2.0, 2.0)), 1, 1, slower=0.25).noise == 0.25


def test_the_calm_time_is_that_of_one_inference_in_fifty():
    samples = tuple(float(t) for t in range(1, 102))
    assert Latency((samples,), threads=1, batch=1).calm_ms == np.percentile(samples, 2) == 3.0


def test_raw_samples_of_every_block_are_kept(sessions):
    found = measure(sessions, X, QUICK)
    assert list(found) == ["float", "int8"]
    for latency in found.values():
        assert len(latency.samples_ms) == 4 and all(len(b) >= 3 for b in latency.samples_ms)
        assert latency.n == sum(len(b) for b in latency.samples_ms)
        assert min(min(b) for b in latency.samples_ms) >= 0.1  # the adapter sleeps as long
        assert (latency.threads, latency.batch, latency.rounds) == (2, 8, 1)
        assert latency.warmup >= 4


def test_sessions_take_turns(sessions, tmp_path):
    measure(sessions, X, QUICK)
    log = (tmp_path / "log").read_text().split()
    assert log[-8:] == ["float", "int8", "int8", "float"] * 2


def test_noisy_rounds_are_repeated_and_the_number_is_bounded(sessions):
    never_calm = Effort(blocks=2, block_ms=0.1, least=1, warmups=1, noise=-1.0, rounds=3)
    assert {latency.rounds for latency in measure(sessions, X, never_calm).values()} == {3}


def test_an_engine_that_crashes_is_a_deployment_error(tmp_path):
    (tmp_path / "m").write_text("abort")
    with open_session(ADAPTER, tmp_path / "m") as session, pytest.raises(EngineCrashed):
        measure({"a": session}, X, QUICK)


def test_wrong_arguments(sessions):
    with pytest.raises(ValueError, match="no session"):
        measure({}, X)
    with pytest.raises(ValueError, match="takes the inputs x"):
        measure(sessions, {"y": X["x"]}, QUICK)
    with pytest.raises(ValueError, match="too little effort"):
        Effort(blocks=1)
