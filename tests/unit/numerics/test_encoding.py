"""Codes against ONNX Runtime's QuantizeLinear and DequantizeLinear; scales and zero points by
algebra."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from modelmill.numerics import Encoding, QuantSpec, choose_encoding
from modelmill.numerics.encoding import SMALLEST_SCALE

U8 = QuantSpec(8, signed=False, symmetric=False)
S8 = QuantSpec(8)
KINDS = {
    np.dtype("uint8"): TensorProto.UINT8, np.dtype("int8"): TensorProto.INT8,
    np.dtype("uint16"): TensorProto.UINT16, np.dtype("int16"): TensorProto.INT16,
}  # fmt: skip


@pytest.fixture(scope="module")
def onnx_linear():
    """(x, encoding) -> (codes, real numbers) of ONNX Runtime."""
    ort = pytest.importorskip("onnxruntime")

    def run(x, encoding):
        kind = KINDS[encoding.spec.storage]
        axis = {} if encoding.spec.axis is None else {"axis": encoding.spec.axis}
        scales = list(encoding.scale.shape)
        model = helper.make_model(
            helper.make_graph(
                [
                    helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **axis),
                    helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **axis),
                ],
                "g",
                [
                    helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape)),
                    helper.make_tensor_value_info("s", TensorProto.FLOAT, scales),
                    helper.make_tensor_value_info("z", kind, scales),
                ],
                [
                    helper.make_tensor_value_info("q", kind, list(x.shape)),
                    helper.make_tensor_value_info("y", TensorProto.FLOAT, list(x.shape)),
                ],
            ),
            opset_imports=[helper.make_opsetid("", 21)],
            ir_version=10,
        )
        session = ort.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        zero_point = encoding.zero_point.astype(encoding.spec.storage)
        return session.run(["q", "y"], {"x": x, "s": encoding.scale, "z": zero_point})

    return run


@pytest.mark.parametrize(
    "spec",
    [
        U8, S8, QuantSpec(8, signed=True, symmetric=False), QuantSpec(8, signed=False),
        QuantSpec(8, axis=1), QuantSpec(8, signed=False, symmetric=False, axis=0),
        QuantSpec(16, signed=False, symmetric=False), QuantSpec(16),
    ],
    ids=str,
)  # fmt: skip
def test_as_onnx_runtime(onnx_linear, spec):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1.5, (5, 4, 100)).astype(np.float32)
    ends = (-2.1, 3.3) if spec.axis is None else (rng.uniform(-3, 0, 5 - spec.axis), 2.0)
    low, high = np.broadcast_arrays(*ends)
    encoding = choose_encoding(spec, low, high)
    codes, real = onnx_linear(x, encoding)
    mine = encoding.quantize(x)
    assert mine.dtype == codes.dtype
    np.testing.assert_array_equal(mine, codes)
    np.testing.assert_array_equal(encoding.dequantize(mine), real)
    np.testing.assert_array_equal(encoding.fake(x), real)


@pytest.mark.parametrize("zero_point", [0, 7, 128, 255])
def test_ties_go_to_the_even_code(onnx_linear, zero_point):
    """Scale 1/4: every tie is exact in float32. The rounding is before the zero point is added."""
    encoding = Encoding(U8, np.float32(0.25), np.int32(zero_point))
    x = (np.arange(-600, 600).astype(np.float32) + np.float32(0.5)) / 4
    codes, _ = onnx_linear(x, encoding)
    np.testing.assert_array_equal(encoding.quantize(x), codes)
    assert encoding.quantize(np.float32([0.125]))[0] == min(zero_point, 255)  # 0.5 -> 0


def test_division_is_not_multiplication_by_the_reciprocal(onnx_linear):
    """Near ties the two differ; ONNX divides."""
    encoding = Encoding(U8, np.float32(0.1), np.int32(0))
    x = ((np.arange(255) + 0.5) * np.float32(0.1)).astype(np.float32)
    wide = (x.view(np.int32)[:, None] + np.arange(-3, 4, dtype=np.int32)).view(np.float32)
    reciprocal = np.rint(wide * (np.float32(1) / encoding.scale))
    assert (encoding.quantize(wide) != reciprocal).any()
    np.testing.assert_array_equal(encoding.quantize(wide), onnx_linear(wide, encoding)[0])


def test_saturation():
    encoding = choose_encoding(QuantSpec(7, narrow=True), -1, 1)
    np.testing.assert_array_equal(encoding.quantize(np.float32([-9, 9, 0])), [-63, 63, 0])
    assert encoding.quantize(np.zeros(1, np.float32)).dtype == np.int8
    assert encoding.low == -encoding.high == pytest.approx(-1)


def test_a_bias_of_32_bits_keeps_every_code():
    encoding = Encoding(QuantSpec(32, axis=0), np.float32([1, 0.5]), np.zeros(2, np.int32))
    real = np.array([2.0**24 + 1, -(2.0**30) - 0.5])  # float32 could not tell 2^24 + 1 from 2^24
    np.testing.assert_array_equal(encoding.quantize(real), [2**24 + 1, -(2**31)])


# ------------------------------------------------------------ choosing numbers

reach = st.floats(2.0**-13, 2.0**20, width=32)
ends = st.tuples(st.one_of(st.just(0.0), reach.map(lambda v: -v)), st.one_of(st.just(0.0), reach))
specs = st.builds(
    QuantSpec,
    bits=st.sampled_from([4, 7, 8, 16]),
    signed=st.booleans(),
    symmetric=st.booleans(),
    narrow=st.booleans(),
)


@given(specs, ends)
@settings(max_examples=200, deadline=None)
def test_zero_is_exact_and_the_range_is_covered(spec, ends):
    low, high = ends
    if spec.symmetric and not spec.signed:
        low = 0.0 if spec.narrow else low
    encoding = choose_encoding(spec, low, high)
    assert encoding.fake(np.zeros(3, np.float32)).tolist() == [0, 0, 0]
    assert spec.qmin <= encoding.zero_point <= spec.qmax
    slack = 4 * np.finfo(np.float32).eps * max(-low, high)  # of float32 itself, at 16 bits
    half = 0.5 * float(encoding.scale) + slack
    assert encoding.low <= low + half and encoding.high >= high - half
    inside = np.linspace(low, high, 101).astype(np.float32)
    error = np.abs(encoding.fake(inside).astype(np.float64) - inside)
    assert error.max() <= float(encoding.scale) + slack


@given(specs, ends, st.integers(-8, 8))
@settings(max_examples=100, deadline=None)
def test_a_power_of_two_moves_into_the_scale(spec, ends, k):
    low, high = ends
    if low == high == 0:
        return
    one, other = choose_encoding(spec, low, high), choose_encoding(spec, low * 2**k, high * 2**k)
    assert other.scale == one.scale * np.float32(2.0**k)
    assert other.zero_point == one.zero_point
    x = np.linspace(low, high, 50).astype(np.float32)
    np.testing.assert_array_equal(one.quantize(x), other.quantize(x * np.float32(2.0**k)))


@given(ends)
@settings(max_examples=100, deadline=None)
def test_a_narrow_symmetric_code_is_odd(ends):
    """quantize(-x) = -quantize(x), and the zero point is 0."""
    encoding = choose_encoding(QuantSpec(8, narrow=True), *ends)
    x = np.linspace(-2, 2, 77).astype(np.float32) * np.float32(max(-ends[0], ends[1]))
    assert encoding.zero_point == 0
    np.testing.assert_array_equal(encoding.quantize(-x), -encoding.quantize(x))


def test_the_wider_side_decides_a_symmetric_scale():
    """-128..127: 128 steps below zero, 127 above."""
    assert choose_encoding(S8, -128, 1).scale == 1
    assert choose_encoding(S8, -1, 127).scale == 1
    assert choose_encoding(QuantSpec(8, narrow=True), -127, 0).scale == 1
    assert choose_encoding(QuantSpec(8, signed=False), -128, 127).scale == 1
    assert choose_encoding(QuantSpec(8, signed=False), -128, 127).zero_point == 128


def test_a_range_is_widened_to_zero():
    encoding = choose_encoding(U8, 2.0, 5.1)
    assert encoding.zero_point == 0 and encoding.scale == pytest.approx(5.1 / 255)
    encoding = choose_encoding(U8, -5.1, -2.0)
    assert encoding.zero_point == 255 and encoding.low == pytest.approx(-5.1)


def test_a_dead_channel_has_scale_one():
    encoding = choose_encoding(QuantSpec(8, axis=0), np.float32([0, -2]), np.float32([0, 2]))
    np.testing.assert_allclose(encoding.scale, [1, 2 / 127])
    assert not encoding.fake(np.zeros((2, 4), np.float32)).any()
    assert choose_encoding(U8, 0, 0).scale == 1


def test_a_tiny_range_gets_the_smallest_scale():
    """A denormal scale would overflow x / scale."""
    encoding = choose_encoding(U8, 0, 1e-40)
    assert encoding.scale == SMALLEST_SCALE
    assert encoding.quantize(np.float32([0, 1e6])).tolist() == [0, 255]


@pytest.mark.parametrize("low,high", [(np.nan, 1), (0, np.nan), (-np.inf, 1), (0, np.inf)])
def test_a_range_that_is_no_range(low, high):
    with pytest.raises(ValueError, match="NaN or infinite"):
        choose_encoding(U8, low, high)
    with pytest.raises(ValueError, match="NaN or infinite"):
        choose_encoding(QuantSpec(8, axis=0), [0, low], [1, high])


@pytest.mark.parametrize("scale", [0, -1, np.nan, np.inf])
def test_a_scale_is_positive_and_finite(scale):
    with pytest.raises(ValueError, match="positive and finite"):
        Encoding(S8, np.float32(scale), np.int32(0))


def test_shapes_and_zero_points_are_checked():
    with pytest.raises(ValueError, match=r"shape \(2,\) does not fit int8"):
        Encoding(S8, np.ones(2, np.float32), np.int32(0))
    with pytest.raises(ValueError, match=r"shape \(\) does not fit"):
        Encoding(QuantSpec(8, axis=0), np.float32(1), np.int32(0))
    with pytest.raises(ValueError, match=r"outside \[0, 255\]"):
        Encoding(U8, np.float32(1), np.int32(256))


def test_an_encoding_is_a_value():
    a, b = (choose_encoding(QuantSpec(8, axis=0), [-1, -2], [1, 2]) for _ in range(2))
    assert a == b and hash(a) == hash(b) and a is not b
    assert a != choose_encoding(QuantSpec(8, axis=0), [-1, -2], [1, 3]) and a != "a"
    with pytest.raises(ValueError, match="read-only"):
        a.scale[0] = 3
    scale = np.ones(2, np.float32)
    made = Encoding(QuantSpec(8, axis=0), scale, np.zeros(2, np.int32))
    scale[0] = 5
    assert made.scale[0] == 1
