"""`Encoding`: a QuantSpec with its numbers, and the arithmetic of ONNX QuantizeLinear /
DequantizeLinear.

    quantize    q = saturate(round_half_even(x / scale) + zero_point)
    dequantize  x = (q - zero_point) * scale

computed in float32 exactly as the ONNX reference does (division, not multiplication by a
reciprocal). Logarithmic codes are described at `QuantSpec`; of them scale is the smallest positive
number, 2^(z / 16) with an integer z.
"""

from dataclasses import dataclass

import numpy as np

from modelmill.numerics.spec import STEPS_PER_OCTAVE, QuantSpec

# Scales below this make x / scale overflow float32 for ordinary x, and int32 bias scales (product
# of two) denormal.
SMALLEST_SCALE = np.float32(2.0**-60)
LOG_STEPS = 127  # largest magnitude of a logarithmic code
SIGN_BIT = 128  # of a logarithmic code; alone it is the real number 0


@dataclass(frozen=True, eq=False)
class Encoding:
    """A spec with its numbers.

    scale: float32, shape () or (C,), positive and finite. zero_point: int32, same shape, within
    [qmin, qmax]. Both are read-only.
    """

    spec: QuantSpec
    scale: np.ndarray
    zero_point: np.ndarray

    def __post_init__(self) -> None:
        scale = np.array(self.scale, dtype=np.float32)
        zero_point = np.broadcast_to(
            np.asarray(self.zero_point, dtype=np.int32), scale.shape
        ).copy()
        if scale.ndim != (0 if self.spec.axis is None else 1):
            raise ValueError(f"Encoding: scale of shape {scale.shape} does not fit {self.spec}")
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError(
                f"Encoding: scale must be positive and finite, found {scale.min()}..{scale.max()}"
            )
        if zero_point.size and not (
            self.spec.qmin <= zero_point.min() <= zero_point.max() <= self.spec.qmax
        ):
            raise ValueError(
                f"Encoding: zero point outside [{self.spec.qmin}, {self.spec.qmax}] of {self.spec}"
            )
        if self.spec.power_of_two and (np.frexp(scale)[0] != 0.5).any():
            raise ValueError(f"Encoding: scale {scale} is no power of two, as {self.spec} demands")
        if self.spec.logarithmic and (zero_point != SIGN_BIT).any():
            raise ValueError(f"Encoding: the zero point of {self.spec} is {SIGN_BIT}")
        scale.setflags(write=False)
        zero_point.setflags(write=False)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero_point)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Encoding)
            and self.spec == other.spec
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def __hash__(self) -> int:
        return hash((self.spec, self.scale.tobytes(), self.zero_point.tobytes()))

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Codes of `x` (float, any shape that has the channel axis) in `spec.storage`."""
        scale, zero_point = self._shaped(x.ndim)
        if self.spec.logarithmic:
            return _log_codes(np.asarray(x, np.float64), scale)
        if self.spec.bits == 32:  # a bias: float32 cannot hold every int32 code
            codes = np.rint(x.astype(np.float64) / scale.astype(np.float64)) + zero_point
        else:
            codes = np.rint(x.astype(np.float32) / scale) + zero_point
        clipped: np.ndarray = np.clip(codes, self.spec.qmin, self.spec.qmax)
        return clipped.astype(self.spec.storage)

    def dequantize(self, q: np.ndarray) -> np.ndarray:
        """Real numbers, float32, that the codes `q` stand for."""
        scale, zero_point = self._shaped(q.ndim)
        if self.spec.logarithmic:
            return _log_values(q, scale)
        real: np.ndarray = (q.astype(np.int64) - zero_point).astype(np.float32) * scale
        return real

    def fake(self, x: np.ndarray) -> np.ndarray:
        """`x` rounded to what the codes can express."""
        return self.dequantize(self.quantize(x))

    @property
    def low(self) -> np.ndarray:
        """Smallest real number the codes express, shape of `scale`."""
        if self.spec.logarithmic:
            return -self.high
        return np.asarray((self.spec.qmin - self.zero_point) * self.scale)

    @property
    def high(self) -> np.ndarray:
        """Largest real number the codes express, shape of `scale`."""
        if self.spec.logarithmic:
            return np.asarray(self.scale * 2.0 ** (LOG_STEPS / STEPS_PER_OCTAVE), np.float32)
        return np.asarray((self.spec.qmax - self.zero_point) * self.scale)

    def _shaped(self, ndim: int) -> tuple[np.ndarray, np.ndarray]:
        if self.spec.axis is None:
            return self.scale, self.zero_point
        shape = [1] * ndim
        shape[self.spec.axis] = -1
        return self.scale.reshape(shape), self.zero_point.reshape(shape)


def _log_exponents(scale: np.ndarray) -> np.ndarray:
    """The integer z of scale = 2^(z / 16), which float32 holds precisely enough to tell."""
    z: np.ndarray = np.rint(STEPS_PER_OCTAVE * np.log2(np.asarray(scale, np.float64)))
    return z


def _log_codes(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Magnitudes m = round(16 log2 |x|) - z, saturated, with the sign bit; what is less than half
    of the smallest number of its sign is 0. Positive m are 0..127, negative ones 1..127.
    """
    z = _log_exponents(scale)
    magnitude = np.abs(x)
    with np.errstate(divide="ignore"):
        m = np.rint(STEPS_PER_OCTAVE * np.log2(magnitude) - z)
    negative = x < 0
    smallest = 2.0 ** ((z + negative) / STEPS_PER_OCTAVE - 1)
    nothing = np.where(negative, magnitude <= smallest, magnitude < smallest)
    m = np.clip(np.where(nothing, 0, m), negative, LOG_STEPS) + SIGN_BIT * negative
    codes: np.ndarray = np.where(nothing, SIGN_BIT, m).astype(np.uint8)
    return codes


