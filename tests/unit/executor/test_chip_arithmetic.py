"""Arithmetic of chips without an engine here: held against numpy's integers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelmill import executor
from modelmill.executor.codes import Codes, from_codes, to_logarithm
from modelmill.executor.fake import FakeQuantize
from modelmill.executor.integer import IntegerModule
from modelmill.ir import Plan, Point
from modelmill.numerics import Arithmetic, Encoding, QuantSpec, choose_encoding

POWER = QuantSpec(8, power_of_two=True)
LOG = QuantSpec(8, signed=False, symmetric=True, logarithmic=True)
U16 = QuantSpec(16, signed=False, symmetric=False)
U8 = QuantSpec(8, signed=False, symmetric=False)
RANDOM = np.random.default_rng(0)
CONV = "g (float[N,3,6,6] x) => (float[N,4,6,6] y) { y = Conv<pads=[1,1,1,1]>(x, w, b) }"
W = (RANDOM.normal(size=(4, 3, 3, 3)) * 0.2).astype("f")
B = RANDOM.normal(size=4).astype("f")
X = RANDOM.normal(size=(2, 3, 6, 6)).astype("f")


def power(exponent):
    return Encoding(POWER, np.float32(2.0**exponent), np.int32(0))


def codes_of(graph, plan, arithmetic):
    seen = {}
    IntegerModule(graph, plan, arithmetic)({"x": X}, lambda name, q: seen.update({name: q}))
    return {name: q.numpy() for name, q in seen.items()}


@pytest.mark.parametrize("bias_exponent", [-10, -5])
def test_a_shift_is_an_integer_shift(graph_from_text, bias_exponent):
    """y = (acc + 2^(n-1)) >> n, and an 8-bit bias is brought to the accumulator by its own shift:
    left, or right with rounding.
    """
    graph = graph_from_text(CONV, w=W, b=B)
    x, w, b, y = power(-5), power(-8), power(bias_exponent), power(-4)
    plan = Plan({Point(n): e for n, e in {"x": x, "w": w, "b": b, "y": y}.items()})
    found = codes_of(graph, plan, Arithmetic(requantize="shift", quantize="half_up"))
    qx = np.clip(np.floor(X / x.scale + 0.5), -128, 127).astype(np.int64)
    np.testing.assert_array_equal(found["x"], qx)
    padded = np.pad(qx, [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    acc = np.einsum("nchwij,ocij->nohw", windows, w.quantize(W).astype(np.int64))
    bias = np.rint(b.quantize(B) * 2.0 ** (bias_exponent + 13)).astype(np.int64)
    acc += bias[None, :, None, None]
    n = -4 + 13  # s_y = 2^-4 against s_x s_w = 2^-13
    np.testing.assert_array_equal(found["y"], np.clip((acc + (1 << (n - 1))) >> n, -128, 127))


def test_asymmetric_weights_and_16_bit_activations(graph_from_text):
    graph = graph_from_text(CONV, w=W, b=B)
    x, y = choose_encoding(U16, -3, 3), choose_encoding(U16, -8, 7)
    w = choose_encoding(U8, W.min(), W.max())
    b = Encoding(QuantSpec(32), x.scale * w.scale, np.int32(0))
    plan = Plan({Point(n): e for n, e in {"x": x, "w": w, "b": b, "y": y}.items()})
    found = codes_of(graph, plan, Arithmetic(requantize="multiply"))
    centred = np.pad(x.quantize(X).astype(np.int64) - x.zero_point, [(0, 0)] * 2 + [(1, 1)] * 2)
    windows = np.lib.stride_tricks.sliding_window_view(centred, (3, 3), (2, 3))
    acc = np.einsum("nchwij,ocij->nohw", windows, w.quantize(W).astype(np.int64) - w.zero_point)
    acc += b.quantize(B)[None, :, None, None]
    ratio = np.float32(x.scale * w.scale / y.scale)
    want = np.clip(np.rint(acc.astype("f") * ratio) + y.zero_point, 0, 65535)
    np.testing.assert_array_equal(found["y"], want)


# ------------------------------------------------------------ logarithms


@given(x=hnp.arrays(np.float32, (4, 5), elements=st.floats(-1e4, 1e4, width=32)))
@settings(max_examples=100, deadline=None)
def test_torch_rounds_logarithms_as_numpy(x):
    e = choose_encoding(LOG, -7, 5)
    held = to_logarithm(torch.from_numpy(x), e)
    np.testing.assert_array_equal(held.codes.numpy(), e.quantize(x))
    np.testing.assert_array_equal(held.real.numpy(), e.fake(x))
    np.testing.assert_array_equal(FakeQuantize(e)(torch.from_numpy(x)).numpy(), e.fake(x))


def test_held_codes_keep_the_order_and_come_back():
    e = choose_encoding(LOG, -1, 1)
    codes = torch.arange(256)
    held = from_codes(codes, e)
    np.testing.assert_array_equal(held.codes.numpy(), codes.numpy())
    order = np.argsort(held.centred.numpy())
    assert (np.diff(held.real.numpy()[order]) > 0).all()
    assert Codes(torch.zeros(2), e).real.tolist() == [0, 0]


def test_logarithms_have_a_straight_through_gradient():
    e = choose_encoding(LOG, -1, 1)
    x = torch.tensor([0.3, -0.2, 5.0, -5.0], requires_grad=True)
    FakeQuantize(e)(x).sum().backward()
    assert x.grad.tolist() == [1, 1, 0, 0]


def test_a_net_on_logarithms_is_its_fake_quantization(graph_from_text):
    """There is no integer arithmetic to follow: both modules compute the same real numbers."""
    text = """g (float[N,3,6,6] x) => (float[N,4,3,3] y) {
        c = Conv<pads=[1,1,1,1]>(x, w, b)  r = Relu(c)
        p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)  y = Add(p, p) }"""
    graph = graph_from_text(text, w=W, b=B)
    ends = {"x": 3, "w": 0.6, "r": 4, "p": 4, "y": 8}
    plan = Plan({Point(n): choose_encoding(LOG, -e, e) for n, e in ends.items()})
    simulated = IntegerModule(graph, plan, Arithmetic())({"x": X})["y"]
    faked = executor.Module(graph, plan)({"x": X})["y"].detach()
    np.testing.assert_array_equal(simulated.numpy(), faked.numpy())
