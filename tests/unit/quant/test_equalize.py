"""Equalisation is algebra: the output of the float network stays, the ranges become equal."""

import numpy as np
import pytest

from modelmill import ir
from modelmill.ir import Plan
from modelmill.quant.equalize import Equalize, find_pairs

MODES = ("weights", "activations")


def channel_ranges(graph, name, axis):
    w = np.abs(ir.constants(graph)[name])
    return np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1).max(axis=1)


@pytest.mark.parametrize("by", MODES)
def test_the_float_output_stays(net, batches, run, by):
    """Every weight is rounded to float32 once, and sums run in another magnitude."""
    made, plan = Equalize(by=by)(net, Plan(), batches)
    assert dict(plan) == {} and len(find_pairs(net)) == 3
    moved = [n for n, w in ir.constants(net).items() if not np.array_equal(w, weight(made, n))]
    assert {"w1", "w2", "w3", "w5", "w6"} <= set(moved)
    for feeds in batches:
        want, got = run(net, feeds)["y"], run(made, feeds)["y"]
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def weight(graph, name):
    """By the place it is read at: an edited constant may have a new name."""
    return ir.constants(graph).get(name, np.zeros(0))


def test_the_paper(graph_from_text):
    """After a sweep |W1[c]| = |W2[:, c]| = sqrt(r1 r2) for every channel (eq. 11 of the paper)."""
    rng = np.random.default_rng(0)
    w1 = (rng.normal(size=(6, 3, 3, 3)) * np.logspace(-2, 1, 6).reshape(6, 1, 1, 1)).astype("f")
    w2 = rng.normal(size=(4, 6, 3, 3)).astype("f")
    graph = graph_from_text(
        "g (float[N,3,9,9] x) => (float[N,4,5,5] y) { c = Conv(x, w1, b) r = Relu(c)"
        " y = Conv(r, w2) }",
        w1=w1, b=np.ones(6, "f"), w2=w2,
    )  # fmt: skip
    r1, r2 = channel_ranges(graph, "w1", 0), channel_ranges(graph, "w2", 1)
    made, _ = Equalize(by="weights")(graph, Plan(), [])
    first, second = ir.nodes(made)[0], ir.nodes(made)[2]
    one, two, bias = (ir.constant(v) for v in (first.inputs[1], second.inputs[1], first.inputs[2]))
    balanced = np.sqrt(r1 * r2)
    np.testing.assert_allclose(np.abs(one).max(axis=(1, 2, 3)), balanced, rtol=1e-5)
    np.testing.assert_allclose(np.abs(two).max(axis=(0, 2, 3)), balanced, rtol=1e-5)
    np.testing.assert_allclose(bias, np.sqrt(r2 / r1), rtol=1e-5)  # b / s with b = 1


def test_activations_before_a_depthwise_layer_get_one_range(graph_from_text, run):
    rng = np.random.default_rng(0)
    w1 = (rng.normal(size=(6, 3, 1, 1)) * np.logspace(-2, 1, 6).reshape(6, 1, 1, 1)).astype("f")
    graph = graph_from_text(
        "g (float[N,3,9,9] x) => (float[N,6,7,7] y) { c = Conv(x, w1, b) r = Relu(c)"
        " y = Conv<group=6>(r, w2) }",
        w1=w1, b=np.zeros(6, "f"), w2=rng.normal(size=(6, 1, 3, 3)).astype("f"),
    )  # fmt: skip
    feeds = {"x": rng.normal(size=(4, 3, 9, 9)).astype("f")}
    reach = run(graph, feeds, ["r"])["r"].max(axis=(0, 2, 3))
    assert reach.max() / reach.min() > 100
    made, _ = Equalize()(graph, Plan(), [feeds])
    after = run(made, feeds, ["r"])["r"].max(axis=(0, 2, 3))
    np.testing.assert_allclose(after, after[0], rtol=1e-5)


