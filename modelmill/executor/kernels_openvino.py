"""How OpenVINO's CPU plug-in and its kernels (oneDNN) quantize and add.

A float becomes a code by its range: y = round(fma(x, k, -low k)), k = n / (high - low). Behind a
product with low = 0 only a factor is left, which oneDNN takes as a scale of the output to divide
by: it holds 1 / k and multiplies with 1 / (1 / k).

Two tensors are added in steps of the one that is a tensor of codes. The low-precision
transformations write r_1 + s_2 (q_2 - z_2) as s_2 ((r_1 - s_2 z_2) / s_2 + q_2) and let the
quantization that follows take the outer factor: with low and high its range,

    t = (r_1 - s_2 z_2) * (1 / s_2) + q_2                     r_1 float, as a convolution gives it
    t = (q_1 - (z_1 + s_2 z_2 / s_1)) * (s_1 / s_2) + q_2     r_1 codes as well
    y = round(fma(t, k, -l k)),   l = low / s_2,  k = n / (high / s_2 - l)

and a convolution's float r_1 is multiplied with 1 / (1 / (1 / s_2)) for the same reason. Every
operation in float32. Sources: add.cpp and eltwise_base_transformation.cpp of the low-precision
transformations, dnnl_postops_composer.cpp of the plug-in.
"""

import numpy as np
import torch
from torch import Tensor

from modelmill.executor.codes import Codes, clamp
from modelmill.numerics import Encoding


def quantize_in_range(x: Tensor, encoding: Encoding) -> Codes:
    """The product of the fused multiply-add is exact in float64: only the sum is rounded."""
    factor = _factor(encoding)
    low, high = np.float32(encoding.low), np.float32(encoding.high)
    steps = np.float32(encoding.spec.qmax - encoding.spec.qmin)
    return _round(x, factor, (-low * steps) / (high - low), encoding)


def quantize_in_product(x: Tensor, encoding: Encoding) -> Codes:
    """Behind a convolution or matrix product."""
    if np.float32(encoding.low) != 0:
        return quantize_in_range(x, encoding)
    return _round(x, _twice_inverted(_factor(encoding)), np.float32(0), encoding)


def add_in_steps(other: Tensor | Codes, kept: Codes, output: Encoding) -> Codes:
    """`other` + `kept`, whose codes are added as they are; both and the output per tensor."""
    step, zero = kept.encoding.scale, np.float32(kept.encoding.zero_point)
    if isinstance(other, Codes):
        own = other.encoding
        moved = np.float32(own.zero_point) + step * zero / own.scale
        codes = other.centred + float(np.float32(own.zero_point))
        full = (codes - float(moved)) * float(own.scale / step)
    else:
        full = other - float(step * zero) if zero else other
        full = full * float(_twice_inverted(np.float32(1) / step))
    total = full + (kept.centred + float(zero))
    low, high = np.float32(output.low) / step, np.float32(output.high) / step
    factor = np.float32(output.spec.qmax - output.spec.qmin) / (high - low)
    return _round(total, factor, -low * factor, output)


def _factor(encoding: Encoding) -> np.float32:
    steps = np.float32(encoding.spec.qmax - encoding.spec.qmin)
    return np.float32(steps / (np.float32(encoding.high) - np.float32(encoding.low)))


def _twice_inverted(factor: np.float32) -> np.float32:
    return np.float32(1) / (np.float32(1) / factor)


def _round(x: Tensor, factor: np.float32, shift: np.float32, encoding: Encoding) -> Codes:
    codes = torch.round((x.double() * float(factor) + float(shift)).float())
    return Codes(clamp(codes + float(encoding.spec.qmin - encoding.zero_point), encoding), encoding)
