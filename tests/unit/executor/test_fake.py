"""Fake quantization: numbers as `Encoding.fake`, straight-through gradients, points of a plan."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelmill import ir
from modelmill.executor import Module
from modelmill.executor.fake import FakeQuantize
from modelmill.ir import Plan, Point
from modelmill.numerics import Encoding, QuantSpec

U8 = QuantSpec(signed=False, symmetric=False)
S8 = QuantSpec()
PER_CHANNEL = QuantSpec(axis=0, narrow=True)
BIAS = QuantSpec(bits=32, axis=0)
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((2, 3, 6, 6)).astype("f")
W = RANDOM.standard_normal((4, 3, 3, 3)).astype("f")
B = RANDOM.standard_normal(4).astype("f")
NET = """g (float[N,3,6,6] x) => (float[N,4,6,6] y) {
    c = Conv<pads=[1,1,1,1]>(x, w, b)
    r = Relu(c)
    y = Add(r, c)
}"""


def encoding(spec=U8, scale=0.05, zero_point=0):
    scale = np.asarray(scale, "f")
    return Encoding(spec, scale, np.broadcast_to(np.int32(zero_point), scale.shape))


@pytest.fixture
def graph(graph_from_text):
    return graph_from_text(NET, 20, w=W, b=B)


def consumer(graph, op):
    return next(n.name for n in ir.nodes(graph) if n.op_type == op)


@given(
    x=hnp.arrays(np.float32, (3, 5), elements=st.floats(-1e4, 1e4, width=32)),
    scale=st.floats(2.0**-12, 100, width=32),
    zero_point=st.integers(0, 255),
)
@settings(max_examples=100, deadline=None)
def test_bit_exact_per_tensor(x, scale, zero_point):
    e = encoding(U8, scale, zero_point)
    assert np.array_equal(FakeQuantize(e)(torch.from_numpy(x)).numpy(), e.fake(x))


@pytest.mark.parametrize(
    "spec",
    [
        PER_CHANNEL,
        BIAS,
        QuantSpec(bits=4, axis=1),
        QuantSpec(signed=False, symmetric=False, axis=1),
        QuantSpec(bits=16, signed=False, symmetric=False, axis=2),
    ],
)
def test_bit_exact_per_channel(spec):
    x = (RANDOM.standard_normal((4, 5, 6)) * 50).astype("f")
    count = x.shape[spec.axis]
    scales = RANDOM.uniform(1e-7 if spec.bits == 32 else 0.05, 0.3, count).astype("f")
    zeros = RANDOM.integers(0, 50, count) if not spec.symmetric else spec.fixed_zero_point
    e = Encoding(spec, scales, np.broadcast_to(np.int32(zeros), count))
    made = FakeQuantize(e)
    assert np.array_equal(made(torch.from_numpy(x)).numpy(), e.fake(x))
    assert np.array_equal(made.in_place(torch.from_numpy(x.copy())).numpy(), e.fake(x))


def test_rounds_halves_to_even_and_divides():
    e = encoding(S8, 0.5)
    x = torch.tensor([0.25, 0.75, 1.25, -0.25, -0.75, 100.0, -100.0])
    assert FakeQuantize(e)(x).tolist() == [0.0, 1.0, 1.0, 0.0, -1.0, 63.5, -64.0]


@pytest.mark.parametrize("zero_point", [0, 77, 255])
def test_gradient_is_that_of_torch(zero_point):
    """At a scale that is a power of two, torch's own operator rounds the same."""
    x = torch.linspace(-40, 40, 1001)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = FakeQuantize(encoding(U8, 0.125, zero_point))(mine)
    z = torch.fake_quantize_per_tensor_affine(theirs, 0.125, zero_point, 0, 255)
    assert torch.equal(y, z)
    slope = torch.arange(1001.0)
    (y * slope).sum().backward()
    (z * slope).sum().backward()
    assert torch.equal(mine.grad, theirs.grad)


def test_gradient_per_channel():
    x = torch.tensor([[0.3, 40.0], [0.3, 40.0]], requires_grad=True)
    FakeQuantize(encoding(PER_CHANNEL, [0.1, 1.0]))(x).sum().backward()
    assert x.grad.tolist() == [[1.0, 0.0], [1.0, 1.0]]


