"""How OpenVINO's CPU plug-in and its kernels (oneDNN) quantize and add.

A float becomes a code by its range, with k = n / (high - low):

    y = round(x k + (-low k))          on its own or behind other arithmetic, rounded twice
    y = round(fma(x, k, -low n / (high - low)))        in the kernel of a product, rounded once
    y = round(x * (1 / (1 / k)))       in the kernel of an integer product, where low = 0

The last because oneDNN takes a lone factor as a scale of the output to divide by: it holds 1 / k
and multiplies with its inverse.

Two tensors are added in steps of the one that is a tensor of codes. The low-precision
transformations write r_1 + s_2 (q_2 - z_2) as s_2 ((r_1 - s_2 z_2) / s_2 + q_2) and let the
quantization that follows take the outer factor: with low and high its range,

    t = (r_1 - s_2 z_2) * (1 / s_2) + q_2                     r_1 float, as a convolution gives it
    t = (q_1 - (z_1 + s_2 z_2 / s_1)) * (s_1 / s_2) + q_2     r_1 codes as well
    y = round(t k + (-l k)),   l = low / s_2,  k = n / (high / s_2 - l)

and a convolution's float r_1 is multiplied with 1 / (1 / (1 / s_2)) for the same reason. Every
operation in float32. Sources: add.cpp and eltwise_base_transformation.cpp of the low-precision
transformations, dnnl_postops_composer.cpp of the plug-in.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from modelmill.executor.codes import Codes, clamp
from modelmill.numerics import Encoding

# Activations that the plug-in computes in the kernel of the product before them.
IN_PRODUCTS = frozenset(
    ["Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu"]
)


def quantize_alone(x: Tensor, encoding: Encoding) -> Codes:
    factor = _factor(encoding)
    return _round(x * float(factor) + float(-np.float32(encoding.low) * factor), encoding)


def quantize_in_float_product(x: Tensor, encoding: Encoding) -> Codes:
    """The product of the fused multiply-add is exact in float64: only the sum is rounded."""
    low, high = np.float32(encoding.low), np.float32(encoding.high)
    shift = (-low * _steps(encoding)) / (high - low)
    steps = x.double() * float(_factor(encoding)) + float(shift)
    return _round(steps.float(), encoding)


def quantize_in_integer_product(x: Tensor, encoding: Encoding) -> Codes:
    if np.float32(encoding.low) != 0:
        return quantize_in_float_product(x, encoding)
    return _round(x * float(_twice_inverted(_factor(encoding))), encoding)


QUANTIZE: dict[str, Callable[[Tensor, Encoding], Codes]] = {
    "alone": quantize_alone,
    "float": quantize_in_float_product,
    "integer": quantize_in_integer_product,
}


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
        full = full * float(_twice_inverted(np.float32(1 / step)))
    total = full + (kept.centred + float(zero))
    low, high = np.float32(output.low) / step, np.float32(output.high) / step
    factor = _steps(output) / (high - low)
    return _round(total * float(factor) + float(-low * factor), output)


def _steps(encoding: Encoding) -> np.float32:
    return np.float32(encoding.spec.qmax - encoding.spec.qmin)


def _factor(encoding: Encoding) -> np.float32:
    return np.float32(_steps(encoding) / (np.float32(encoding.high) - np.float32(encoding.low)))


def _twice_inverted(factor: np.float32) -> np.float32:
    return np.float32(1) / (np.float32(1) / factor)


def _round(steps: Tensor, encoding: Encoding) -> Codes:
    centred = torch.round(steps) + float(encoding.spec.qmin - encoding.zero_point)
    return Codes(clamp(centred, encoding), encoding)
