"""What a spec says of its codes, and how a precision is written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmill.numerics import QuantSpec, parse_precision


@given(st.integers(2, 16), st.booleans(), st.booleans(), st.booleans())
def test_the_codes_fit_their_storage(bits, signed, symmetric, narrow):
    spec = QuantSpec(bits, signed, symmetric, narrow=narrow)
    assert spec.qmax - spec.qmin + 1 == 2**bits - narrow
    info = np.iinfo(spec.storage)
    assert info.min <= spec.qmin < spec.qmax <= info.max
    assert info.bits == (8 if bits <= 8 else 16)
    if symmetric:
        assert spec.qmin <= spec.fixed_zero_point <= spec.qmax
    else:
        assert spec.fixed_zero_point is None


@pytest.mark.parametrize(
    ("spec", "low", "high", "zero"),
    [
        (QuantSpec(), -128, 127, 0),
        (QuantSpec(narrow=True), -127, 127, 0),
        (QuantSpec(7), -64, 63, 0),
        (QuantSpec(8, signed=False), 0, 255, 128),
        (QuantSpec(8, signed=False, symmetric=False), 0, 255, None),
        (QuantSpec(16), -32768, 32767, 0),
        (QuantSpec(32), -(2**31), 2**31 - 1, 0),
    ],
    ids=str,
)
def test_limits(spec, low, high, zero):
    assert (spec.qmin, spec.qmax, spec.fixed_zero_point) == (low, high, zero)


@pytest.mark.parametrize("bits", [-1, 0, 1, 17, 31, 33])
def test_bits_outside(bits):
    with pytest.raises(ValueError, match=f"not {bits}"):
        QuantSpec(bits)


def test_in_words():
    assert str(QuantSpec(7, axis=0, narrow=True)) == "int7 symmetric per channel (axis 0) narrow"
    assert str(QuantSpec(8, False, False)) == "uint8 asymmetric per tensor"


def test_precision():
    assert parse_precision("w8a8") == (8, 8)
    assert parse_precision("w4a16") == (4, 16)


@pytest.mark.parametrize("text", ["", "w8", "a8", "w8a", "a8w8", "int8", "W8A8", "w8a8 ", "w-8a8"])
def test_not_a_precision(text):
    with pytest.raises(ValueError, match="wXaY, for example w8a8"):
        parse_precision(text)
