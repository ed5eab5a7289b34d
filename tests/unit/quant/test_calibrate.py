"""Encodings of whole graphs: ties, weights, biases, and that many bits lose nothing."""

import numpy as np
import pytest

from modelmill import executor, ir
from modelmill.ir import Plan, Point
from modelmill.numerics import Encoding, QuantSpec
from modelmill.quant.calibrate import (
    Calibrate,
    activation_names,
    encode_biases,
    leaky_weights,
    weight_encoding,
)
from modelmill.quant.ranges import METHODS

U8 = QuantSpec(8, signed=False, symmetric=False)


def specs(graph, activation=U8, weight=None, bias=None):
    """A plan for all Conv and Gemm nodes and every float value."""
    found = {
        Point(name): activation for name in ir.values(graph) if name not in ir.constants(graph)
    }
    for node in ir.nodes(graph):
        if node.op_type in ("Conv", "Gemm"):
            axis = 0 if node.op_type == "Conv" or ir.attributes(node).get("transB", 0) else 1
            found[Point(node.inputs[1].name)] = weight or QuantSpec(8, axis=axis, narrow=True)
            if bias is not None:
                found[Point(node.inputs[2].name)] = bias
    return Plan(found)


@pytest.mark.parametrize("method", METHODS)
def test_every_point_gets_its_numbers(net, batches, method):
    graph, plan = Calibrate(method)(net, specs(net, bias=QuantSpec(32, axis=0)), batches)
    assert graph is net and all(isinstance(e, Encoding) for e in plan.values())
    encodings = plan.encodings()
    for node in ir.nodes(net):
        if node.op_type in ("Conv", "Gemm"):
            x, w, b = (encodings[Point(v.name)] for v in node.inputs)
            np.testing.assert_array_equal(b.scale, x.scale * w.scale)
            assert not b.zero_point.any() and b.spec.bits == 32


def test_minmax_covers_what_onnx_runtime_computes(net, batches, run):
    _, plan = Calibrate("minmax", "minmax")(net, specs(net), batches)
    for name in ("x", "c1", "s", "y"):
        seen = np.concatenate([run(net, feeds, [name])[name].ravel() for feeds in batches])
        e = plan[Point(name)]
        want = (max(seen.max(), 0) - min(seen.min(), 0)) / 255
        assert float(e.scale) == pytest.approx(want, rel=1e-4)
        assert np.abs(e.fake(seen) - seen).max() <= e.scale
    w = ir.constants(net)["w1"]
    np.testing.assert_allclose(
        plan[Point("w1")].scale, np.abs(w).max(axis=(1, 2, 3)) / 127, rtol=1e-6
    )


def test_ties_share_one_encoding_that_covers_all(net, batches):
    free = specs(net)
    tied = Plan(dict(free), [[Point("c1"), Point("s")]])
    _, apart = Calibrate("minmax")(net, free, batches)
    _, plan = Calibrate("minmax")(net, tied, batches)
    assert plan[Point("c1")] == plan[Point("s")] and apart[Point("c1")] != apart[Point("s")]
    low = min(apart[Point(n)].low for n in ("c1", "s"))
    high = max(apart[Point(n)].high for n in ("c1", "s"))
    assert float(plan[Point("s")].scale) == pytest.approx((high - low) / 255, rel=0.01)
    assert plan[Point("y")] == apart[Point("y")]


def test_of_a_tie_only_its_source_is_observed(graph_from_text):
    """Two ties meet in an Add: what moves is left out, what is computed is not."""
    graph = graph_from_text(
        "g (float[1,2,4,4] x, float[1,2,4,4] z) => (float[1,2,4,4] y) {"
        " a = Transpose<perm=[0,1,3,2]>(x)  b = Transpose<perm=[0,1,3,2]>(z)"
        " c = Add(a, b)  y = Transpose<perm=[0,1,3,2]>(c) }"
    )
    ties = [[Point("x"), Point("a")], [Point("z"), Point("b")], [Point("c"), Point("y")]]
    plan = Plan(dict.fromkeys((p for tie in ties for p in tie), U8), ties)
    assert activation_names(graph, plan) == ["c", "x", "z"]
    x = {n: np.full((1, 2, 4, 4), v, np.float32) for n, v in (("x", 1), ("z", -3))}
    _, plan = Calibrate("minmax")(graph, plan, [x])
    assert plan[Point("y")] == plan[Point("c")] and plan[Point("b")] == plan[Point("z")]


