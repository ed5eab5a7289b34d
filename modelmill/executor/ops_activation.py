"""Activation functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def Relu(X: Tensor) -> Tensor:
    return torch.relu(X)


def Relu_(X: Tensor) -> Tensor:
    return torch.relu_(X)


def LeakyRelu(X: Tensor, *, alpha: float = 0.01) -> Tensor:
    return functional.leaky_relu(X, alpha)


def LeakyRelu_(X: Tensor, *, alpha: float = 0.01) -> Tensor:
    return functional.leaky_relu_(X, alpha)


def ThresholdedRelu(X: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(alpha < X, X, torch.zeros_like(X))


def PRelu(X: Tensor, slope: Tensor) -> Tensor:
    per_channel = X.dim() > 1 and slope.shape == (X.shape[1],) + (1,) * (X.dim() - 2)
    if X.is_floating_point() and (slope.numel() == 1 or per_channel):
        return functional.prelu(X, slope.reshape(-1))
    return torch.where(X < 0, X * slope, X)


def Elu(X: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.elu(X, alpha)


def Selu(
    X: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805
) -> Tensor:
    return gamma * functional.elu(X, alpha)


def Celu(X: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.celu(X, alpha)


def Sigmoid(X: Tensor) -> Tensor:
    return torch.sigmoid(X)


def HardSigmoid(X: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return (X * alpha + beta).clamp(0, 1)


def HardSwish(X: Tensor) -> Tensor:
    return functional.hardswish(X)


def Swish(X: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.silu(X) if alpha == 1 else X * torch.sigmoid(alpha * X)


def Mish(X: Tensor) -> Tensor:
    return functional.mish(X)


def Gelu(X: Tensor, *, approximate: str = "none") -> Tensor:
    return functional.gelu(X, approximate=approximate)


def Tanh(input: Tensor) -> Tensor:
    return torch.tanh(input)


def Softplus(X: Tensor) -> Tensor:
    return functional.softplus(X)


def Softsign(input: Tensor) -> Tensor:
    return functional.softsign(input)


def Shrink(input: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    zero = torch.zeros_like(input)
    return torch.where(input < -lambd, input + bias, torch.where(input > lambd, input - bias, zero))


def Softmax(input: Tensor, *, axis: int | None = None, opset: int) -> Tensor:
    return _normalized(functional.softmax, input, axis, opset)


def LogSoftmax(input: Tensor, *, axis: int | None = None, opset: int) -> Tensor:
    return _normalized(functional.log_softmax, input, axis, opset)


def _normalized(
    function: Callable[[Tensor, int], Tensor], x: Tensor, axis: int | None, opset: int
) -> Tensor:
    """Along one axis; before operator set 13, over all axes from `axis` (default 1) on together."""
    if opset >= 13:
        return function(x, -1 if axis is None else axis)
    start = 1 if axis is None else axis % max(x.dim(), 1)
    if start == x.dim() - 1:
        return function(x, -1)
    return function(x.reshape(*x.shape[:start], -1), -1).reshape(x.shape)
