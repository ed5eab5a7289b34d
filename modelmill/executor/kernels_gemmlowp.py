"""Kernels on codes as LiteRT's reference kernels compute them, in integers alone; microcontrollers
(TensorFlow Lite Micro) and Arm's Ethos-U follow them.

A real factor f is held as M 2^(e-31), M an integer of 31 bits. To multiply by it rounds twice:

    x * f  =  R(H(x 2^max(e,0), M), max(-e,0))
    H(a, b) = a b / 2^31, half away from zero for a b > 0, half towards zero below
    R(a, n) = a / 2^n, half away from zero

    Conv         y = clamp(acc * (s_x s_w / s_y))
    Gemm         y = clamp((acc M + 2^(30-e)) >> (31-e))            the same factor, rounded once
    Add, Sub     y = clamp((x1_a 2^20 * (s1 / t) +- x2_a 2^20 * (s2 / t)) * (t / (2^20 s_y))),
                 t = 2 max(s1, s2)
    Mul          y = clamp(x1_a x2_a * (s1 s2 / s_y))
    LeakyRelu    y = clamp(x_a * (s_x / s_y)), for negative x_a of (alpha s_x / s_y)
    mean         y = clamp(sum x_a * (s_x / s_y / n)), M divided by n as an integer, cut
    quantize     y = clamp(x / s, half away from zero)

s scale, x_a centred codes; factors are computed in float64. tflite/kernels/internal/common.h and
reference/; equal to the engine's reference kernels on every pair of codes (tests).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from modelmill.executor.codes import Codes, clamp, scale_of
from modelmill.numerics import Encoding

BITS = 31  # of a multiplier
ADD_BITS = 20  # codes are moved left by so much before they are added


def factor(real: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """(M, e) of a positive real factor, int64."""
    mantissa, exponent = np.frexp(np.asarray(real, np.float64))
    whole = np.rint(mantissa * 2.0**BITS).astype(np.int64)
    exponent = exponent.astype(np.int64) + (whole == 2**BITS)
    whole = np.where(whole == 2**BITS, whole // 2, whole)
    tiny = exponent < -BITS
    return np.where(tiny, 0, whole), np.where(tiny, 0, exponent)


def times(x: Tensor, multiplier: Tensor, exponent: Tensor) -> Tensor:
    """Both roundings of x * f, int64."""
    product = (x << exponent.clamp(min=0)) * multiplier
    nudge = torch.where(product >= 0, 1 << (BITS - 1), 1 - (1 << (BITS - 1)))
    high = torch.div(product + nudge, 1 << BITS, rounding_mode="trunc")
    shift = (-exponent).clamp(min=0)
    mask = (torch.ones_like(shift) << shift) - 1
    threshold = (mask >> 1) + (high < 0)
    return (high >> shift) + ((high & mask) > threshold)


def times_rounded_once(x: Tensor, multiplier: Tensor, exponent: Tensor) -> Tensor:
    """One rounding of x * f, half up, int64."""
    shift = BITS - exponent
    return (x * multiplier + (torch.ones_like(shift) << (shift - 1))) >> shift


def _times(x: Tensor, real: float) -> Tensor:
    return times(x, *(torch.as_tensor(part) for part in factor(real)))


def _real(encoding: Encoding) -> float:
    return float(encoding.scale)


def quantize_half_away(x: Tensor, encoding: Encoding) -> Codes:
    steps = x / scale_of(encoding, x.dim())
    # Half is added in float64: the sum must not round.
    away = torch.floor(steps.abs().double() + 0.5).float() * steps.sign()
    return Codes(clamp(away, encoding), encoding)


def add_doubly_rounded(a: Codes, b: Codes, output: Encoding, sign: int = 1) -> Codes:
    top = 2 * max(_real(a.encoding), _real(b.encoding))
    parts = [_times(side.centred.long() << ADD_BITS, _real(side.encoding) / top) for side in (a, b)]
    total = parts[0] + sign * parts[1]
    steps = _times(total, top / (2.0**ADD_BITS * _real(output)))
    return Codes(clamp(steps.float(), output), output)


def subtract_doubly_rounded(a: Codes, b: Codes, output: Encoding) -> Codes:
    return add_doubly_rounded(a, b, output, -1)


def multiply_doubly_rounded(a: Codes, b: Codes, output: Encoding) -> Codes:
    real = _real(a.encoding) * _real(b.encoding) / _real(output)
    steps = _times(a.centred.long() * b.centred.long(), real)
    return Codes(clamp(steps.float(), output), output)


def leaky_doubly_rounded(x: Codes, alpha: float, output: Encoding) -> Codes:
    codes = x.centred.long()
    slope = float(np.float32(x.encoding.scale) * np.float32(alpha))
    above = _times(codes, _real(x.encoding) / _real(output))
    below = _times(codes, slope / _real(output))
    return Codes(clamp(torch.where(codes >= 0, above, below).float(), output), output)


def global_average_doubly_rounded(x: Codes, output: Encoding) -> Codes:
    count = x.centred[0, 0].numel()
    multiplier, exponent = (int(p) for p in factor(_real(x.encoding) / _real(output)))
    shift = min(count.bit_length() - 1, BITS + 1, BITS + exponent)
    parts = torch.tensor((multiplier << shift) // count), torch.tensor(exponent - shift)
    total = x.centred.long().sum(tuple(range(2, x.centred.dim())), keepdim=True)
    return Codes(clamp(times(total, *parts).float(), output), output)
