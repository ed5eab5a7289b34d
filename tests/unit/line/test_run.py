"""`build` from end to end on real engines: what it leaves, what a failure costs, what is redone."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest

from modelmill import ir
from modelmill.line.manifest import options_from
from modelmill.line.options import BuildOptions
from modelmill.line.run import build
from modelmill.records.database import Database
from modelmill.records.latencies import Latencies
from modelmill.tasks import load_card

pytestmark = pytest.mark.usefixtures("quick")
BOTH = ("ort_cpu", "openvino_cpu")


@pytest.fixture(scope="module")
def options(tiny):
    def make(out, **changes):
        asked = {"targets": BOTH, "calibrate": 20, "simulate": 10, "max_drop": 1.0} | changes
        return BuildOptions(tiny.model, tiny.data, out=Path(out), **asked)

    return make


@pytest.fixture(scope="module")
def built(options, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return build(options(out)), out


def test_the_report_has_the_keys_of_the_house(built):
    """Exactly the schema; what was added to it is listed here too."""
    report = json.loads((built[1] / "report.json").read_bytes())
    more = {"version", "max_drop", "peak_memory_mib", "seconds"}
    assert set(report) == more | {
        "model", "task", "metric", "float", "deployments", "accepted", "findings",
        "cross_agreement",
    }  # fmt: skip
    assert set(report["model"]) == {"name", "fingerprint", "params", "macs", "input"}
    assert set(report["float"]) == {"score", "n", "metrics", "score_same", "simulated_n"}
    for d in report["deployments"]:
        assert set(d) == {
            "target", "runtime", "version", "precision", "artifact", "bytes", "score", "agreement",
            "latency_ms", "float_latency_ms", "speedup", "peak_memory_mib", "fallback_ops",
            "seconds", "failed", "qdq", "exports", "attempts", "reconstruction",
        }  # fmt: skip
        assert set(d["score"]) >= {"deployed", "simulated", "n"}
        assert set(d["agreement"]) >= {"elements", "mismatched", "max_codes", "first_divergence"}
        for key in ("latency_ms", "float_latency_ms"):
            assert set(d[key]) >= {"p50", "p90", "p99", "n", "threads", "batch"}
        assert set(d["speedup"]) == {"ratio", "low", "high", "verdict"}
        assert set(d["seconds"]) == {"quantize", "convert", "evaluate"}
    for finding in report["findings"]:
        assert set(finding) == {"what", "where", "why", "next"}


def test_the_numbers_hold_together(built, tiny):
    report, out = built
    assert report.accepted and report.metric == "top1"
    assert report.float_score["score"] == 1.0 and report.float_score["n"] == 40
    assert report.model["params"] == sum(
        int(np.prod(t.dims)) for t in onnx.load(tiny.model).graph.initializer
    )
    for d in report.deployments:
        assert d.failed is None and d.score.n == 40 and 0 <= d.score.deployed <= 1
        assert d.fallback_ops == () and d.bytes == (out / d.artifact).stat().st_size
        assert d.latency_ms.p50 <= d.latency_ms.p90 <= d.latency_ms.p99
        assert d.speedup.low <= d.speedup.ratio <= d.speedup.high
    assert report.deployments[0].agreement.mismatched == 0
    assert report.deployments[0].agreement.elements == 10 * (64 + 3 * 128 + 2 * 8)
    assert report.deployments[0].score.simulated == report.deployments[0].score.deployed_same


def test_the_score_is_that_of_the_artifact(built, tiny):
    """ONNX Runtime here, on the images that were not calibrated on."""
    import onnxruntime as ort

    from modelmill.line.source import load_images, load_source

    report, out = built
    source = load_source(tiny.model, None)
    dataset = load_images(source, tiny.data, None, 20, None, 0).evaluation
    samples = [dataset.sample(i) for i in range(len(dataset))]
    pictures = np.stack([np.asarray(s.image)[..., 0] for s in samples])  # three equal channels
    x = ((pictures / 255 - 0.5) / 0.25).astype(np.float32)[:, None]
    session = ort.InferenceSession(
        str(out / "artifacts" / "ort_cpu.onnx"), providers=["CPUExecutionProvider"]
    )
    right = session.run(None, {"x": x})[0].argmax(1) == [s.truth for s in samples]
    assert report.deployments[0].score.deployed == pytest.approx(right.mean())


def test_how_alike_they_answer(built):
    """From the predictions that lie beside the details; counted here by hand."""
    report, out = built
    cross = report.cross_agreement
    assert (cross.metric, cross.n, cross.names) == ("top1", 40, ("float", *BOTH))
    first = []
    for name in cross.names:
        held = np.load(out / f"details/{name}.predictions.npz")
        starts = np.cumsum(held["classes.count"].astype(int)) - held["classes.count"]
        first.append(held["classes"][starts])
    for i, row in enumerate(cross.rows):
        assert row == pytest.approx([(first[i] == other).mean() for other in first])
    assert [cross.rows[0][j] for j in (1, 2)] == [d.score.deployed for d in report.deployments]


def test_every_fact_is_in_the_database(built):
    report, out = built
    found = Database(out / "records.db").query()
    wanted = {
        "top1", "simulated_top1", "float_top1", "mismatched_codes", "latency_p50_ms",
        "float_latency_p50_ms", "speedup", "peak_memory_mib", "artifact_bytes",
    }  # fmt: skip
    assert len(found) == 2 * len(wanted) and {r.what for r in found} == wanted
    assert {r.where.engine for r in found} == {"onnxruntime", "openvino"}
    assert {r.subject for r in found} == {report.model["fingerprint"]}
    deployed = {r.where.engine: r.value for r in found if r.what == "top1"}
    assert deployed == {d.runtime: d.score.deployed for d in report.deployments}
    assert len({r.build for r in found}) == 1


def test_every_latency_is_a_measurement(built, tiny):
    report, out = built
    there = Latencies(Database(out / "records.db"))
    given, cleaned = (ir.load(p) for p in (tiny.model, out / "artifacts/float.onnx"))
    for d in report.deployments:
        details = json.loads((out / f"details/{d.target}.json").read_bytes())
        kinds = [("w8a8", "quantized", given, d.latency_ms)]
        kinds += [("float", "float", cleaned, d.float_latency_ms)]
        for precision, kind, graph, told in kinds:
            (found,) = there.find(ir.structure(graph), there.platforms(d.target, precision))
            held = details["latency_samples_ms"][kind]
            assert np.concatenate(found.samples_ms) == pytest.approx(np.concatenate(held), abs=1e-6)
            assert found.n == told.n and found.p50_ms == pytest.approx(told.p50, abs=1e-4)
            assert (found.platform.version, found.platform.threads) == (d.version, told.threads)
    assert there.count() == 4
    model = there.models(structures=[ir.structure(given)])[0]
    assert model.name == report.model["name"] and model.facts["macs"] == report.model["macs"]
    assert ir.structure(ir.from_skeleton(model.skeleton)) == ir.structure(given)


def test_a_database_of_the_user_gets_the_same(options, tmp_path):
    mine = tmp_path / "mine.db"
    asked = options(tmp_path / "out", targets=("ort_cpu",), simulate=2, db=str(mine))
    build(asked)
    own, other = Database(tmp_path / "out" / "records.db"), Database(mine)
    assert other.query() == own.query() and len(own.query()) == 9
    assert Latencies(other).find() == Latencies(own).find() and Latencies(own).count() == 2


def test_a_database_that_is_none_is_told_at_the_start(options, tmp_path):
    wrong = tmp_path / "wrong.db"
    wrong.write_text("none" * 1000)
    with pytest.raises(ValueError, match="is not an SQLite database"):
        build(options(tmp_path / "out", db=str(wrong)))
    assert not (tmp_path / "out").exists()


def test_resume_after_a_whole_build_files_nothing_twice(built, options):
    report, out = built
    before = len(Database(out / "records.db").query())
    again = build(options(out, resume=True))
    assert again.deployments == report.deployments and again.float_score == report.float_score
    assert len(Database(out / "records.db").query()) == before
    assert Latencies(Database(out / "records.db")).count() == 4
    steps = json.loads((out / "manifest.json").read_bytes())["steps"]
    assert steps["done"] == [] and len(steps["reused"]) == 10


def test_the_manifest_gives_the_options_back(built, options, tmp_path):
    _, out = built
    found = options_from(out / "manifest.json", tmp_path / "again")
    asked = options(tmp_path / "again")
    assert found.recipe is not None
    for name in ("targets", "precision", "calibrate", "limit", "max_drop", "seed", "simulate"):
        assert getattr(found, name) == getattr(asked, name), name
    assert Path(found.model) == Path(asked.model).resolve() and found.db is None


def test_the_same_bytes_from_the_manifest(built, tmp_path):
    _, out = built
    again = options_from(out / "manifest.json", tmp_path / "again")
    build(replace(again, simulate=2, targets=("openvino_cpu",)))
    for name in ("openvino_cpu", "float"):
        file = f"artifacts/{name}.onnx"
        assert (tmp_path / "again" / file).read_bytes() == (out / file).read_bytes(), name


def test_another_seed_calibrates_on_other_images(built, options, tmp_path):
    build(options(tmp_path / "out", seed=1, targets=("ort_cpu",), simulate=2))
    file = "artifacts/ort_cpu.onnx"
    assert (tmp_path / "out" / file).read_bytes() != (built[1] / file).read_bytes()


# ------------------------------------------------------------ engines that fail

TARGET = """
from dataclasses import replace
from modelmill import plugins
PLUGIN = replace(
    plugins.load("modelmill.targets", "ort_cpu"), name="{name}", runtime={runtime!r}
)
"""
ENGINE = """
import os, signal, time
from modelmill import plugins
from modelmill.runtimes.onnxruntime import OnnxRuntime


