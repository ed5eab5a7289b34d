"""Bias correction: the mean output error per channel shrinks."""

import numpy as np
import pytest

from modelmill import executor, ir
from modelmill.ir import Plan, Point
from modelmill.numerics import QuantSpec, choose_encoding
from modelmill.quant.bias_correction import BiasCorrection
from modelmill.quant.calibrate import Calibrate

U8 = QuantSpec(8, signed=False, symmetric=False)


@pytest.fixture
def coarse(graph_from_text):
    """Two convolutions with 3-bit weights, whose rounding moves means, and positive inputs."""
    rng = np.random.default_rng(0)
    graph = graph_from_text(
        """g (float[N,4,6,6] x) => (float[N,5,6,6] y) {
          c = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(c)  y = Conv(r, w2, b2)
        }""",
        w1=rng.normal(size=(6, 4, 3, 3)).astype("f"), b1=rng.normal(size=6).astype("f"),
        w2=rng.normal(size=(5, 6, 1, 1)).astype("f"), b2=rng.normal(size=5).astype("f"),
    )  # fmt: skip
    plan = Plan({Point(n): QuantSpec(3, axis=0) for n in ("w1", "w2")} | {Point("r"): U8})
    batches = [{"x": rng.uniform(0, 2, (16, 4, 6, 6)).astype("f")} for _ in range(4)]
    return (*Calibrate("minmax", "minmax")(graph, plan, batches), batches)


def mean_error(reference, graph, plan, batches, name):
    """Per channel, over all batches."""
    float_module, module = executor.Module(reference), executor.Module(graph, plan)
    pairs = [(float_module(f, [name])[name], module(f, [name])[name]) for f in batches]
    return np.mean([(b - a).mean(dim=(0, 2, 3)).detach().numpy() for a, b in pairs], axis=0)


def test_the_mean_error_of_every_layer_vanishes(coarse):
    graph, plan, batches = coarse
    made, corrected = BiasCorrection(images=64)(graph, plan, batches)
    for name in ("c", "y"):
        before = np.abs(mean_error(graph, graph, plan, batches, name))
        after = np.abs(mean_error(graph, made, corrected, batches, name))
        assert before.max() > 0.1
        assert after.max() < 0.02 * before.max()


def test_a_planted_shift_is_found(graph_from_text):
    """A 1x1 convolution whose weight is quantized to twice its size: b += -E[x]."""
    graph = graph_from_text(
        "g (float[N,1,4,4] x) => (float[N,1,4,4] y) { y = Conv(x, w, b) }",
        w=np.ones((1, 1, 1, 1), "f"), b=np.zeros(1, "f"),
    )  # fmt: skip
    plan = Plan({Point("w"): choose_encoding(QuantSpec(2, axis=0, narrow=True), [-2.0], [2.0])})
    # codes -1, 0, 1 with scale 2: round(1 / 2) = 0, half to even: the layer gives 0
    x = np.random.default_rng(0).uniform(1, 3, (8, 1, 4, 4)).astype("f")
    made, _ = BiasCorrection()(graph, plan, [{"x": x}])
    assert ir.constant(ir.nodes(made)[0].inputs[2])[0] == pytest.approx(x.mean(), rel=1e-5)


def test_no_more_images_than_asked(coarse):
    graph, plan, batches = coarse
    drawn = []

    def stream():
        for feeds in batches:
            drawn.append(1)
            yield feeds

    BiasCorrection(images=17)(graph, plan, stream())
    assert len(drawn) == 2


def test_layers_without_quantized_weights_are_left_alone(coarse):
    graph, plan, batches = coarse
    made, _ = BiasCorrection()(graph, plan.without({Point("w2")}), batches)
    biases = [ir.constant(n.inputs[2]) for n in ir.nodes(made) if n.op_type == "Conv"]
    np.testing.assert_array_equal(biases[1], ir.constants(graph)["b2"])
    assert not np.array_equal(biases[0], ir.constants(graph)["b1"])


def test_integer_biases_follow(coarse):
    """An int32 bias in the plan keeps scale s_x s_w."""
    graph, plan, batches = coarse
    _, found = BiasCorrection()(
        graph,
        Calibrate()(
            graph, plan.replace({Point("x"): U8, Point("b1"): QuantSpec(32, axis=0)}), batches
        )[1],
        batches,
    )
    np.testing.assert_array_equal(
        found[Point("b1")].scale, found[Point("x")].scale * found[Point("w1")].scale
    )