@pytest.mark.parametrize("bits", [4, 7, 8])
def test_mse_weights_are_never_worse_than_minmax(bits):
    rng = np.random.default_rng(0)
    w = rng.standard_t(3, (16, 8, 3, 3)).astype(np.float32)
    spec = QuantSpec(bits, axis=0, narrow=True)
    error = {
        m: ((weight_encoding(w, spec, m).fake(w) - w) ** 2).sum(axis=(1, 2, 3))
        for m in ("minmax", "mse")
    }
    assert (error["mse"] <= error["minmax"]).all()
    if bits == 4:
        assert error["mse"].sum() < 0.9 * error["minmax"].sum()


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_a_dead_channel_and_a_weight_of_zeros(method):
    w = np.ones((3, 2, 1, 1), np.float32)
    w[1] = 0
    encoding = weight_encoding(w, QuantSpec(8, axis=0), method)
    assert encoding.scale[1] == 1 and not encoding.fake(w)[1].any()
    np.testing.assert_allclose(encoding.fake(w)[[0, 2]], 1, rtol=0.01)
    assert weight_encoding(np.zeros((2, 2), "f"), QuantSpec(8), method).scale == 1


def test_weights_over_another_axis():
    """The scales of a transposed weight are those of the weight."""
    w = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    for method in ("minmax", "mse"):
        one = weight_encoding(w, QuantSpec(8, axis=1), method)
        np.testing.assert_array_equal(
            one.scale, weight_encoding(w.T.copy(), QuantSpec(8, axis=0), method).scale
        )


def test_unknown_methods():
    with pytest.raises(ValueError, match="Choices: minmax, mse"):
        weight_encoding(np.ones((2, 2), "f"), QuantSpec(8), "kl")


def test_a_constant_operand_needs_no_data(graph_from_text):
    graph = graph_from_text(
        "g (float[N,2] x) => (float[N,2] y) { y = Add(x, k) }", k=np.array([-1, 3], "f")
    )
    plan = Plan({Point("x"): U8, Point("k"): U8, Point("y"): U8})
    _, found = Calibrate("mse")(graph, plan, [{"x": np.ones((4, 2), "f")}])
    e = found[Point("k")]
    assert float(e.scale) == pytest.approx(4 / 255)
    assert np.abs(e.fake(np.array([-1, 3], "f")) - [-1, 3]).max() <= e.scale / 2 + 1e-6


def test_slopes_of_leaky_relu(net):
    assert leaky_weights(net) == {"c2": pytest.approx(0.01)}


def test_a_bias_that_two_layers_share_has_a_scale_for_each(graph_from_text):
    rng = np.random.default_rng(0)
    graph = graph_from_text(
        "g (float[N,3,4,4] x) => (float[N,3,4,4] y) { c = Conv(x, w1, b)  y = Conv(c, w2, b) }",
        w1=rng.normal(size=(3, 3, 1, 1)).astype("f"), b=np.ones(3, "f"),
        w2=rng.normal(size=(3, 3, 1, 1)).astype("f"),
    )  # fmt: skip
    first, second = ir.nodes(graph)
    bias, weight = QuantSpec(32, axis=0), QuantSpec(8, axis=0)
    points = {Point("b", n.name, 2): bias for n in (first, second)}
    plan = Plan(points | {Point("x"): U8, Point("c"): U8, Point("w1"): weight, Point("w2"): weight})
    _, found = Calibrate()(graph, plan, [{"x": rng.normal(size=(4, 3, 4, 4)).astype("f")}])
    for node, x, w in ((first, "x", "w1"), (second, "c", "w2")):
        got = found[Point("b", node.name, 2)].scale
        np.testing.assert_array_equal(got, found[Point(x)].scale * found[Point(w)].scale)
    assert encode_biases(graph, found) == found or dict(encode_biases(graph, found)) == dict(found)


def test_sixteen_bits_reproduce_the_float_model(net, batches, run):
    """2^16 steps over a range: error / range about 2^-17 a tensor, over a dozen tensors."""
    wide = QuantSpec(16, signed=False, symmetric=False)
    plan = specs(net, wide, None)
    weights = {
        p: QuantSpec(16, axis=plan.spec(p).axis) for p in plan if plan.spec(p).axis is not None
    }
    graph, plan = Calibrate("minmax", "minmax")(net, plan.replace(weights), batches)
    for feeds in batches:
        want = run(net, feeds)["y"]
        got = executor.Module(graph, plan)(feeds)["y"].numpy()
        assert 0 < np.abs(got - want).max() < 1e-3 * np.abs(want).max()