class Engine(OnnxRuntime):
    def open(self, path, options):
        if "{when}" in path:
            {how}
        return super().open(path, options)


PLUGIN = Engine()
"""
WAYS = {
    "segfault": ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    "hang": ("time.sleep(1000)", "within 2 s"),
    "refuse": ("raise RuntimeError('no such kernel')", "no such kernel"),
    "out of memory": ("bytearray(1 << 60)", "out of memory"),
}


def failing(folder, how, when="bad.onnx"):
    """A target whose engine is ONNX Runtime, but for what it does to files named `when`."""
    engine, target = folder / "engine.py", folder / "bad.py"
    engine.write_text(ENGINE.format(how=how, when=when))
    target.write_text(TARGET.format(name="bad", runtime=str(engine)))
    return str(target), engine


@pytest.mark.parametrize("way", WAYS)
def test_an_engine_that_fails_costs_one_deployment(options, tmp_path, way):
    how, words = WAYS[way]
    target, engine = failing(tmp_path, how)
    out = tmp_path / "out"
    timeout = 2.0 if way == "hang" else 60.0
    report = build(options(out, targets=(target, "ort_cpu"), simulate=2, timeout_s=timeout))
    bad, good = report.deployments
    assert bad.failed is not None and words in bad.failed and bad.score is None
    assert good.failed is None and good.score.n == 40
    assert not report.accepted
    assert [f.where for f in report.findings if f.what == "deployment failed"] == ["bad"]
    held = json.loads((out / "report.json").read_bytes())
    assert held["deployments"][0]["failed"] == bad.failed
    assert {r.where.engine for r in Database(out / "records.db").query()} == {"onnxruntime"}

    if way != "segfault":
        return
    # Mended, the build goes on where it stopped.
    engine.write_text(ENGINE.format(how="pass", when="bad.onnx"))
    again = build(options(out, targets=(target, "ort_cpu"), simulate=2, resume=True))
    assert again.deployments[0].failed is None and again.accepted
    assert again.deployments[1] == good
    steps = json.loads((out / "manifest.json").read_bytes())["steps"]
    assert steps["done"] == ["score-bad", "deploy-bad", "cross-agreement"]
    assert {"quantize-bad", "quantize-ort_cpu", "deploy-ort_cpu", "float-score"} <= set(
        steps["reused"]
    )


def test_a_worker_that_somebody_kills(options, tmp_path):
    """Killed from outside while it scores: that deployment is lost, the other is not."""
    target, _ = failing(tmp_path, "open('started', 'w').close(); time.sleep(1000)")
    mine = psutil.Process()

    def kill():
        for _ in range(600):
            for child in mine.children():
                with_engine = (Path(f"/proc/{child.pid}/cwd") / "started").exists()
                if with_engine and str(os.getpid()) in child.cmdline():
                    child.send_signal(signal.SIGKILL)
                    return
            time.sleep(0.1)

    if not Path("/proc").is_dir():
        pytest.skip("needs /proc to see which worker is at work")
    thread = threading.Thread(target=kill)
    thread.start()
    report = build(options(tmp_path / "out", targets=(target, "ort_cpu"), simulate=2))
    thread.join()
    assert "SIGKILL" in report.deployments[0].failed
    assert report.deployments[1].failed is None and not report.accepted


def test_no_engine_at_all(options, tmp_path):
    target, _ = failing(tmp_path, "raise RuntimeError('broken')", when=".onnx")
    with pytest.raises(ValueError, match=r"float model does not run on .*broken"):
        build(options(tmp_path / "out", targets=(target,)))


# ------------------------------------------------------------ odd models


def test_dead_channels_and_zero_ranges(tiny, tmp_path):
    proto = onnx.load(tiny.model)
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name in ("w1", "b1"):
            array[3] = 0  # a dead channel
        if tensor.name in ("w2", "b2"):
            array[:] = 0  # a layer of zeros: its output has the range 0..0
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    graph = ir.from_bytes(proto.SerializeToString())
    report = build(
        BuildOptions(
            graph, tiny.data, BOTH, tmp_path / "out", load_card(tiny.card),
            calibrate=20, simulate=10, max_drop=1.0,
        )
    )  # fmt: skip
    assert all(d.failed is None for d in report.deployments)
    assert report.deployments[0].agreement.mismatched == 0


def test_a_fixed_batch(tiny, tmp_path):
    """Images that fill no whole batch are not lost from the score."""
    graph = ir.with_batch(ir.load(tiny.model), 7)
    report = build(
        BuildOptions(
            graph, tiny.data, ("ort_cpu",), tmp_path / "out", load_card(tiny.card),
            calibrate=20, simulate=10, max_drop=1.0,
        )
    )  # fmt: skip
    assert report.deployments[0].score.n == 40 and report.float_score["score"] == 1.0
    assert report.deployments[0].agreement.mismatched == 0
    assert report.deployments[0].latency_ms.batch == 7


def test_two_targets_of_one_name_are_refused(options, tmp_path):
    with pytest.raises(ValueError, match="named twice"):
        options(tmp_path, targets=("ort_cpu", "ort_cpu"))
