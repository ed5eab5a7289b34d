"""Measuring one model after the other in a worker that stays, and what happens when it does not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modelmill import ir
from modelmill.latency import zoo
from modelmill.latency.collect import FEWEST, PACE, Bench, calmest, random_feeds
from modelmill.runtimes import (
    EngineCrashed,
    EngineError,
    EngineTimeout,
    SessionOptions,
    Worker,
)

FLAKY = str(Path(__file__).parent / "flaky.py")
QUICK = replace(PACE, effort=replace(PACE.effort, blocks=4, block_ms=3.0, rounds=1))
FEEDS = {"input": np.zeros(1, np.float32)}


@pytest.fixture
def model(tmp_path):
    def write(text):
        path = tmp_path / f"{text.strip()}.onnx"
        path.write_text(text)
        return path

    return write


def test_a_worker_serves_several_sessions(tmp_path):
    pytest.importorskip("onnxruntime", reason="modelmill[onnxruntime]")
    graph = zoo.reference()
    ir.save(graph, tmp_path / "reference.onnx")
    feeds = random_feeds(graph)
    worker = Worker("onnxruntime")
    first, second = (worker.open(tmp_path / "reference.onnx") for _ in range(2))
    y = first.run(feeds)
    for session in (first, second):
        session.time(feeds, 0, 1)
    found = worker.turns([(first, 0, 2), (second, 1, 3), (first, 0, 1)])
    assert [len(series.wall) for series in found] == [2, 3, 1]
    assert all((s.wall > 0).all() and (s.cpu >= 0).all() and (s.probe > 0).all() for s in found)
    second.close()
    second.close()
    np.testing.assert_equal(first.run(feeds), y)
    worker.close()


def test_a_real_engine(tmp_path):
    pytest.importorskip("onnxruntime", reason="modelmill[onnxruntime]")
    with Bench("onnxruntime", SessionOptions(), QUICK) as bench:
        times = []
        for number in (0, 1):
            _, graph = zoo.draw("squeezenet", number)
            ir.save(graph, tmp_path / "m.onnx")
            times.append(bench.time(tmp_path / "m.onnx", random_feeds(graph)))
    for timing in times:
        assert timing.latency.p50_ms > 0
        assert timing.reference_ms > 0
        assert timing.facts["clock"] in ("wall", "cpu")
        assert 0 <= timing.facts["interrupted"] <= 1
        assert len(timing.latency.samples_ms) >= 2


def test_a_busy_half_millisecond_is_half_a_millisecond(model):
    """The adapter works for 0.5 ms by the clock: the p50 of what counts cannot be less, and not
    much more where it had the processor.
    """
    with Bench(FLAKY, SessionOptions(), QUICK) as bench:
        timing = bench.time(model("works"), FEEDS)
    if timing.facts["clock"] == "wall":
        assert 0.5 <= timing.latency.p50_ms < 0.6


def test_of_an_engine_that_waits_no_inference_is_interrupted(model, tmp_path):
    """It sleeps, as one that hands its work to another chip does: its times are the clock's."""
    adapter = tmp_path / "waiting.py"
    adapter.write_text(Path(FLAKY).read_text().replace("pass  # work", "time.sleep(0.0005)"))
    with Bench(str(adapter), SessionOptions(), QUICK) as bench:
        timing = bench.time(model("waits"), FEEDS)
    assert timing.facts["clock"] == "wall"
    assert timing.facts["interrupted"] == 0
    assert timing.latency.p50_ms > 0.5


def test_inferences_count_by_the_probe_after_them():
    probe = np.array([1.0, 1.05, 1.5, 1.02, 3.0, 1.07, 1.0, 1.01])
    np.testing.assert_array_equal(calmest(probe, 0.06), probe <= 1.06)
    assert calmest(np.arange(1.0, 40.0), 0.0).sum() == FEWEST  # nobody was calm but one
    assert calmest(np.ones(2), 0.0).all()


def test_a_reference_that_was_quicker_before_makes_a_measurement_noisy(model):
    """The reference of this adapter works for 0.5 ms; half of that was seen before: the machine is
    twice as slow as it can be.
    """
    with Bench(FLAKY, SessionOptions(), QUICK, calmest_ms=0.25) as bench:
        timing = bench.time(model("works"), FEEDS)
    assert timing.facts["calmest_ms"] == 0.25
    assert timing.latency.noise >= timing.latency.slower >= 0.5 / 0.25 - 1


@pytest.mark.parametrize(
    ("text", "error"),
    [("abort\n", EngineCrashed), ("hang\n\n", EngineTimeout), ("refuse", EngineError)],
)
def test_the_next_model_is_measured_after_one_that_fails(model, text, error):
    with Bench(FLAKY, SessionOptions(timeout_s=2.0), QUICK) as bench:
        with pytest.raises(error):
            bench.time(model(text), FEEDS)
        assert bench.time(model("works"), FEEDS).latency.p50_ms > 0


def test_feeds_are_of_the_shape_and_type_of_the_inputs():
    graph = zoo.draw("resnet", 0)[1]
    (x,) = random_feeds(graph, seed=1).values()
    assert x.shape == ir.inputs(graph)["input"].shape
    assert x.dtype == np.float32
    assert not np.array_equal(x, random_feeds(graph, seed=2)["input"])
