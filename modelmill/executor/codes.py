"""`Codes`: a quantized tensor in the simulation, and the small arithmetic around it.

Codes are held minus their zero point ("centred"), integers in a float32 tensor: padding with the
real 0 is then padding with 0, and ops that move elements run unchanged. A logarithmic code of sign
and magnitude m is held as +-(m + 1), the real 0 as 0, which keeps the order of the real numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modelmill.numerics import Encoding
from modelmill.numerics.encoding import SIGN_BIT
from modelmill.numerics.spec import STEPS_PER_OCTAVE

LOG_REACH = 128  # largest held logarithmic code


@dataclass(frozen=True)
class Codes:
    """A quantized tensor: centred codes in float32, and what they mean."""

    centred: Tensor
    encoding: Encoding

    @property
    def real(self) -> Tensor:
        """The real numbers, float32."""
        if self.encoding.spec.logarithmic:
            return _log_table(self.encoding)[self.centred.long() + LOG_REACH]
        return self.centred * scale_of(self.encoding, self.centred.dim())

    @property
    def codes(self) -> Tensor:
        """The codes as the engine stores them, int32."""
        if self.encoding.spec.logarithmic:
            m, sign_bit = self.centred.abs().int() - 1, SIGN_BIT * (self.centred < 0).int()
            return torch.where(self.centred == 0, SIGN_BIT, m + sign_bit)
        zero_point = along(self.encoding.zero_point, self.encoding, self.centred.dim())
        return (self.centred + zero_point).int()


def from_codes(stored: Tensor, encoding: Encoding) -> Codes:
    """Codes as the engine stores them, any numeric type, in the form they are held here."""
    if encoding.spec.logarithmic:
        q = stored.float()
        sign = torch.where(q == SIGN_BIT, 0.0, torch.where(q > SIGN_BIT, -1.0, 1.0))
        return Codes(sign * (q % SIGN_BIT + 1), encoding)
    zero_point = along(encoding.zero_point, encoding, stored.dim())
    return Codes(stored.float() - zero_point, encoding)


def to_logarithm(x: Tensor, encoding: Encoding) -> Codes:
    """As `Encoding.quantize` rounds to logarithmic codes, in float64."""
    magnitude, negative = x.abs().double(), x < 0
    z = round(STEPS_PER_OCTAVE * float(np.log2(float(encoding.scale))))
    m = torch.round(STEPS_PER_OCTAVE * torch.log2(magnitude) - z)
    m = torch.clamp(torch.maximum(m, negative.double()), 0, LOG_REACH - 1)
    smallest = torch.exp2((z + negative.double()) / STEPS_PER_OCTAVE - 1)
    nothing = torch.where(negative, magnitude <= smallest, magnitude < smallest)
    held = torch.where(nothing, 0.0, torch.where(negative, -1.0, 1.0) * (m + 1))
    return Codes(held.float(), encoding)


def _log_table(encoding: Encoding) -> Tensor:
    """The real number of every held logarithmic code, from -128 to 128."""
    held = torch.arange(-LOG_REACH, LOG_REACH + 1.0)
    return torch.tensor(encoding.dequantize(Codes(held, encoding).codes.numpy()))


def real(held: Tensor | Codes | None) -> Tensor:
    """The real numbers of a value, quantized or not."""
    return held.real if isinstance(held, Codes) else held  # type: ignore[return-value]


def scale_of(encoding: Encoding, rank: int) -> Tensor:
    """The scale in the shape that broadcasts over a tensor of `rank`."""
    return along(encoding.scale, encoding, rank)


def along(values: np.ndarray, encoding: Encoding, rank: int) -> Tensor:
    """Numbers of an encoding, one or one per channel, in the shape that broadcasts."""
    array = torch.tensor(np.asarray(values, np.float32))
    if encoding.spec.axis is None:
        return array
    return array.reshape([-1 if d == encoding.spec.axis else 1 for d in range(rank)])


def channels(values: np.ndarray, rank: int, axis: int) -> Tensor:
    """Per-channel float32 values in the shape that broadcasts along `axis` of a tensor of
    `rank`.
    """
    values = np.asarray(values, np.float32)
    if values.ndim == 0:
        return torch.tensor(values)
    shape = [1] * rank
    shape[axis] = -1
    return torch.tensor(values).reshape(shape)


def clamp(centred: Tensor, encoding: Encoding) -> Tensor:
    """Saturate fresh centred codes, in place where that is possible."""
    low, high = encoding.spec.qmin - encoding.zero_point, encoding.spec.qmax - encoding.zero_point
    if encoding.spec.axis is None:
        return centred.clamp_(float(low), float(high))
    rank = centred.dim()
    return torch.minimum(
        torch.maximum(centred, along(low, encoding, rank)), along(high, encoding, rank)
    )
