"""`Codes`: a quantized tensor in the simulation, and the small arithmetic around it.

Codes are held minus their zero point ("centred"), integers in a float32 tensor: padding with the
real 0 is then padding with 0, and ops that move elements run unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modelmill.numerics import Encoding


@dataclass(frozen=True)
class Codes:
    """A quantized tensor: centred codes in float32, and what they mean."""

    centred: Tensor
    encoding: Encoding

    @property
    def real(self) -> Tensor:
        """The real numbers, float32."""
        return self.centred * scale_of(self.encoding, self.centred.dim())

    @property
    def codes(self) -> Tensor:
        """The codes as the engine stores them, int32."""
        zero_point = along(self.encoding.zero_point, self.encoding, self.centred.dim())
        return (self.centred + zero_point).int()


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
