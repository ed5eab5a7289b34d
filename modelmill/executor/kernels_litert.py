"""Kernels on codes as LiteRT computes them where they are not those of `kernels_xnnpack`.

    mean          y = clamp(round(sum x * k + (z - (z_x n) k)) - z)         x codes with their zero
                  point, n how many, k = (s_x / s_y) * (1 / n); XNNPACK's, in LiteRT's build of it
    AveragePool   y = sum x / n, half away from zero, as integers           the scale stays; padding
                  that counts holds z_x; the interpreter's own kernel

s scale, z zero point, round is half to even, every operation in float32 unless said otherwise.
Found by trial against ai-edge-litert 2.2 and 2.3 (before, the mean rounds otherwise at ties) and by
tflite/kernels/internal/reference/integer_ops/pooling.h.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from modelmill.executor.codes import Codes, clamp
from modelmill.numerics import Encoding


def global_average_with_bias(x: Codes, output: Encoding) -> Codes:
    axes = tuple(range(2, x.centred.dim()))
    count = np.float32(x.centred[0, 0].numel())
    z_x, z = np.float32(x.encoding.zero_point), np.float32(output.zero_point)
    k = np.float32(x.encoding.scale / output.scale) * (np.float32(1) / count)
    bias = float(z - (z_x * count) * k)
    total = x.centred.double().sum(axes, keepdim=True) + float(z_x * count)
    return Codes(clamp(torch.round(total.float() * float(k) + bias) - float(z), output), output)


def average_in_integers(x: Codes, attributes: dict[str, Any], output: Encoding) -> Codes | None:
    """None where LiteRT has no such kernel."""
    padded_by_name = attributes.get("auto_pad", "NOTSET") != "NOTSET"
    if x.centred.dim() != 4 or padded_by_name or attributes.get("ceil_mode", 0):
        return None
    functional = torch.nn.functional
    kernel = tuple(map(int, attributes["kernel_shape"]))
    strides = tuple(map(int, attributes.get("strides", (1, 1))))
    top, left, bottom, right = map(int, attributes.get("pads", (0, 0, 0, 0)))

    def sums(values: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(values, (left, right, top, bottom))
        return functional.avg_pool2d(padded, kernel, strides, divisor_override=1)

    count = sums(torch.ones_like(x.centred[:1, :1]))
    if attributes.get("count_include_pad", 0):
        count = torch.full_like(count, kernel[0] * kernel[1])
    z = float(x.encoding.zero_point)
    whole, parts = (sums(x.centred) + z * count).long(), count.long()
    away = torch.div(whole.abs() + parts // 2, parts, rounding_mode="floor") * whole.sign()
    return Codes(clamp(away.float() - z, output), output)
