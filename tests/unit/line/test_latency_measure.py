"""Models into the database: the quantized form, what is not measured twice, and failures."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modelmill import ir
from modelmill.latency import collect, zoo
from modelmill.latency.collect import PACE, random_feeds
from modelmill.line import latency_measure, latency_workers
from modelmill.line.latency_measure import (
    Asked,
    Done,
    Subject,
    measure_all,
    platform_of,
    quantized,
    repeated,
    zoo_subjects,
)
from modelmill.line.latency_workers import Job, run, summary, to_json
from modelmill.line.quantize import Recipe, prepare_graph, quantize
from modelmill.records import Database, Latencies, Measurement
from modelmill.runtimes import SessionOptions
from modelmill.targets import at_precision, load_target

pytest.importorskip("onnxruntime", reason="modelmill[onnxruntime]")
ORT = (("ort_cpu", "float"), ("ort_cpu", "w8a8"))
ONE = SessionOptions()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    effort = replace(PACE.effort, blocks=3, block_ms=2.0, rounds=1)
    pace = replace(PACE, effort=effort)
    bench = latency_measure.Bench
    monkeypatch.setattr(
        latency_measure,
        "Bench",
        lambda runtime, options, **known: bench(runtime, options, pace, **known),
    )
    monkeypatch.setattr(collect, "FIRST", 3)


@pytest.fixture
def latencies(tmp_path):
    return Latencies(Database(tmp_path / "l.db"))


def made(found):
    return [done for _, done in found if done is not None]


@pytest.mark.parametrize("target", ["ort_cpu", "openvino_cpu"])
@pytest.mark.parametrize("family", ["mobilenetv3", "vit"])
def test_the_file_is_the_one_that_a_build_writes(target, family):
    """`quantize`, with the steps that move no node, is the other way to it."""
    _, graph = zoo.draw(family, 0)
    feeds = random_feeds(graph)
    ours = quantized(graph, at_precision(load_target(target), "w8a8"), "w8a8", feeds)
    recipe = Recipe(equalize=None, bias_correction=None, protect=None)
    theirs = quantize(graph, [feeds], target, "w8a8", recipe).to_qdq()
    assert ir.structure(ours) == ir.structure(theirs)
    assert ir.fingerprint(ours) != ir.fingerprint(graph)


@pytest.mark.parametrize("family", zoo.families())
def test_a_network_of_the_zoo_is_clean(family):
    """So the float file is what `build` would time as well, and cleaning can be left out."""
    _, graph = zoo.draw(family, 0)
    assert ir.fingerprint(prepare_graph(graph)) == ir.fingerprint(graph)


def test_measured_once(latencies):
    subjects = zoo_subjects(["squeezenet", "alexnet"], 1)
    first = made(measure_all(subjects, Asked(ORT), latencies))
    assert [d.failed for d in first] == [""] * 4
    stored = latencies.find()
    assert {m.key for m in stored} == {d.measurement.key for d in first}
    assert {m.platform.precision for m in stored} == {"float", "w8a8"}
    assert all(m.reference_ms > 0 and m.samples_ms and m.noise >= 0 for m in stored)
    assert {m.family for m in latencies.models()} == {"squeezenet", "alexnet"}
    # the same command goes on where it was: here, at a third model
    more = [*subjects, Subject(family="vgg", number=3)]
    assert {d.subject.family for d in made(measure_all(more, Asked(ORT), latencies))} == {"vgg"}


def test_again_measures_what_is_there_and_nothing_else(latencies):
    subjects = zoo_subjects(["squeezenet", "alexnet"], 1)
    made(measure_all(subjects[:1], Asked(ORT), latencies))
    found = made(measure_all(subjects, Asked(ORT, again=True), latencies))
    assert [d.subject.family for d in found] == ["squeezenet"] * 2
    assert all(d.before is not None for d in found)
    assert repeated(found).n == 2
    assert latencies.count() == 4


def test_only_what_was_noisy_is_measured_again(latencies):
    subjects = zoo_subjects(["squeezenet", "alexnet"], 1)
    first = made(measure_all(subjects, Asked(ORT[:1]), latencies))
    calm, noisy = sorted(d.measurement.noise for d in first)
    asked = Asked(ORT[:1], again=True, noisier=calm)
    (done,) = made(measure_all(subjects, asked, latencies))
    assert done.before.noise == noisy
    # the least noise of all its measurements counts
    nothing = Asked(ORT[:1], again=True, noisier=max(calm, min(noisy, done.measurement.noise)))
    assert not made(measure_all(subjects, nothing, latencies))


def test_a_model_of_ones_own(latencies, tmp_path):
    graph = zoo.draw("resnet", 4)[1]
    ir.save(graph, tmp_path / "mine.onnx")
    (done,) = made(measure_all([Subject(str(tmp_path / "mine.onnx"))], Asked(ORT[:1]), latencies))
    assert done.measurement.model == ir.structure(graph)
    (known,) = latencies.models()
    assert (known.name, known.family) == ("mine", "")
    assert ir.structure(ir.from_skeleton(known.skeleton)) == known.structure


def test_a_crash_costs_one_measurement(latencies, tmp_path):
    """The engine aborts on files of one precision; all others are measured and stored."""
    adapter = tmp_path / "brittle.py"
    source = Path(__file__).parents[3] / "modelmill" / "runtimes" / "onnxruntime.py"
    call = "        session, arrays = self._session, dict(feeds)"
    crash = (
        "        if b'QuantizeLinear' in Path(self._path).read_bytes(): __import__('os').abort()"
    )
    adapter.write_text(source.read_text().replace(call, f"{crash}\n{call}"))
    chip = tmp_path / "chip.py"
    chip.write_text(
        "from dataclasses import replace\n"
        "from modelmill.targets.ort_cpu import PLUGIN as ORT\n"
        f"PLUGIN = replace(ORT, name='chip', runtime={str(adapter)!r})\n"
    )
    platforms = ((str(chip), "w8a8"), (str(chip), "float"))
    found = made(measure_all(zoo_subjects(["alexnet"], 2), Asked(platforms), latencies))
    assert [("SIGABRT" in d.failed, d.measurement is None) for d in found] == [
        (True, True), (False, False), (True, True), (False, False),
    ]  # fmt: skip
    assert latencies.count() == 2


def test_several_workers_share_the_models(tmp_path):
    if len(latency_workers._cpus()) < 2:
        pytest.skip("one core")
    subjects = tuple(zoo_subjects(["squeezenet", "alexnet"], 1))
    job = Job(subjects, ORT[:1], str(tmp_path / "l.db"), ONE, workers=2)
    counts = [count for count, _ in run(job)]
    assert max(counts) == 2
    assert Latencies(Database(tmp_path / "l.db")).count() == 2
    assert [row["there"] for row in job.dry_run()] == [2]


def test_too_many_workers_are_refused():
    cores = len(latency_workers._cpus())
    with pytest.raises(ValueError, match=rf"--workers {cores + 1}.*{cores} cores"):
        Job((), ORT, "l.db", ONE, workers=cores + 1)


def test_a_platform_without_times_is_refused():
    with pytest.raises(ValueError, match="no engine here runs it"):
        platform_of("tensorrt", "w8a8", ONE)
    with pytest.raises(ValueError, match=r"no family 'resnt'.*resnet"):
        zoo_subjects(["resnt"], 1)


def measurement(p50, noise, reference):
    platform = platform_of("ort_cpu", "float", ONE)
    when = "2026-01-01T00:00:00+00:00"
    return Measurement("m", platform, p50, p50, p50, 9, noise, when, reference_ms=reference)


def test_the_report_of_repeats():
    """Three pairs by hand: equal; 4 % slower with a reference that is 4 % slower too and noise of
    1 + 1 %; 3 % faster with noise of 2 + 2 %.
    """
    platform, subject = platform_of("ort_cpu", "float", ONE), Subject(family="vgg")
    pairs = [
        (measurement(1, 0, 1), measurement(1, 0, 1)),
        (measurement(1, 0.01, 1), measurement(1.04, 0.01, 1.04)),
        (measurement(1, 0.02, 1), measurement(0.97, 0.02, 1)),
    ]
    done = [Done(subject, platform, new, old) for old, new in pairs]
    found = repeated(done)
    assert found.n == 3
    np.testing.assert_allclose(
        [found.within_noise, found.within_2, found.within_5], [2 / 3, 1 / 3, 1]
    )
    np.testing.assert_allclose(found.median, -np.log(0.97))
    np.testing.assert_allclose(found.corrected, 0, atol=1e-12)
    assert to_json(done, found)["again"]["n"] == 3
    assert summary(done)[0]["n"] == 3
    assert repeated([]) is None


def test_a_run_that_was_killed_keeps_what_it_had(latencies, tmp_path):
    """Stopped in the middle of the second model: the first is in the file, readable by others."""
    stream = measure_all(zoo_subjects(["alexnet"], 2), Asked(ORT), latencies)
    for _, done in stream:
        if done is not None:
            break
    with sqlite3.connect(tmp_path / "l.db") as other:
        assert other.execute("select count(*) from modelmill_measurements").fetchone() == (1,)
    stream.close()
