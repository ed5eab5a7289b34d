"""Fake quantization: a real tensor rounded to what an Encoding can express, with a gradient.

    q = clamp(round_half_even(x / scale), qmin - zero_point, qmax - zero_point);  y = q * scale

The gradient of rounding is taken as 1 and that of clamping is exact (straight-through estimator,
Bengio, Leonard and Courville 2013, arXiv:1308.3432): 1 where q was inside, 0 where it was clamped.
Logarithmic codes: `codes.to_logarithm`, the gradient likewise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modelmill.executor.codes import to_logarithm
from modelmill.numerics import Encoding


class FakeQuantize(nn.Module):
    """The simulation of one Encoding; bit-exact with `Encoding.fake` on float32."""

    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self.encoding = encoding
        spec = encoding.spec
        low, high = spec.qmin - encoding.zero_point, spec.qmax - encoding.zero_point
        kept = {"scale": encoding.scale, "low": low, "high": high}
        for name, array in kept.items():
            # not in the state dict: the encodings are the Plan's to keep
            self.register_buffer(name, torch.tensor(array, dtype=torch.float32), persistent=False)
        self._limits: tuple[int, int] | None = None  # plain numbers clamp faster than tensors
        if (low == low.flat[0]).all():
            self._limits = (int(low.flat[0]), int(high.flat[0]))

    def forward(self, x: Tensor) -> Tensor:
        """`x` (any shape that has the channel axis) rounded to what the codes can express."""
        return self._run(x, None)

    def in_place(self, x: Tensor) -> Tensor:
        """The same, in the memory of `x`; without gradient."""
        return self._run(x, x)

    def _run(self, x: Tensor, out: Tensor | None) -> Tensor:
        if self.encoding.spec.logarithmic:
            return _log_fake(x, self.encoding)
        scale, low, high = self.scale, self.low, self.high
        axis = self.encoding.spec.axis
        if axis is not None:
            shape = [-1 if i == axis % x.dim() else 1 for i in range(x.dim())]
            scale, low, high = scale.reshape(shape), low.reshape(shape), high.reshape(shape)
        limits = self._limits or (low, high)
        if self.encoding.spec.bits == 32:  # a bias: float32 cannot hold every int32 code
            return _fake(x.double(), scale.double(), limits, None).to(x.dtype)
        return _fake(x, scale, limits, out)


def _fake(x: Tensor, scale: Tensor, limits: tuple[Any, Any], out: Tensor | None) -> Tensor:
    if out is None and x.requires_grad and torch.is_grad_enabled():
        result: Tensor = _StraightThrough.apply(x, scale, *limits)  # type: ignore[no-untyped-call]
        return result
    return torch.div(x, scale, out=out).round_().clamp_(*limits).mul_(scale)


def _log_fake(x: Tensor, encoding: Encoding) -> Tensor:
    result = to_logarithm(x.detach(), encoding).real.to(x.device)
    if not (x.requires_grad and torch.is_grad_enabled()):
        return result
    inside = x.clamp(float(encoding.low), float(encoding.high))
    return result + (inside - inside.detach())


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Any, high: Any) -> Tensor:
        codes = torch.div(x, scale).round_()
        ctx.save_for_backward((codes >= low) & (codes <= high))
        return codes.clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None, None
