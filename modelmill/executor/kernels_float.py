"""Products of layers that stay in float, summed in the order of an engine.

Between two quantized tensors the last bit of a float sum decides near a tie, and a code that
differs spreads through every later layer: where the order is known it is followed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def convolve_in_turn(
    x_NCHW: Tensor,
    w_OIHW: Tensor,
    bias: Tensor | None,
    attributes: dict[str, Any],
    from_bias: bool = False,
) -> Tensor | None:
    """A convolution as fused multiply-adds from 0 on, for each row of taps, tap and input channel
    in turn, then the bias. None for padding by name.

    `from_bias`, as XNNPACK sums: from the bias on, and where each channel is summed alone for each
    column of taps.

    In float64 the product is exact and so is the sum before it is rounded, but for one case in
    2^29.
    """
    if attributes.get("auto_pad", "NOTSET") != "NOTSET" or x_NCHW.dim() != 4:
        return None
    top, left, bottom, right = map(int, attributes.get("pads", (0, 0, 0, 0)))
    stride_h, stride_w = map(int, attributes.get("strides", (1, 1)))
    step_h, step_w = map(int, attributes.get("dilations", (1, 1)))
    out, inside, taps_h, taps_w = w_OIHW.shape
    x = torch.nn.functional.pad(x_NCHW, (left, right, top, bottom)).double()
    w = w_OIHW.double()
    rows = (x.shape[2] - (taps_h - 1) * step_h - 1) // stride_h + 1
    columns = (x.shape[3] - (taps_w - 1) * step_w - 1) // stride_w + 1
    groups = int(attributes.get("group", 1))
    first = torch.arange(out) // (out // groups) * inside  # input channel of each output channel
    total = torch.zeros(x.shape[0], out, rows, columns)
    bias = None if bias is None else bias.reshape(1, -1, 1, 1)
    if from_bias and bias is not None:
        total, bias = total + bias, None
    taps = [(h, v) for h in range(taps_h) for v in range(taps_w)]
    if from_bias and groups > 1 and inside == 1:
        taps = [(h, v) for v in range(taps_w) for h in range(taps_h)]
    for h, v in taps:
        below = slice(h * step_h, h * step_h + (rows - 1) * stride_h + 1, stride_h)
        beside = slice(v * step_w, v * step_w + (columns - 1) * stride_w + 1, stride_w)
        seen = x[:, :, below, beside]
        for c in range(inside):
            read = seen[:, c : c + 1] if groups == 1 else seen[:, first + c]
            product = read * w[:, c, h, v].reshape(1, -1, 1, 1)
            total = product.add_(total).float()
    return total if bias is None else total + bias


def multiply_in_turn(
    x: Tensor, w_KN: Tensor, bias: Tensor | None, from_bias: bool = False
) -> Tensor:
    """A matrix product as fused multiply-adds from 0 on along K, then the bias; or from it on."""
    total = torch.zeros(*x.shape[:-1], w_KN.shape[1])
    if from_bias and bias is not None:
        total, bias = total + bias, None
    for k in range(w_KN.shape[0]):
        total = (x[..., k : k + 1].double() * w_KN[k].double()).add_(total).float()
    return total if bias is None else total + bias