@pytest.mark.parametrize("by", MODES)
def test_equal_channels_are_left_alone(graph_from_text, by):
    """All channels alike: s = 1 and every bit stays."""
    graph = graph_from_text(
        "g (float[N,3,4,4] x) => (float[N,4,4,4] y) { c = Conv(x, w1, b) y = Conv(c, w2) }",
        w1=np.full((6, 3, 1, 1), 0.5, "f"), b=np.zeros(6, "f"), w2=np.full((4, 6, 1, 1), 0.5, "f"),
    )  # fmt: skip
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype("f")}
    made, _ = Equalize(by=by)(graph, Plan(), [feeds])
    for a, b in zip(ir.nodes(graph), ir.nodes(made), strict=True):
        np.testing.assert_array_equal(ir.constant(a.inputs[1]), ir.constant(b.inputs[1]))


@pytest.mark.parametrize("by", MODES)
@pytest.mark.parametrize("side", ["w1", "w2"])
def test_a_dead_channel_is_left_alone(graph_from_text, by, side, run):
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(size=(6, 3, 1, 1)).astype("f"), "b": rng.normal(size=6).astype("f"),
        "w2": rng.normal(size=(4, 6, 1, 1)).astype("f"),
    }  # fmt: skip
    if side == "w1":
        weights["w1"][2], weights["b"][2] = 0, 0
    else:
        weights["w2"][:, 2] = 0
    graph = graph_from_text(
        "g (float[N,3,4,4] x) => (float[N,4,4,4] y) { c = Conv(x, w1, b) r = Relu(c)"
        " y = Conv(r, w2) }",
        **weights,
    )
    feeds = {"x": rng.normal(size=(2, 3, 4, 4)).astype("f")}
    made, _ = Equalize(by=by)(graph, Plan(), [feeds])
    first, _, second = ir.nodes(made)
    for value in (first.inputs[1], first.inputs[2], second.inputs[1]):
        assert np.isfinite(ir.constant(value)).all()
    scale = np.abs(ir.constant(first.inputs[1]))[2] / np.maximum(np.abs(weights["w1"])[2], 1e-30)
    if by == "weights" and side == "w2":
        np.testing.assert_array_equal(scale, 1)
    want, got = run(graph, feeds)["y"], run(made, feeds)["y"]
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


W = {"w1": (6, 3, 1, 1), "w2": (6, 6, 1, 1)}
REFUSED = {
    "branch": "c = Conv(x, w1)  r = Relu(c)  d = Conv(r, w2)  y = Add(d, r)",
    "branch before the activation": "c = Conv(x, w1)  r = Relu(c)  d = Conv(r, w2)  y = Add(d, c)",
    "bounded activation": "c = Conv(x, w1)  r = Sigmoid(c)  y = Conv(r, w2)",
    "clip": "c = Conv(x, w1)  r = Clip(c, low, high)  y = Conv(r, w2)",
    "shared weight": "c = Conv(x, w1)  r = Relu(c)  d = Conv(r, w2)  e = Relu(d)  y = Conv(e, w2)",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_pair(graph_from_text, name):
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(size=s).astype("f") for n, s in W.items()}
    if "Clip" in REFUSED[name]:
        weights |= {"low": np.float32(0), "high": np.float32(6)}
    text = f"g (float[N,3,4,4] x) => (float[N,6,4,4] y) {{ {REFUSED[name]} }}"
    assert find_pairs(graph_from_text(text, **weights)) == []


def test_a_graph_output_between_is_no_pair(graph_from_text):
    rng = np.random.default_rng(0)
    graph = graph_from_text(
        "g (float[N,3,4,4] x) => (float[N,6,4,4] y, float[N,6,4,4] c)"
        " { c = Conv(x, w1)  y = Conv(c, w2) }",
        **{n: rng.normal(size=s).astype("f") for n, s in W.items()},
    )
    assert find_pairs(graph) == []


def test_a_weight_computed_at_run_time_is_no_pair(graph_from_text):
    rng = np.random.default_rng(0)
    graph = graph_from_text(
        "g (float[N,3,4,4] x, float[6,6,1,1] w2) => (float[N,6,4,4] y)"
        " { c = Conv(x, w1)  y = Conv(c, w2) }",
        w1=rng.normal(size=W["w1"]).astype("f"),
    )
    assert find_pairs(graph) == []


def test_unknown_way():
    with pytest.raises(ValueError, match="Choices: activations, weights"):
        Equalize(by="luck")
