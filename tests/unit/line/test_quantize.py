"""`quantize` in memory: one model, one target, and what it says of itself."""

import numpy as np
import pytest

import modelmill
from modelmill import ir
from modelmill.line.quantize import (
    DEFAULT,
    Recipe,
    Where,
    default_recipe,
    load_target,
    prepare_graph,
    quantize,
    quantize_all,
)

ort = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(0, 1.2, (16, 1, 8, 8)).astype(np.float32)} for _ in range(2)]


def run(graph, feeds):
    session = ort.InferenceSession(ir.to_bytes(graph), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("target", ["ort_cpu", "openvino_cpu"])
def test_from_a_file(tiny, batches, target):
    made = modelmill.quantize(tiny.model, batches, target=target)
    artifact = made.to_qdq()
    assert {n.op_type for n in ir.nodes(artifact)} >= {"QuantizeLinear", "DequantizeLinear"}
    want, got = run(ir.load(tiny.model), batches[0]), run(artifact, batches[0])
    assert 10 * np.log10((want**2).sum() / ((want - got) ** 2).sum()) > 25
    np.testing.assert_allclose(made.simulate()(batches[0])["y"], got, atol=0.05)
    assert made.seconds > 0 and made.protected == ()


def test_the_same_bytes_again(tiny, batches):
    one, two = (ir.to_bytes(quantize(tiny.model, batches).to_qdq()) for _ in range(2))
    assert one == two


def test_the_graph_given_is_untouched(tiny, batches):
    graph = ir.load(tiny.model)
    before = ir.to_bytes(graph)
    quantize(graph, batches)
    assert ir.to_bytes(graph) == before


def test_flags_of_another_machine(tiny, batches):
    made = quantize(tiny.model, batches, flags=["avx2"])
    weights = [s.bits for s in map(made.plan.spec, made.plan) if s.axis == 0 and s.bits < 32]
    assert weights == [7, 7, 7] and "7 bits" in made.planned.notes[0]


def test_quality_is_the_sqnr_of_the_engine_codes(tiny, batches):
    """Of the input: what rounding by numpy gives."""
    made = quantize(tiny.model, batches)
    quality = {q.value: q for q in made.quality}
    assert list(quality) == ["x", "r1", "c2", "r2", "p", "f"]
    x = batches[0]["x"].astype(np.float64)
    error = made.plan[ir.Point("x")].fake(batches[0]["x"]) - x
    db = 10 * np.log10((x**2).sum() / (error**2).sum())
    assert quality["x"].sqnr_db == pytest.approx(db, abs=0.5)  # of the first few images
    assert quality["r1"].op == "Relu" and quality["x"].op == "input"


def test_dead_channels_and_a_layer_of_zeros(graph_from_text, batches):
    rng = np.random.default_rng(0)
    w1 = rng.normal(size=(8, 1, 3, 3)).astype("f")
    w1[3] = 0
    graph = graph_from_text(
        """g (float[N,1,8,8] x) => (float[N,4] y) {
          c = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(c)
          d = Conv(r, w2, b2)  s = Relu(d)  p = GlobalAveragePool(s)  f = Flatten(p)
          y = Gemm<transB=1>(f, w3, b3)
        }""",
        w1=w1, b1=np.where(np.arange(8) == 3, 0, rng.normal(size=8)).astype("f"),
        w2=np.zeros((8, 8, 3, 3), "f"), b2=np.zeros(8, "f"),
        w3=rng.normal(size=(4, 8)).astype("f"), b3=np.arange(4).astype("f"),
    )  # fmt: skip
    for target in ("ort_cpu", "openvino_cpu"):
        made = quantize(graph, batches, target)
        for encoding in made.plan.encodings().values():
            assert np.isfinite(encoding.scale).all() and (encoding.scale > 0).all()
        got = run(made.to_qdq(), batches[0])
        np.testing.assert_allclose(got, np.tile(np.arange(4), (16, 1)), atol=0.02)


def test_data_of_zeros(tiny, batches):
    made = quantize(tiny.model, [{"x": np.zeros((4, 1, 8, 8), np.float32)}])
    assert made.plan[ir.Point("x")].scale == 1
    assert np.isfinite(run(made.to_qdq(), batches[0])).all()


def test_nan_in_the_data_names_the_value(tiny):
    with pytest.raises(ValueError, match="'x' holds NaN or infinity"):
        quantize(tiny.model, [{"x": np.full((1, 1, 8, 8), np.nan, np.float32)}])


def test_nothing_to_quantize(graph_from_text):
    graph = graph_from_text("g (float[N,2] x) => (float[N,2] y) { y = Sigmoid(x) }")
    with pytest.raises(ValueError, match=r"quantizes nothing.*modelmill check"):
        quantize(graph, [{"x": np.ones((1, 2), np.float32)}])


def test_unknown_things(tiny, batches, tmp_path):
    with pytest.raises(ValueError, match="Choices"):
        quantize(tiny.model, batches, target="tpu")
    with pytest.raises(ValueError, match="Choices: w8a8"):
        quantize(tiny.model, batches, precision="w8a16")
    with pytest.raises(ValueError, match="weights have 2 to 8 bits"):
        quantize(tiny.model, batches, precision="w1a1")
    (tmp_path / "odd.py").write_text("PLUGIN = 3")
    with pytest.raises(ValueError, match="is a int, not a Target"):
        load_target(str(tmp_path / "odd.py"))
    graph = prepare_graph(ir.load(tiny.model))
    near = ir.nodes(graph)[0].name
    with pytest.raises(ValueError, match=f"no node '{near}x'; nearest: .*{near}"):
        Where(keep_float=frozenset([f"{near}x"])).plan(graph, load_target("ort_cpu"))


def test_two_targets_share_one_pass_over_the_data(tiny):
    rng, passes = np.random.default_rng(0), []

    class Counted:
        def __iter__(self):
            passes.append(1)
            yield {"x": rng.normal(size=(4, 1, 8, 8)).astype(np.float32)}

    recipe = Recipe(equalize=None, bias_correction=None, protect=None)
    graph = prepare_graph(ir.load(tiny.model))
    chosen = {n: load_target(n) for n in ("ort_cpu", "openvino_cpu")}
    found = quantize_all(graph, chosen, Where(), Counted(), recipe)
    assert list(found) == list(chosen)
    assert len(passes) == 1 + 2  # observed once; each target looks at the first batch for its log


def test_recipes():
    assert default_recipe("classification") == DEFAULT
    assert default_recipe("detection").protect.threshold_db < DEFAULT.protect.threshold_db


def test_prepared_graphs_have_biases_and_the_opset(graph_from_text):
    w = np.ones((2, 2, 1, 1), np.float32)
    text = "g (float[N,2,2,2] x) => (float[N,2,2,2] y) { y = Conv(x, w) }"
    graph = prepare_graph(graph_from_text(text, 11, w=w))
    assert ir.opset(graph) == 13 and len(ir.nodes(graph)[0].inputs) == 3
    assert ir.opset(prepare_graph(graph_from_text(text, 19, w=w))) == 19