def test_simulation_is_what_the_qdq_graph_computes(graph):
    """A plan on a module, and the same plan written as Q and DQ nodes: the same bits."""
    conv, add = consumer(graph, "Conv"), consumer(graph, "Add")
    plan = Plan({
        Point("x"): encoding(U8, 0.031, 128),
        Point("w"): encoding(PER_CHANNEL, np.abs(W).max((1, 2, 3)) / 127),
        Point("b"): encoding(BIAS, 0.031 * np.abs(W).max((1, 2, 3)) / 127),
        Point("c"): encoding(U8, 0.07, 100),
        Point("c", add, 1): encoding(QuantSpec(bits=16), 0.003),
        Point("y"): encoding(U8, 0.11, 60),
    })  # fmt: skip
    assert conv
    graph = ir.at_opset(graph, 21)  # 16-bit codes
    simulated, written = Module(graph, plan), Module(ir.to_qdq(graph, plan))
    for feeds in ({"x": X}, {"x": 3 * X}):
        assert torch.equal(simulated(feeds)["y"], written(feeds)["y"])
        with torch.no_grad():
            assert torch.equal(simulated(feeds)["y"], written(feeds)["y"])


def test_points(graph):
    """A value's point holds for all who read it, a node's own point for that input alone."""
    add, relu = consumer(graph, "Add"), consumer(graph, "Relu")
    raw = Module(graph)({"x": X}, ["c"])["c"]
    coarse, fine = encoding(S8, 0.5), encoding(S8, 0.05)
    plan = Plan({Point("c"): coarse, Point("c", add, 1): fine})
    found = Module(graph, plan)({"x": X}, ["c", "r", "y"])
    half = FakeQuantize(coarse)(raw)
    assert torch.equal(found["c"], half)
    assert torch.equal(found["r"], torch.relu(half))
    assert torch.equal(found["y"], torch.relu(half) + FakeQuantize(fine)(raw))
    assert relu


def test_point_on_a_fed_value(graph):
    c = torch.from_numpy(RANDOM.standard_normal((2, 4, 6, 6)).astype("f"))
    e = encoding(S8, 0.5)
    found = Module(graph, Plan({Point("c"): e}))({"c": c}, ["c", "y"])
    half = FakeQuantize(e)(c)
    assert torch.equal(found["c"], half)
    assert torch.equal(found["y"], torch.relu(half) + half)


def test_weights_are_quantized_once(graph):
    module = Module(graph, Plan({Point("w"): encoding(PER_CHANNEL, [0.01] * 4)}))
    first = module({"x": X}, ["w"])["w"]
    assert module({"x": 2 * X}, ["w"])["w"] is first
    with torch.no_grad():
        module.weights["w"].mul_(0.5)
    changed = module({"x": X}, ["w"])["w"]
    assert torch.equal(changed, module._points[Point("w")](module.weights["w"]))
    assert not torch.equal(changed, first)


def test_gradient_reaches_a_quantized_weight(graph):
    module = Module(graph, Plan({Point("w"): encoding(PER_CHANNEL, [0.01] * 4)}))
    module({"x": X})  # keeps the quantized weight of a run without gradient
    w = module.weights["w"].requires_grad_()
    module({"x": X}, ["c"])["c"].sum().backward()
    inside = (w.detach() / 0.01).round().abs() <= 127
    assert w.grad[inside].abs().min() > 0
    assert not w.grad[~inside].any() and (~inside).any()


def test_points_without_encoding_or_place(graph):
    with pytest.raises(ValueError, match="no encoding yet, the first is c"):
        Module(graph, Plan({Point("c"): S8}))
    for point in (
        Point("nothing"),
        Point("c", "nobody", 0),
        Point("c", consumer(graph, "Conv"), 0),
    ):
        with pytest.raises(ValueError, match="which the graph does not have"):
            Module(graph, Plan({point: encoding()}))


def test_a_bound_is_no_tensor(graph_from_text):
    graph = graph_from_text(
        "g (float[3] x) => (float[3] y) { y = Clip(x, low) }", 20, low=np.float32(0)
    )
    with pytest.raises(ValueError, match="low cannot be quantized"):
        Module(graph, Plan({Point("low"): encoding()}))
