"""QuantizeLinear and DequantizeLinear.

    quantize    q = saturate(round_half_even(x / scale) + zero_point)
    dequantize  x = (q - zero_point) * scale

per tensor, per index of one axis, or per block of consecutive indices along it.
"""
# ruff: noqa: PLR0913 - as many parameters as the operators have inputs and attributes

from __future__ import annotations

import torch
from torch import Tensor

from modelmill.executor.ops_shape import element_type

WIDTHS = (torch.int8, torch.uint8, torch.int16, torch.uint16)


def QuantizeLinear(
    x: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    """`precision` is the type to divide in; `saturate` speaks of 8-bit floats only."""
    dtype = torch.uint8 if y_zero_point is None else y_zero_point.dtype
    if output_dtype:
        dtype = element_type(output_dtype)
    if dtype not in WIDTHS:
        raise ValueError(f"QuantizeLinear to {dtype} is not an 8 or 16 bit integer")
    if precision:
        x, y_scale = x.to(element_type(precision)), y_scale.to(element_type(precision))
    codes = torch.round(x / _spread(y_scale, x, axis, block_size)).to(torch.float32)
    if y_zero_point is not None:
        codes = codes + _spread(y_zero_point.to(torch.float32), x, axis, block_size)
    info = torch.iinfo(dtype)
    return codes.clamp(info.min, info.max).to(dtype)


def DequantizeLinear(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    dtype = element_type(output_dtype) if output_dtype else x_scale.dtype
    codes = x
    if x_zero_point is not None:
        codes = x.to(torch.int32) - _spread(x_zero_point.to(torch.int32), x, axis, block_size)
    return (codes.to(x_scale.dtype) * _spread(x_scale, x, axis, block_size)).to(dtype)


def _spread(parameter: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """Scale or zero point in a shape that broadcasts with `x`."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    axis %= x.dim()
    if block_size:
        return parameter.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])
    return parameter.reshape([-1 if i == axis else 1 for i in range(x.dim())])
