"""What reconstruction learns: which way each weight is rounded, and the step of each quantizer.

A weight w of a channel with step s lies between two codes, floor(w / s) and the next. A variable v
for each weight chooses:

    w~ = s * clip(floor(w / s) + [v > 1/2], n, p)        dL/dv := dL/dw~ * s

which is AdaRound's choice (Nagel et al. 2020, arXiv:2004.10568, equations 21 and 22) with a step in
place of its rectified sigmoid and a straight-through gradient in place of its regulariser: the loss
that is seen is the loss that will be, from the first iteration on, and twenty times fewer of them
reach it (docs/LOG.md). v starts at the fraction w / s - floor(w / s), that is at plain rounding.

The step of an activation is learned as in LSQ (Esser et al. 2020, arXiv:1902.08153, equation 3):

    dx~/ds = round(x / s) - x / s  inside the codes, n or p outside

Both kinds of step are learned as logarithms, so that one rate fits all magnitudes. QDrop (Wei et
al. 2022, arXiv:2203.05740, equation 7) leaves each element of an activation in float with
probability p.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modelmill.numerics import Encoding

MARGIN = 0.5  # how far v may go beyond 0 and 1: what is settled stays so through a noisy step
POOL = 1 << 22  # random bits that masks are cut from: drawing new ones takes longer than a layer


class Rounding:
    """The roundings and steps of one weight.

    v: shape of the weight, in code units. log_step: shape of the scale, relative to the calibrated
    one, 0 at the start.
    """

    def __init__(self, weight: Tensor, encoding: Encoding, learn_step: bool) -> None:
        self.encoding = encoding
        axis = encoding.spec.axis
        self.shape = [1] * weight.dim()
        if axis is not None:
            self.shape[axis] = -1
        scale, zero_point = torch.tensor(encoding.scale), torch.tensor(encoding.zero_point)
        self.scale = scale.reshape(self.shape)
        self.low = (encoding.spec.qmin - zero_point).reshape(self.shape).float()
        self.high = (encoding.spec.qmax - zero_point).reshape(self.shape).float()
        codes = weight / self.scale
        self.nearest = torch.clamp(codes.round(), self.low, self.high)
        self.floor = codes.floor()
        self.v = (codes - self.floor).requires_grad_()
        self.log_step = torch.zeros_like(self.scale).requires_grad_(learn_step)

    @torch.no_grad()
    def resume(self, weight: Tensor, encoding: Encoding) -> None:
        """Go on from what `found` gave before: half a code's length from turning over."""
        held = torch.tensor(encoding.scale)
        chosen = (weight / held.reshape(self.shape)).round()
        self.v.copy_(torch.where(chosen > self.floor, 0.75, 0.25))
        self.log_step.copy_((held.reshape(self.scale.shape) / self.scale).log())

    @property
    def step(self) -> Tensor:
        """The scale as it is learned, broadcast to the weight."""
        return self.scale * self.log_step.exp()

    def weight(self) -> Tensor:
        """The weight as it is deployed, with gradients to `v` and `log_step`."""
        limits = self.floor, self.low, self.high
        weight: Tensor = _Round.apply(self.v, self.step, *limits)  # type: ignore[no-untyped-call]
        return weight

    @torch.no_grad()
    def codes(self) -> Tensor:
        """The chosen codes less the zero point, shape of the weight."""
        return torch.clamp(self.floor + (self.v > 0.5), self.low, self.high)

    @torch.no_grad()
    def project(self) -> None:
        """Keep v where it can still come back."""
        self.v.clamp_(-MARGIN, 1 + MARGIN)

    @torch.no_grad()
    def flipped(self) -> Tensor:
        """Which codes differ from those of plain rounding, bool, shape of the weight."""
        return self.codes() != self.nearest

    @torch.no_grad()
    def found(self) -> tuple[Tensor, Encoding]:
        """The weight that plain rounding turns into the chosen codes, and its encoding."""
        scale = self.step.reshape(self.encoding.scale.shape).numpy()
        encoding = Encoding(self.encoding.spec, scale, self.encoding.zero_point)
        kept = torch.tensor(encoding.scale).reshape(self.shape)
        return self.codes() * kept, encoding


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, v: Tensor, step: Tensor, floor: Tensor, low: Tensor, high: Tensor
    ) -> Tensor:
        codes = torch.clamp(floor + (v > 0.5), low, high)
        ctx.save_for_backward(codes, step)
        return codes * step

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        codes, step = ctx.saved_tensors
        return grads[0] * step, (grads[0] * codes).sum_to_size(step.shape), None, None, None


class Step:
    """The step of one activation, per tensor."""

    def __init__(self, encoding: Encoding) -> None:
        spec, zero_point = encoding.spec, int(encoding.zero_point)
        self.encoding = encoding
        self.low, self.high = spec.qmin - zero_point, spec.qmax - zero_point
        self.scale = torch.tensor(float(encoding.scale))
        self.log_step = torch.zeros(()).requires_grad_()

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`x` rounded; where the mask is True it stays as it is."""
        step = self.scale * self.log_step.exp()
        rounded: Tensor = _LearnedStep.apply(x, step, self.low, self.high, mask)  # type: ignore[no-untyped-call]
        return rounded

    @torch.no_grad()
    def found(self) -> Encoding:
        """The encoding with the learned scale."""
        scale = (self.scale * self.log_step.exp()).numpy()
        return Encoding(self.encoding.spec, scale, self.encoding.zero_point)


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, low: int, high: int, mask: Tensor | None
    ) -> Tensor:
        exact = x / step
        codes = exact.round().clamp_(low, high)
        ctx.save_for_backward(exact, codes, mask)
        ctx.limits = low, high
        result = codes * step
        return result if mask is None else torch.where(mask, x, result)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        exact, codes, mask = ctx.saved_tensors
        low, high = ctx.limits
        passes = (exact >= low) & (exact <= high)
        slope = torch.where(passes, codes - exact, codes)
        if mask is not None:
            slope, passes = slope.masked_fill_(mask, 0.0), passes.logical_or_(mask)
        return grads[0] * passes, (grads[0] * slope).sum(), None, None, None


class Masks:
    """Random masks of any shape, True with probability p: slices of one pool of random bits at
    random places, in the memory order of the tensor that they are for.
    """

    def __init__(self, p: float, generator: torch.Generator) -> None:
        self.p, self.generator = p, generator
        self.pool = torch.empty(0, dtype=torch.bool)

    def like(self, x: Tensor) -> Tensor | None:
        """A mask for `x`; None where nothing is ever left in float."""
        if not self.p:
            return None
        if len(self.pool) < max(2 * x.numel(), POOL):
            size = max(2 * x.numel(), POOL)
            self.pool = torch.rand(size, generator=self.generator) < self.p
        last = len(self.pool) - x.numel()
        start = int(torch.randint(last + 1, (1,), generator=self.generator))
        bits = self.pool[start : start + x.numel()]
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            n, c, h, w = x.shape
            return bits.view(n, h, w, c).permute(0, 3, 1, 2)
        return bits.view(x.shape)
