"""`Encoding`: a QuantSpec with its numbers, and the arithmetic of ONNX QuantizeLinear /
DequantizeLinear.

    quantize    q = saturate(round_half_even(x / scale) + zero_point)
    dequantize  x = (q - zero_point) * scale

computed in float32 exactly as the ONNX reference does (division, not multiplication by a
reciprocal).
"""

from dataclasses import dataclass

import numpy as np

from modelmill.numerics.spec import QuantSpec

# Scales below this make x / scale overflow float32 for ordinary x, and int32 bias scales (product
# of two) denormal.
SMALLEST_SCALE = np.float32(2.0**-60)


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
        if self.spec.bits == 32:  # a bias: float32 cannot hold every int32 code
            codes = np.rint(x.astype(np.float64) / scale.astype(np.float64)) + zero_point
        else:
            codes = np.rint(x.astype(np.float32) / scale) + zero_point
        clipped: np.ndarray = np.clip(codes, self.spec.qmin, self.spec.qmax)
        return clipped.astype(self.spec.storage)

    def dequantize(self, q: np.ndarray) -> np.ndarray:
        """Real numbers, float32, that the codes `q` stand for."""
        scale, zero_point = self._shaped(q.ndim)
        real: np.ndarray = (q.astype(np.int64) - zero_point).astype(np.float32) * scale
        return real

    def fake(self, x: np.ndarray) -> np.ndarray:
        """`x` rounded to what the codes can express."""
        return self.dequantize(self.quantize(x))

    @property
    def low(self) -> np.ndarray:
        """Smallest real number the codes express, shape of `scale`."""
        return np.asarray((self.spec.qmin - self.zero_point) * self.scale)

    @property
    def high(self) -> np.ndarray:
        """Largest real number the codes express, shape of `scale`."""
        return np.asarray((self.spec.qmax - self.zero_point) * self.scale)

    def _shaped(self, ndim: int) -> tuple[np.ndarray, np.ndarray]:
        if self.spec.axis is None:
            return self.scale, self.zero_point
        shape = [1] * ndim
        shape[self.spec.axis] = -1
        return self.scale.reshape(shape), self.zero_point.reshape(shape)


def choose_encoding(spec: QuantSpec, low: np.ndarray | float, high: np.ndarray | float) -> Encoding:
    """The encoding of `spec` that covers the real range [low, high], widened to contain 0.

    Zero is always exactly representable, as zero padding and ReLU need. A range of width 0 (a dead
    channel, a constant map of zeros) gets scale 1, so that its codes are all the zero point and
    nothing divides by zero.

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
    if fixed is None:
        scale = (high - low) / (spec.qmax - spec.qmin)
    else:
        # Asymmetry of the code range (-128..127) is used: the wider side decides per sign.
        scale = np.maximum(high / (spec.qmax - fixed), low / (spec.qmin - fixed))
    scale = np.where(scale > 0, np.maximum(scale, SMALLEST_SCALE), 1.0).astype(np.float32)
    if fixed is None:
        zero_point = np.clip(np.rint(spec.qmin - low / scale), spec.qmin, spec.qmax).astype(
            np.int32
        )
    else:
        zero_point = np.full(scale.shape, fixed, dtype=np.int32)
    return Encoding(spec, scale, zero_point)
