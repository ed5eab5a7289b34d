"""Scales that are powers of two, and codes that are logarithms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.numerics import Encoding, QuantSpec, choose_encoding

POWER = QuantSpec(8, power_of_two=True)
LOG = QuantSpec(8, signed=False, symmetric=True, logarithmic=True)


@given(low=st.floats(-1e6, 0), high=st.floats(1e-6, 1e6), axis=st.sampled_from([None, 0]))
@settings(max_examples=100, deadline=None)
def test_a_power_of_two_covers_the_range_and_no_smaller_one_does(low, high, axis):
    spec = QuantSpec(8, axis=axis, power_of_two=True)
    ends = (low, high) if axis is None else ([low, low], [high, high])
    encoding = choose_encoding(spec, *ends)
    exponent = np.log2(encoding.scale.astype(np.float64))
    assert (exponent == np.rint(exponent)).all()
    assert (encoding.low <= low).all() and (encoding.high >= high).all()
    half = encoding.scale / 2
    assert ((half * 127 < high) | (half * -128 > low)).all()


@pytest.mark.parametrize("exponent", [-20, -7, 0, 3])
def test_a_range_that_fits_exactly_keeps_its_power(exponent):
    step = 2.0**exponent
    assert choose_encoding(POWER, -128 * step, 127 * step).scale == step
    assert choose_encoding(POWER, 0, 127 * step * 1.0001).scale == 2 * step


def test_asymmetric_powers_of_two_have_a_zero_point():
    encoding = choose_encoding(QuantSpec(8, False, False, power_of_two=True), -0.3, 1.0)
    assert encoding.scale == 2.0**-7 and encoding.zero_point == round(0.3 * 128)
    assert encoding.fake(np.float32([0.0])) == 0


def test_other_scales_are_refused():
    with pytest.raises(ValueError, match="no power of two"):
        Encoding(POWER, np.float32(0.3), np.int32(0))


# ------------------------------------------------------------ logarithms


def published(x, c):
    """MQBench's documentation of NNIE: z = round(16 log2 c) - 127 and its three cases."""
    z = np.round(16 * np.log2(c)) - 127
    x = x.astype(np.float64)
    y = np.zeros_like(x)
    up, down = x >= 2 ** (z / 16 - 1), x < -(2 ** ((z + 1) / 16 - 1))
    y[up] = 2 ** ((np.clip(np.round(16 * np.log2(x[up])) - z, 0, 127) + z) / 16)
    y[down] = -(2 ** ((np.clip(np.round(16 * np.log2(-x[down])) - z, 1, 127) + z) / 16))
    return y.astype(np.float32)


@pytest.mark.parametrize("c", [0.037, 1.0, 5.0, 300.0])
def test_logarithmic_codes_are_those_of_the_hardware(c):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=20000) * np.exp(2 * rng.normal(size=20000))).astype(np.float32)
    encoding = choose_encoding(LOG, -c / 2, c)
    np.testing.assert_array_equal(encoding.fake(x), published(x, c))
    codes = encoding.quantize(x)
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(encoding.quantize(encoding.dequantize(codes)), codes)


def test_the_bytes_of_the_table():
    """c = 2^(127/16), so z = 0: the table of MQBench's page, row by row."""
    encoding = choose_encoding(LOG, 0, 2 ** (127 / 16))
    rows = {0xFF: -(2 ** (127 / 16)), 0x82: -(2 ** (2 / 16)), 0x81: -(2 ** (1 / 16)), 0x80: 0.0,
            0x00: 1.0, 0x01: 2 ** (1 / 16), 0x7F: 2 ** (127 / 16)}  # fmt: skip
    codes = np.array(list(rows), np.uint8)
    np.testing.assert_allclose(encoding.dequantize(codes), list(rows.values()), rtol=1e-6)
    np.testing.assert_array_equal(encoding.quantize(np.float32([1e9, -1e9, 0])), [127, 255, 128])
    assert encoding.high == encoding.dequantize(np.uint8(127)) == -encoding.low


def test_zero_is_a_code_even_of_a_dead_tensor():
    encoding = choose_encoding(LOG, 0, 0)
    assert encoding.fake(np.zeros(3, np.float32)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4, "signed": False, "symmetric": True},
        {"bits": 8, "signed": True, "symmetric": True},
        {"bits": 8, "signed": False, "symmetric": False},
        {"bits": 8, "signed": False, "symmetric": True, "axis": 0},
        {"bits": 8, "signed": False, "symmetric": True, "power_of_two": True},
    ],
)
def test_what_a_logarithmic_format_cannot_be(options):
    with pytest.raises(ValueError, match="logarithmic"):
        QuantSpec(**options, logarithmic=True)


def test_names():
    assert str(LOG) == "log8 symmetric per tensor"
    assert str(QuantSpec(8, axis=0, narrow=True, power_of_two=True)) == (
        "int8 symmetric per channel (axis 0) narrow power of two"
    )
