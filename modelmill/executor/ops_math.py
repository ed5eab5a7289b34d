"""Arithmetic, comparison, reduction and matrix products."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from modelmill.executor.bind import Ints

# ---------------------------------------------------------------- one operand


def Abs(X: Tensor) -> Tensor:
    return torch.abs(X)


def Neg(X: Tensor) -> Tensor:
    return torch.neg(X)


def Sign(input: Tensor) -> Tensor:
    return torch.sign(input)


def Reciprocal(X: Tensor) -> Tensor:
    return torch.reciprocal(X)


def Sqrt(X: Tensor) -> Tensor:
    return torch.sqrt(X)


def Exp(input: Tensor) -> Tensor:
    return torch.exp(input)


def Log(input: Tensor) -> Tensor:
    return torch.log(input)


def Erf(input: Tensor) -> Tensor:
    return torch.erf(input)


def Sin(input: Tensor) -> Tensor:
    return torch.sin(input)


def Cos(input: Tensor) -> Tensor:
    return torch.cos(input)


def Tan(input: Tensor) -> Tensor:
    return torch.tan(input)


def Atan(input: Tensor) -> Tensor:
    return torch.atan(input)


def Floor(X: Tensor) -> Tensor:
    return torch.floor(X)


def Ceil(X: Tensor) -> Tensor:
    return torch.ceil(X)


def Round(X: Tensor) -> Tensor:
    return torch.round(X)  # halves to even, as ONNX


def Clip(input: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    return input if min is None and max is None else torch.clamp(input, min, max)


def Clip_(input: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    return input if min is None and max is None else torch.clamp_(input, min, max)


def Not(X: Tensor) -> Tensor:
    return torch.logical_not(X)


def IsNaN(X: Tensor) -> Tensor:
    return torch.isnan(X)


def IsInf(X: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    found = torch.isinf(X)
    if not detect_negative:
        found = found & (X > 0)
    return found if detect_positive else found & (X < 0)


# ---------------------------------------------------------------- two operands, broadcast


def Add(A: Tensor, B: Tensor) -> Tensor:
    return torch.add(A, B)


def Add_(A: Tensor, B: Tensor) -> Tensor:
    return A.add_(B) if A.shape == B.shape and A.dtype == B.dtype else torch.add(A, B)


def Sub(A: Tensor, B: Tensor) -> Tensor:
    return torch.sub(A, B)


def Mul(A: Tensor, B: Tensor) -> Tensor:
    return torch.mul(A, B)


def Div(A: Tensor, B: Tensor) -> Tensor:
    return torch.div(A, B, rounding_mode=None if A.is_floating_point() else "trunc")


def Mod(A: Tensor, B: Tensor, *, fmod: int = 0) -> Tensor:
    return torch.fmod(A, B) if fmod else torch.remainder(A, B)


def Pow(X: Tensor, Y: Tensor) -> Tensor:
    """The type of the result is that of the base."""
    known = Y.device.type == "cpu" and Y.dim() == 0 and not Y.requires_grad
    power: Tensor = torch.pow(X, Y.item() if known else Y)  # x * x instead of exp(2 log x)
    return power.to(X.dtype)


def Equal(A: Tensor, B: Tensor) -> Tensor:
    return torch.eq(A, B)


def Less(A: Tensor, B: Tensor) -> Tensor:
    return torch.lt(A, B)


def LessOrEqual(A: Tensor, B: Tensor) -> Tensor:
    return torch.le(A, B)


def Greater(A: Tensor, B: Tensor) -> Tensor:
    return torch.gt(A, B)


def GreaterOrEqual(A: Tensor, B: Tensor) -> Tensor:
    return torch.ge(A, B)


def And(A: Tensor, B: Tensor) -> Tensor:
    return torch.logical_and(A, B)


def Or(A: Tensor, B: Tensor) -> Tensor:
    return torch.logical_or(A, B)


def Xor(A: Tensor, B: Tensor) -> Tensor:
    return torch.logical_xor(A, B)


def Where(condition: Tensor, X: Tensor, Y: Tensor) -> Tensor:
    return torch.where(condition, X, Y)


# ---------------------------------------------------------------- any number of operands, broadcast


def Sum(*data_0: Tensor) -> Tensor:
    return functools.reduce(torch.add, data_0)


def Mean(*data_0: Tensor) -> Tensor:
    return Sum(*data_0) / len(data_0)


def Max(*data_0: Tensor) -> Tensor:
    return functools.reduce(torch.maximum, data_0)


def Min(*data_0: Tensor) -> Tensor:
    return functools.reduce(torch.minimum, data_0)


# ---------------------------------------------------------------- reductions


def _reduced(
    function: Callable[[Tensor, Ints, bool], Tensor],
    data: Tensor,
    axes: Ints | None,
    keepdims: int,
    noop: int,
) -> Tensor:
    """`function(data, axes, keepdims)` with the axes that ONNX means; () is none of them."""
    if not axes:
        axes = () if noop else tuple(range(data.dim()))
    return function(data, axes, bool(keepdims))


def _sum(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    return torch.sum(x, axes, keep, dtype=x.dtype) if axes else x


def _mean(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    return torch.mean(x, axes, keep) if axes else x


def _max(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    return _extreme(torch.amax, x, axes, keep, lowest=True)


def _min(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    return _extreme(torch.amin, x, axes, keep, lowest=False)


def _extreme(
    function: Callable[..., Tensor], x: Tensor, axes: Ints, keep: bool, lowest: bool
) -> Tensor:
    if not axes:
        return x
    if all(x.shape[axis] for axis in axes):
        return function(x, axes, keep)
    # over nothing, the neutral element: -inf for a maximum, or the lowest number of the type
    neutral: float = float("-inf") if lowest else float("inf")
    if not x.is_floating_point():
        low, high = (0, 1) if x.dtype == torch.bool else _bounds(x.dtype)
        neutral = low if lowest else high
    return torch.full_like(_sum(x, axes, keep), neutral)


def _bounds(kind: torch.dtype) -> tuple[int, int]:
    info = torch.iinfo(kind)
    return info.min, info.max


def _prod(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


def _norm(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    return torch.linalg.vector_norm(x, 2, axes, keep) if axes else torch.abs(x)


def ReduceSum(
    data: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduced(_sum, data, axes, keepdims, noop_with_empty_axes)


def ReduceMean(
    data: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduced(_mean, data, axes, keepdims, noop_with_empty_axes)


def ReduceMax(
    data: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduced(_max, data, axes, keepdims, noop_with_empty_axes)


def ReduceMin(
    data: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduced(_min, data, axes, keepdims, noop_with_empty_axes)


def ReduceProd(
    data: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduced(_prod, data, axes, keepdims, noop_with_empty_axes)


def ReduceL1(
    data: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduced(_sum, torch.abs(data), axes, keepdims, noop_with_empty_axes)


def ReduceL2(
    data: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduced(_norm, data, axes, keepdims, noop_with_empty_axes)


def ReduceLogSum(
    data: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return torch.log(_reduced(_sum, data, axes, keepdims, noop_with_empty_axes))


def ReduceLogSumExp(
    data: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduced(torch.logsumexp, data, axes, keepdims, noop_with_empty_axes)


def ReduceSumSquare(
    data: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduced(_sum, torch.mul(data, data), axes, keepdims, noop_with_empty_axes)


def ArgMax(data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        return data.shape[axis] - 1 - torch.argmax(data.flip(axis), axis, bool(keepdims))
    return torch.argmax(data, axis, bool(keepdims))


def ArgMin(data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        return data.shape[axis] - 1 - torch.argmin(data.flip(axis), axis, bool(keepdims))
    return torch.argmin(data, axis, bool(keepdims))


def CumSum(x: Tensor, axis: int, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    turned = x.flip(axis) if reverse else x
    total = torch.cumsum(turned, axis, dtype=x.dtype)
    if exclusive:
        first = torch.zeros_like(turned.narrow(axis, 0, 1))
        total = torch.cat([first, total.narrow(axis, 0, x.shape[axis] - 1)], axis)
    return total.flip(axis) if reverse else total


# ---------------------------------------------------------------- products


def MatMul(A: Tensor, B: Tensor) -> Tensor:
    return torch.matmul(A, B)


def Gemm(
    A: Tensor,
    B: Tensor,
    C: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Alpha A' B' + beta C"""
    if transA:
        A = A.t()
    if transB:
        B = B.t()
    if C is None:
        product = A @ B
        return product if alpha == 1 else alpha * product
    return torch.addmm(C, A, B, beta=beta, alpha=alpha)


def Einsum(*Inputs: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *Inputs)