def _log_values(q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    q = np.asarray(q).astype(np.int64)
    exponents = (q % SIGN_BIT + _log_exponents(scale)) / STEPS_PER_OCTAVE
    signs = np.where(q == SIGN_BIT, 0.0, np.where(q > SIGN_BIT, -1.0, 1.0))
    real: np.ndarray = (signs * 2.0**exponents).astype(np.float32)
    return real


def choose_encoding(spec: QuantSpec, low: np.ndarray | float, high: np.ndarray | float) -> Encoding:
    """The encoding of `spec` that covers the real range [low, high], widened to contain 0.

    Zero is always exactly representable, as zero padding and ReLU need. A range of width 0 (a dead
    channel, a constant map of zeros) gets scale 1, so that its codes are all the zero point and
    nothing divides by zero. A power of two is the next one above the scale wanted. A logarithmic
    scale is the one whose largest number is nearest to the wider side, as NNIE's tools choose it.

    Args:
        spec: the format.
        low: lower ends, shape () or (C,) as `spec.axis` says.
        high: upper ends, same shape.

    Raises:
        ValueError: a range is NaN or infinite.
    """
    low = np.minimum(np.asarray(low, dtype=np.float64), 0.0)
    high = np.maximum(np.asarray(high, dtype=np.float64), 0.0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("cannot choose a scale: the range is NaN or infinite")
    fixed = spec.fixed_zero_point
    if spec.logarithmic:
        return Encoding(spec, _log_scale(np.maximum(high, -low)), np.array(SIGN_BIT))
    if fixed is None:
        scale = (high - low) / (spec.qmax - spec.qmin)
    else:
        # Asymmetry of the code range (-128..127) is used: the wider side decides per sign.
        scale = np.maximum(high / (spec.qmax - fixed), low / (spec.qmin - fixed))
    scale = np.where(scale > 0, np.maximum(scale, SMALLEST_SCALE), 1.0)
    if spec.power_of_two:
        scale = next_power_of_two(scale)
    scale = scale.astype(np.float32)
    if fixed is None:
        zero_point = np.clip(np.rint(spec.qmin - low / scale), spec.qmin, spec.qmax).astype(
            np.int32
        )
    else:
        zero_point = np.full(scale.shape, fixed, dtype=np.int32)
    return Encoding(spec, scale, zero_point)


def next_power_of_two(x: np.ndarray) -> np.ndarray:
    """The smallest 2^k >= x, k an integer, element by element; x positive."""
    mantissa, exponent = np.frexp(x)  # x = mantissa * 2^exponent, mantissa in [0.5, 1)
    return np.asarray(np.ldexp(1.0, exponent - (mantissa == 0.5)))


def _log_scale(reach: np.ndarray) -> np.ndarray:
    """2^(z / 16), z = round(16 log2 reach) - 127, float32."""
    reach = np.where(reach > 0, np.maximum(reach, SMALLEST_SCALE), 1.0)
    z = np.rint(STEPS_PER_OCTAVE * np.log2(reach)) - LOG_STEPS
    return np.asarray(2.0 ** (z / STEPS_PER_OCTAVE), np.float32)
