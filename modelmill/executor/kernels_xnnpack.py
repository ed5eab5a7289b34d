"""Kernels on codes as XNNPACK computes them for signed 8 bits; ExecuTorch and LiteRT run them.

    quantize    y = clamp(round(x * (1 / s)))                   the reciprocal in float32
    Add, Sub    y = clamp((m1 x1_a + m2 x2_a + 2^(n-1)) >> n)   m = round(2^n s / s_y), where n
                gives the larger of the two m 21 bits
    Mul         y = clamp(round(x1_a x2_a * (s1 s2 / s_y)))
    LeakyRelu   y = clamp((m x_a + 128) >> 8)                   m = round(256 s_x / s_y), for
                negative x_a round(256 alpha s_x / s_y)

s scale, x_a centred codes, >> drops bits (floor); round is half to even.
XNNPACK, src/microparams-init.c, src/qs8-vadd, src/qs8-vmul, src/qs8-vlrelu, src/f32-qs8-vcvt.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from modelmill.executor.codes import Codes, clamp, scale_of
from modelmill.numerics import Encoding

MULTIPLIER_BITS = 20
LEAKY_BITS = 8


def quantize_by_reciprocal(x: Tensor, encoding: Encoding) -> Codes:
    return Codes(clamp(torch.round(x * (1 / scale_of(encoding, x.dim()))), encoding), encoding)


def add_in_fixed_point(a: Codes, b: Codes, output: Encoding, sign: int = 1) -> Codes:
    ratio_a = np.float32(a.encoding.scale / output.scale)
    ratio_b = np.float32(b.encoding.scale / output.scale)
    exponent = int(np.frexp(max(ratio_a, ratio_b))[1]) - 1
    shift = MULTIPLIER_BITS - exponent
    by_a, by_b = (int(np.rint(np.ldexp(r, shift))) for r in (ratio_a, ratio_b))
    total = a.centred.double() * by_a + b.centred.double() * (sign * by_b) + 2.0 ** (shift - 1)
    return Codes(clamp(torch.floor(total * 2.0**-shift).float(), output), output)


def subtract_in_fixed_point(a: Codes, b: Codes, output: Encoding) -> Codes:
    return add_in_fixed_point(a, b, output, -1)


def multiply_and_round(a: Codes, b: Codes, output: Encoding) -> Codes:
    ratio = float(a.encoding.scale * b.encoding.scale / output.scale)
    return Codes(clamp(torch.round(a.centred * b.centred * ratio), output), output)


def leaky_in_fixed_point(x: Codes, alpha: float, output: Encoding) -> Codes:
    above = np.float32(x.encoding.scale / output.scale)
    below = above * np.float32(alpha)
    scale = np.float32(2**LEAKY_BITS)
    factors = [float(np.rint(scale * r)) for r in (above, below)]
    product = torch.where(x.centred < 0, x.centred * factors[1], x.centred * factors[0])
    moved = torch.floor((product + 2 ** (LEAKY_BITS - 1)) / scale.item())
    return Codes(clamp(moved, output), output)
