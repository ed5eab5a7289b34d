"""Who is faster: real engines, models whose order is beyond doubt."""

import json

import numpy as np
import pytest

from modelmill import ir
from modelmill.line.bench import bench
from modelmill.records import Database, Latencies

pytestmark = pytest.mark.usefixtures("quick")

CONV = """g (float[N,3,S,S] {name}) => (float[N,16,S,S] y) {{
    y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>({name}, w)
}}"""


@pytest.fixture(scope="module")
def conv(graph_from_text):
    """conv(side, name of the input) -> a graph of one convolution."""

    def make(side, name="x"):
        text = CONV.format(name=name).replace("S", str(side))
        w = np.random.default_rng(0).normal(0, 1, (16, 3, 3, 3)).astype(np.float32)
        graph = graph_from_text(text, w=w)
        graph.graph.name = f"conv{side}"
        return graph

    return make


@pytest.mark.parametrize("target", ["ort_cpu", "openvino_cpu"])
def test_forty_times_the_work_is_slower(conv, target):
    found = bench([conv(16), conv(112, "picture")], target)
    small, large = found.rows
    assert small.speedup is None and small.against is None
    assert large.against == small.name and large.same_engine
    assert large.speedup.verdict == "slower" and large.regressed and not found.accepted
    assert large.latency.p50_ms > small.latency.p50_ms


def test_the_other_way_round_it_is_accepted(conv):
    found = bench([conv(112), conv(16)], "ort_cpu")
    assert found.rows[1].speedup.verdict == "faster" and found.accepted


def test_two_engines_of_one_model_regress_nothing(conv):
    found = bench(conv(16), ["ort_cpu", "openvino_cpu"], threads=2, batch=4)
    first, second = found.rows
    assert (first.runtime, second.runtime) == ("onnxruntime", "openvino")
    assert second.against == first.name and not second.same_engine and found.accepted
    assert found.batch == 4 and first.latency.threads == 2


def test_the_same_model_twice_keeps_its_names_apart(conv):
    found = bench([conv(16), conv(16)], runtimes="onnxruntime")
    assert [r.model for r in found.rows] == ["conv16", "conv16 (2)"]


def test_two_targets_of_one_engine_are_one(conv):
    assert len(bench(conv(16), "ort_cpu", runtimes="onnxruntime").rows) == 1


def test_fed_with_the_first_image(tiny):
    found = bench(tiny.model, "ort_cpu", data=tiny.data)
    assert "first image" in found.fed
    assert "random" in bench(tiny.model, "ort_cpu").fed


def test_raw_samples_are_kept(tiny):
    row = json.loads(json.dumps(bench(tiny.model, "ort_cpu").to_json()))["rows"][0]
    samples = [ms for block in row["latency_ms"]["samples"] for ms in block]
    assert len(samples) == row["latency_ms"]["n"]
    assert row["latency_ms"]["p50"] == pytest.approx(np.median(samples))


def test_open_sizes_come_from_the_card(graph_from_text, tiny):
    text = "g (float[N,1,H,W] x) => (float[N,1,H,W] y) { y = Relu(x) }"
    with pytest.raises(ValueError, match="card"):
        bench(graph_from_text(text), "ort_cpu")
    found = bench(graph_from_text(text), "ort_cpu", card=tiny.card)
    assert found.rows[0].latency.n > 0


def test_integer_inputs_are_fed_with_zeros(graph_from_text):
    graph = graph_from_text(
        "g (int64[N,2] i) => (float[N,2,3] y) { y = Gather(w, i) }",
        w=np.ones((5, 3), np.float32),
    )
    assert bench(graph, "ort_cpu").rows[0].latency.n > 0


def test_different_fixed_batches_are_refused(graph_from_text):
    graphs = [
        graph_from_text(f"g (float[{n},3] x) => (float[{n},3] y) {{ y = Relu(x) }}") for n in (2, 3)
    ]
    with pytest.raises(ValueError, match="different batches"):
        bench(graphs, "ort_cpu")


def test_nothing_to_do(tiny):
    with pytest.raises(ValueError, match="nothing to measure"):
        bench(tiny.model)
    with pytest.raises(ValueError, match="nothing to measure"):
        bench([], "ort_cpu")


def test_what_is_measured_is_kept(conv, tmp_path):
    db = tmp_path / "mine.db"
    graph = conv(16)
    found = bench([graph, conv(24)], ["ort_cpu", "openvino_cpu"], batch=2, db=str(db))
    assert found.database == str(db)
    there = Latencies(Database(db))
    assert there.count() == 4
    (kept,) = there.find(ir.structure(graph), there.platforms("openvino_cpu"))
    row = next(r for r in found.rows if (r.model, r.runtime) == ("conv16", "openvino"))
    assert (kept.p50_ms, kept.n, kept.noise) == (
        row.latency.p50_ms,
        row.latency.n,
        row.latency.noise,
    )
    assert kept.platform.name == "openvino_cpu float, batch 2"
    assert kept.platform.version == row.version
    assert {m.name for m in there.models()} == {"conv16", "conv24"}
    assert bench(graph, runtimes="onnxruntime", db=str(db)).rows[0].latency.batch == 1
    (own,) = there.platforms("onnxruntime")  # no target was named
    assert own.batch == 1


def test_nothing_is_kept_unless_asked(conv, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELMILL_DB", str(tmp_path / "mine.db"))
    assert bench(conv(16), "ort_cpu").database is None
    assert not (tmp_path / "mine.db").exists()


def test_a_file_with_codes_says_so(tmp_path, demo_build):
    db = tmp_path / "mine.db"
    bench([str(demo_build / "artifacts/ort_cpu.onnx")], "ort_cpu", db=str(db))
    assert [p.name for p in Latencies(Database(db)).platforms()] == ["ort_cpu qdq"]


def test_a_database_that_is_none_is_told_before_measuring(conv, tmp_path):
    wrong = tmp_path / "wrong.db"
    wrong.write_text("none" * 1000)
    with pytest.raises(ValueError, match="is not an SQLite database"):
        bench(conv(16), "ort_cpu", db=str(wrong))
