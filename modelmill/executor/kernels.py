"""Kernels on codes: one function for each way that an engine does a step, found by the name that
`Arithmetic` gives it.

The formulas (s scale, z zero point, a centred code; x, w inputs, y output; round is half to even,
every operation in float32 unless said otherwise):

    Conv, Gemm, MatMul   acc = sum x_a w_a + b_a                      exact integers
      "multiply"         y = clamp(round(acc * (s_x s_w / s_y)))      clamp also does ReLU and Clip
      "range"            y = clamp(round(fma(acc * (s_x s_w) + b, k, -low k)))
      "dequantize"       r = acc * (s_x s_w) + b;  activation;  y = clamp(round(r / s_y))
      "shift"            y = clamp(floor(acc * 2^-n + 1/2))           2^-n = s_x s_w / s_y
      "scale_by_scale"   y = clamp(round((acc * s_x * s_w + b) * (1 / s_y) + z_y))
    Add "fma"            y = round(fma(x1, s1/sy, fma(x2, s2/sy, z_y - (s1/sy z1 + s2/sy z2)))), x1,
                         x2 codes
    Mul "multiply"       y = round(x1_a x2_a * (s1 s2 / sy) + z_y)
    AveragePool          sum of dequantized elements in window order, / count, round(r / s_y + z_y)
      "ratio"            sum of x_a, exact, y = clamp(round(sum * (s_x / (s_y * count))))
    GlobalAveragePool    sum of x_a, exact, y = clamp(round(sum * (s_x / (s_y * count))))
    anything else        dequantized, computed in float32, quantized again

XNNPACK's ("fixed_point", "ratio_alone", "reciprocal") stand in `kernels_xnnpack`, LiteRT's own
pools ("away", "bias") in `kernels_litert`, its reference kernels ("double_rounding",
"divide_away") in `kernels_gemmlowp`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelmill.executor import kernels_gemmlowp as gemmlowp
from modelmill.executor import kernels_litert as litert
from modelmill.executor import kernels_openvino as openvino
from modelmill.executor import kernels_xnnpack as xnnpack
from modelmill.executor.codes import Codes, channels, clamp, scale_of
from modelmill.numerics import Encoding

# ------------------------------------------------------------ a float becomes codes


def quantize_by_division(x: Tensor, encoding: Encoding) -> Codes:
    return Codes(clamp(torch.round(x / scale_of(encoding, x.dim())), encoding), encoding)


def quantize_by_range(x: Tensor, encoding: Encoding) -> Codes:
    if encoding.spec.axis is not None:
        return quantize_by_division(x, encoding)
    return openvino.quantize_alone(x, encoding)


def quantize_half_up(x: Tensor, encoding: Encoding) -> Codes:
    steps = x / scale_of(encoding, x.dim())
    return Codes(clamp(torch.floor(steps + 0.5), encoding), encoding)


def half_away(x: Tensor) -> Tensor:
    """To integers as MNN does: half away from zero, by adding a signed half and cutting."""
    return torch.trunc(x + torch.where(x < 0, -0.5, 0.5))


def quantize_away(x: Tensor, encoding: Encoding) -> Codes:
    if encoding.spec.axis is not None:
        return quantize_by_division(x, encoding)
    zero = float(encoding.zero_point)
    steps = x * float(np.float32(1) / encoding.scale) + zero
    steps = steps.clamp_(float(encoding.spec.qmin), float(encoding.spec.qmax))
    return Codes(half_away(steps) - zero, encoding)


QUANTIZE: dict[str, Callable[[Tensor, Encoding], Codes]] = {
    "divide": quantize_by_division,
    "range": quantize_by_range,
    "half_up": quantize_half_up,
    "away": quantize_away,
    "reciprocal": xnnpack.quantize_by_reciprocal,
    "divide_away": gemmlowp.quantize_half_away,
}

# ------------------------------------------------------------ an accumulator becomes codes


@dataclass(frozen=True)
class Sums:
    """The accumulator of a convolution or matrix product.

    value: sums of products of centred codes, exact, with the bias if that is quantized too.
    scale: s_x * s_w, shape () or (C,), along `axis` of value. bias: a float bias that is still to
    be added, shaped to broadcast. output: what the kernel writes, None if it hands floats on.
    x: encoding of the activations. w: the weights. depthwise: each channel is summed alone.
    """

    value: Tensor
    scale: np.ndarray
    axis: int
    bias: Tensor | None
    output: Encoding | None
    x: Encoding
    w: Codes
    depthwise: bool

    def per_channel(self, values: np.ndarray) -> Tensor:
        """`values`, one or one per channel, in the shape that broadcasts."""
        return channels(values, self.value.dim(), self.axis)


def requantize_to_real(sums: Sums) -> Tensor:
    real = sums.value.float() * sums.per_channel(sums.scale)
    return real if sums.bias is None else real + sums.bias


def requantize_by_ratio(sums: Sums) -> Tensor | Codes:
    if sums.output is None or sums.bias is not None:
        return requantize_to_real(sums)
    ratio = sums.per_channel(sums.scale / sums.output.scale)
    return Codes(clamp(torch.round(sums.value.float() * ratio), sums.output), sums.output)


def requantize_by_range(sums: Sums) -> Tensor | Codes:
    real = requantize_to_real(sums)
    return real if sums.output is None else openvino.quantize_in_integer_product(real, sums.output)


def requantize_by_factors(sums: Sums) -> Tensor:
    """Real numbers: acc * (1 / (1/s_x * 1/s_w)) + b, of float32 reciprocals; a convolution rounds
    once (a fused multiply-add), a matrix product twice.
    """
    one = np.float32(1)
    factor = sums.per_channel(one / (one / sums.x.scale * (one / sums.w.encoding.scale)))
    if sums.bias is None:
        return sums.value.float() * factor
    if sums.axis == -1:
        return sums.value.float() * factor + sums.bias
    return (sums.value.float().double() * factor.double() + sums.bias.double()).float()


def requantize_by_shift(sums: Sums) -> Tensor | Codes:
    if sums.output is None or sums.bias is not None:
        return requantize_to_real(sums)
    shifted = sums.value.double() * sums.per_channel(sums.scale / sums.output.scale)
    return Codes(clamp(torch.floor(shifted + 0.5).float(), sums.output), sums.output)


SMALLEST_WEIGHT_SCALE = np.float32(1e-6)  # MNN takes a smaller one for this
UNSIGNED = 128  # MNN's x86 kernels add it to the codes


def requantize_unsigned(sums: Sums) -> Tensor | Codes:
    """With acc = sum (x + 128) w and r = s_x / s_y, all in float32:

    y = acc s_w r + ((b - (z_x + 128) s_w sum w s_x) / s_y + z_y); depthwise, with an integer bias,
    y = (acc + int(int(b / (s_x s_w)) - (z_x + 128) sum w + int(z_y / (s_w r)))) s_w r.
    """
    output, axis = sums.output, sums.w.encoding.spec.axis
    if output is None or axis is None:
        return requantize_to_real(sums)
    s_w = np.maximum(sums.w.encoding.scale, SMALLEST_WEIGHT_SCALE)
    s_x, s_y, z_y = sums.x.scale, output.scale, np.float32(output.zero_point)
    others = [d for d in range(sums.w.centred.dim()) if d != axis]
    w_sums = sums.w.centred.double().sum(others)
    w_sum = w_sums.numpy().astype(np.float32)
    unsigned = np.float32(sums.x.zero_point + UNSIGNED)
    bias = np.zeros(1, np.float32) if sums.bias is None else sums.bias.reshape(-1).numpy()
    shape = sums.per_channel(s_w).shape
    accumulator = sums.value.double() + (w_sums * float(unsigned)).reshape(shape)
    if sums.depthwise:
        factor = s_w * (s_x / s_y)
        whole = np.trunc(np.trunc(bias / (s_x * s_w)) - w_sum * unsigned + np.trunc(z_y / factor))
        steps = (accumulator + sums.per_channel(whole)).float() * sums.per_channel(factor)
    else:
        scaled = accumulator.float() * sums.per_channel(s_w) * float(s_x / s_y)
        steps = scaled + sums.per_channel((bias - w_sum * s_w * unsigned * s_x) / s_y + z_y)
    return Codes(clamp(half_away(steps) - float(z_y), output), output)


def requantize_doubly_rounded(sums: Sums) -> Tensor | Codes:
    if sums.output is None or sums.bias is not None:
        return requantize_to_real(sums)
    scales = (sums.x.scale, sums.w.encoding.scale, sums.output.scale)
    x, w, y = (np.asarray(scale, np.float64) for scale in scales)
    shape = [1] * sums.value.dim()
    shape[sums.axis] = -1
    multiplier, exponent = (torch.as_tensor(p).reshape(shape) for p in gemmlowp.factor(x * w / y))
    times = gemmlowp.times_rounded_once if sums.axis == -1 else gemmlowp.times
    steps = times(sums.value.long(), multiplier, exponent)
    return Codes(clamp(steps.float(), sums.output), sums.output)


def requantize_scale_by_scale(sums: Sums) -> Tensor | Codes:
    real = sums.value.float() * float(sums.x.scale)
    real = real * sums.per_channel(sums.w.encoding.scale)
    real = real if sums.bias is None else real + sums.bias
    if sums.output is None:
        return real
    z = float(sums.output.zero_point)
    codes = torch.round(real * float(np.float32(1) / sums.output.scale) + z)
    return Codes(clamp(codes - z, sums.output), sums.output)


REQUANTIZE: dict[str, Callable[[Sums], Tensor | Codes]] = {
    "shift": requantize_by_shift,
    "factors": requantize_by_factors,
    "unsigned": requantize_unsigned,
    "multiply": requantize_by_ratio,
    "range": requantize_by_range,
    "dequantize": requantize_to_real,
    "double_rounding": requantize_doubly_rounded,
    "scale_by_scale": requantize_scale_by_scale,
}

# ------------------------------------------------------------ two tensors of codes


def add_by_fma(a: Codes, b: Codes, output: Encoding) -> Codes:
    ratio_a, ratio_b = a.encoding.scale / output.scale, b.encoding.scale / output.scale
    z_a, z_b, z = (np.float32(e.zero_point) for e in (a.encoding, b.encoding, output))
    fixed = z - (ratio_a * z_a + ratio_b * z_b)
    # A fused multiply-add rounds once: the product is exact in float64, and so is the sum before
    # it is rounded.
    inner = ((b.centred.double() + float(z_b)) * float(ratio_b) + float(fixed)).float()
    outer = ((a.centred.double() + float(z_a)) * float(ratio_a) + inner.double()).float()
    return Codes(clamp(torch.round(outer) - float(z), output), output)


def add_by_reciprocal(a: Codes, b: Codes, output: Encoding) -> Codes:
    return _by_reciprocal(a.real + b.real, output)


def subtract_by_reciprocal(a: Codes, b: Codes, output: Encoding) -> Codes:
    return _by_reciprocal(a.real - b.real, output)


def multiply_by_reciprocal(a: Codes, b: Codes, output: Encoding) -> Codes:
    return _by_reciprocal(a.real * b.real, output)


def _by_reciprocal(real: Tensor, output: Encoding) -> Codes:
    steps = real * float(np.float32(1) / output.scale)
    return Codes(clamp(half_away(steps), output), output)


def multiply_by_ratio(a: Codes, b: Codes, output: Encoding) -> Codes:
    ratio = float(a.encoding.scale * b.encoding.scale / output.scale)
    z = float(output.zero_point)
    return Codes(clamp(torch.round(a.centred * b.centred * ratio + z) - z, output), output)


# What is not here is computed in float between the codes.
ADD: dict[str, Callable[[Codes, Codes, Encoding], Codes]] = {
    "fma": add_by_fma,
    "reciprocal": add_by_reciprocal,
    "fixed_point": xnnpack.add_in_fixed_point,
    "double_rounding": gemmlowp.add_doubly_rounded,
}
SUBTRACT: dict[str, Callable[[Codes, Codes, Encoding], Codes]] = {
    "reciprocal": subtract_by_reciprocal,
    "fixed_point": xnnpack.subtract_in_fixed_point,
    "double_rounding": gemmlowp.subtract_doubly_rounded,
}
MULTIPLY: dict[str, Callable[[Codes, Codes, Encoding], Codes]] = {
    "ratio": multiply_by_ratio,
    "ratio_alone": xnnpack.multiply_and_round,
    "reciprocal": multiply_by_reciprocal,
    "double_rounding": gemmlowp.multiply_doubly_rounded,
}
LEAKY_RELU: dict[str, Callable[[Codes, float, Encoding], Codes]] = {
    "fixed_point": xnnpack.leaky_in_fixed_point,
    "double_rounding": gemmlowp.leaky_doubly_rounded,
}

# ------------------------------------------------------------ pools


def global_average_by_ratio(x: Codes, output: Encoding) -> Codes:
    axes = tuple(range(2, x.centred.dim()))
    size = np.float32(x.centred[0, 0].numel())
    ratio = float(x.encoding.scale / (output.scale * size))
    total = x.centred.double().sum(axes, keepdim=True).float()
    return Codes(clamp(torch.round(total * ratio), output), output)


def average_in_sequence(x: Codes, attributes: dict[str, Any], output: Encoding) -> Codes | None:
    """None where the engine has no such kernel."""
    padded_by_name = attributes.get("auto_pad", "NOTSET") != "NOTSET"
    if x.centred.dim() != 4 or padded_by_name or attributes.get("ceil_mode", 0):
        return None
    total, count = _sequential_sum(x.real, attributes)
    z = float(output.zero_point)
    steps = total / count / scale_of(output, 4)
    return Codes(clamp(torch.round(steps + z) - z, output), output)


def average_by_ratio(x: Codes, attributes: dict[str, Any], output: Encoding) -> Codes | None:
    """None where windows count different numbers of elements."""
    padded_by_name = attributes.get("auto_pad", "NOTSET") != "NOTSET"
    uneven = any(attributes.get("pads", ())) and not attributes.get("count_include_pad", 0)
    if x.centred.dim() != 4 or padded_by_name or attributes.get("ceil_mode", 0) or uneven:
        return None
    total, _ = _sequential_sum(x.centred, attributes)
    size = np.float32(np.prod(attributes["kernel_shape"]))
    ratio = float(x.encoding.scale / (output.scale * size))
    return Codes(clamp(torch.round(total * ratio), output), output)


def average_by_floor(x: Codes, attributes: dict[str, Any], output: Encoding) -> Codes | None:
    """None where the engine has no such kernel."""
    padded_by_name = attributes.get("auto_pad", "NOTSET") != "NOTSET"
    if x.encoding != output or padded_by_name or attributes.get("ceil_mode", 0):
        return None
    shift = float(x.encoding.zero_point) - x.encoding.spec.qmin
    # Padding is not counted, so it adds nothing to a sum of codes either.
    total, count = _sequential_sum(x.centred, attributes)
    factor = torch.floor(2**24 / count.double())
    unsigned = torch.floor((total.double() + shift * count) * factor / 2**24)
    return Codes((unsigned - shift).float(), output)


def global_average_by_floor(x: Codes, output: Encoding) -> Codes:
    window = {"kernel_shape": tuple(x.centred.shape[2:])}
    made = average_by_floor(x, window, output)
    return made if made is not None else global_average_by_ratio(x, output)


AveragePool = Callable[[Codes, dict[str, Any], Encoding], Codes | None]
AVERAGE_POOL: dict[str, AveragePool] = {
    "sequential": average_in_sequence,
    "ratio": average_by_ratio,
    "floor": average_by_floor,
    "away": litert.average_in_integers,
}
GLOBAL_AVERAGE_POOL: dict[str, Callable[[Codes, Encoding], Codes]] = {
    "ratio": global_average_by_ratio,
    "floor": global_average_by_floor,
    "bias": litert.global_average_with_bias,
    "double_rounding": gemmlowp.global_average_doubly_rounded,
}


def _sequential_sum(x_NCHW: Tensor, attributes: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Window sums, added element by element in row order, and the number to divide each by."""
    kernel_h, kernel_w = map(int, attributes["kernel_shape"])
    stride_h, stride_w = map(int, attributes.get("strides", (1, 1)))
    top, left, bottom, right = map(int, attributes.get("pads", (0, 0, 0, 0)))
    padded = torch.nn.functional.pad(x_NCHW, (left, right, top, bottom))
    inside = torch.nn.functional.pad(torch.ones_like(x_NCHW[:1, :1]), (left, right, top, bottom))
    rows = (padded.shape[2] - kernel_h) // stride_h + 1
    columns = (padded.shape[3] - kernel_w) // stride_w + 1
    total = x_NCHW.new_zeros((*x_NCHW.shape[:2], rows, columns))
    count = x_NCHW.new_zeros((1, 1, rows, columns))
    for h in range(kernel_h):
        for w in range(kernel_w):
            window = (
                ...,
                slice(h, h + rows * stride_h, stride_h),
                slice(w, w + columns * stride_w, stride_w),
            )
            total += padded[window]
            count += inside[window]
    if attributes.get("count_include_pad", 0):
        count.fill_(kernel_h * kernel_w)
    return total, count
