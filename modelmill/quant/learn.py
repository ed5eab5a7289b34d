"""Learn the roundings and steps of one unit.

    min over v, s   sum over outputs of  ||F (y - y~)||^2 / ||y||^2

y is the float unit on the float path, y~ the unit with chosen roundings on what the units before
it, already quantized, hand it; F is 1, or the root of the Fisher diagonal (BRECQ). With drop p
between 0 and 1, each element of what the unit reads and of what it quantizes inside is the float
one with probability p (QDrop); with p = 1 activations inside stay float.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from modelmill.executor.fake import FakeQuantize
from modelmill.numerics import Encoding
from modelmill.quant.augment import augmented
from modelmill.quant.caches import Cache
from modelmill.quant.rounding import Masks, Rounding, Step

MOST_ELEMENTS = 1 << 22  # of one batch of a unit's largest input or output
FEWEST_IMAGES = 8  # of a batch that would have more elements
JUDGED_AT_ONCE = 32
MANY, FEW = 512, 0.3  # images; with fewer: part of the rate of `tune`
# Iterations with fewer images, for weights of so many bits and more; with 2 far more must turn.
SOON, SOON_BITS = 60, 3
Quantizers = Mapping[str, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Settings:
    """How long and how fast to learn.

    iterations: per unit. batch: images of one. rate: of v, in codes, at most, and less where
    `travel` codes would be passed on the way; weight_rate: of the logarithms of weight steps, 0 to
    leave them; activation_rate: of those of activations. All fall to 0 along half a cosine (Adam).
    drop: share of activation elements left in float. fisher: weight errors by the squared gradient
    of the network's outputs. afterwards: further iterations in which, the roundings fixed, the
    steps of activations are learned alone. tune: iterations, after all units, in which the whole
    network is learned together, tune_batch images at a time, each altered anew: steps and biases at
    tune_rate, roundings so that they may pass tune_travel codes on the way. With fewer images than
    `MANY` none is mixed, no rounding turned, all goes at `FEW` of the rate, and units learn for
    `SOON` iterations at most: few images are soon known by heart (docs/LOG.md).
    """

    iterations: int
    batch: int = 32
    rate: float = 3e-2
    travel: float = 4.5
    weight_rate: float = 1e-2
    activation_rate: float = 2e-3
    drop: float = 0.5
    fisher: bool = False
    afterwards: int = 0
    tune: int = 0
    tune_rate: float = 1e-2
    tune_batch: int = 64
    tune_travel: float = 10.0
    seed: int = 0


@dataclass(frozen=True)
class Problem:
    """One unit and its data.

    run: (inputs and weights, quantizers) -> outputs. inputs: each on the quantized and on the float
    path. targets: outputs of the float unit. weights: with their calibrated encodings. chosen:
    those that were learned before, with theirs. biases: those that
    `tune` learns. quantizers: of what the unit reads and makes for itself, as calibrated. groups:
    values among them whose step may be learned, those that share one together, where they have
    fewer than `learned_bits`. learned_on: the first so many of all images; the others judge.
    fixed_batch: the batch the graph insists on. again: the float unit, for pictures that are
    altered before they are shown; None where what it reads are not pictures.
    """

    run: Callable[[Mapping[str, Tensor], Quantizers], dict[str, Tensor]]
    inputs: Mapping[str, tuple[Cache, Cache]]
    targets: Mapping[str, Cache]
    weights: Mapping[str, tuple[Tensor, Encoding]]
    chosen: Mapping[str, tuple[Tensor, Encoding]]
    biases: Mapping[str, Tensor]
    quantizers: Mapping[str, FakeQuantize]
    groups: Sequence[tuple[str, ...]]
    fisher: Mapping[str, Tensor]
    learned_bits: int
    learned_on: int
    images: int
    fixed_batch: int | None
    again: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None


@dataclass(frozen=True)
class Learned:
    """Weights that plain rounding turns into the chosen codes, biases, and encodings of weights and
    activations, by name; all empty where plain rounding was better (`kept`). Losses relative to
    the energy of the outputs; flipped: share of codes that differ from plain rounding.
    """

    loss_before: float
    loss_after: float
    flipped: float = 0.0
    kept: bool = True
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    encodings: Mapping[str, Encoding] = field(default_factory=dict)


def learn(problem: Problem, settings: Settings, seed: int) -> Learned:
    """Solve the problem; the same seed gives the same bytes on the same machine."""
    settings = replace(settings, iterations=_length(problem, settings.iterations))
    work = _Work(problem, settings, torch.Generator().manual_seed(seed))
    before = work.judge()
    if not work.roundings or not settings.iterations:
        return Learned(before, before)
    work.optimise(settings.iterations, settings.drop, work.rates())
    if settings.afterwards and work.steps:
        work.optimise(settings.afterwards, 0.0, work.step_rates())
    after = work.judge()
    if not after <= before:  # worse, or NaN
        return Learned(before, before)
    return Learned(before, after, work.flipped(), False, *work.found())


def _length(problem: Problem, iterations: int) -> int:
    """How many iterations of those asked for the images are good for."""
    many = problem.learned_on >= MANY
    if many or any(encoding.spec.bits < SOON_BITS for _, encoding in problem.weights.values()):
        return iterations
    return min(iterations, SOON)


def tune(problem: Problem, settings: Settings, seed: int) -> Learned:
    """Learn everything that is free, from pictures altered anew in every iteration."""
    longer = replace(settings, batch=settings.tune_batch)
    work = _Work(problem, longer, torch.Generator().manual_seed(seed))
    before = work.judge()
    work.optimise(settings.tune, 0.0, work.tuned())
    after = work.judge()
    if not after <= before:
        return Learned(before, before)
    return Learned(before, after, work.flipped(), False, *work.found())


class _Work:
    """One unit at work."""

    def __init__(self, problem: Problem, settings: Settings, generator: torch.Generator) -> None:
        self.problem, self.settings, self.generator = problem, settings, generator
        self.roundings = {
            name: Rounding(w, encoding, settings.weight_rate > 0 and not encoding.spec.power_of_two)
            for name, (w, encoding) in problem.weights.items()
        }
        for name, held in problem.chosen.items():
            self.roundings[name].resume(*held)
        # biases move in parts of their own size
        self.moves = {name: torch.zeros_like(b) for name, b in problem.biases.items()}
        self.sizes = {name: float(b.abs().mean()) for name, b in problem.biases.items()}
        self.steps: dict[str, Step] = {}
        for group in problem.groups:
            encoding = problem.quantizers[group[0]].encoding
            if encoding.spec.bits < problem.learned_bits:
                self.steps |= dict.fromkeys(group, Step(encoding))
        judged = problem.images - problem.learned_on
        self.judged_on = range(problem.learned_on if judged else 0, problem.images)
        self.many = problem.learned_on >= MANY
        self.energy = {name: self._energy(cache) for name, cache in problem.targets.items()}

    def _energy(self, cache: Cache) -> float:
        """Mean square per image of a target, on the images that judge."""
        rows = cache.rows(slice(self.judged_on.start, self.judged_on.stop))
        return float(rows.square().sum()) / len(rows) or 1.0

    # ------------------------------------------------------------ the loss

    def loss(self, rows: Tensor | slice, drop: float | None, quantizers: Quantizers) -> Tensor:
        """Per image, relative to the energy of the outputs. drop None: nothing is left in float."""
        inputs, targets = self._read(rows, drop)
        feeds: dict[str, Tensor] = {n: r.weight() for n, r in self.roundings.items()}
        feeds |= {name: self.bias(name) for name in self.moves} | inputs
        total = torch.zeros(())
        for name, y in self.problem.run(feeds, quantizers).items():
            error = (y - targets[name]).square()
            if drop is not None and name in self.problem.fisher:
                error = error * self.problem.fisher[name]
            total = total + error.sum() / (len(y) * self.energy[name])
        return total

    def _read(
        self, rows: Tensor | slice, drop: float | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the unit reads and what it shall make of it."""
        if self.problem.again is not None and drop is not None:
            seen = {
                name: augmented(real.rows(rows), self.generator, self.many)
                for name, (_, real) in self.problem.inputs.items()
            }
            with torch.no_grad():
                return seen, self.problem.again(seen)
        found = {}
        for name, (quantized, real) in self.problem.inputs.items():
            x = quantized.rows(rows)
            if drop and drop < 1 and x.is_floating_point():
                mask = self.masks.like(x)
                x = x if mask is None else torch.where(mask, real.rows(rows), x)
            found[name] = x
        return found, {name: cache.rows(rows) for name, cache in self.problem.targets.items()}

    def bias(self, name: str) -> Tensor:
        """A bias as it is learned."""
        return self.problem.biases[name] + self.sizes[name] * self.moves[name]

    @torch.no_grad()
    def judge(self) -> float:
        """The loss, everything quantized, on the images kept for it."""
        quantizers = {
            name: (lambda x, step=self.steps[name]: step(x, None)) if name in self.steps else q
            for name, q in self.problem.quantizers.items()
        }
        size = self.problem.fixed_batch or JUDGED_AT_ONCE
        total, images = 0.0, self.judged_on
        for at in range(images.start, images.stop, size):
            stop = min(at + size, images.stop)
            total += float(self.loss(slice(at, stop), None, quantizers)) * (stop - at)
        return total / len(images)

    # ------------------------------------------------------------ learning

    def rates(self) -> list[tuple[list[Tensor], float]]:
        """Everything that is learned, with its rate."""
        settings = self.settings
        # Gradients are noisy and v has two sides: at a constant rate, more iterations would only
        # mean that more of them are turned over by chance.
        rate = min(settings.rate, settings.travel / settings.iterations)
        found = [
            ([r.v for r in self.roundings.values()], rate),
            (self._weight_steps(), settings.weight_rate),
        ]
        return [*found, *self.step_rates()] if settings.drop < 1 else found

    def step_rates(self) -> list[tuple[list[Tensor], float]]:
        """The steps of activations alone."""
        steps = {id(s): s.log_step for s in self.steps.values()}
        return [(list(steps.values()), self.settings.activation_rate)]

    def tuned(self) -> list[tuple[list[Tensor], float]]:
        """What `tune` learns."""
        steps = list({id(s): s.log_step for s in self.steps.values()}.values())
        free = [*self._weight_steps(), *steps, *self.moves.values()]
        roundings, settings = [r.v for r in self.roundings.values()], self.settings
        if not self.many:
            return [(free, FEW * settings.tune_rate)]
        return [(free, settings.tune_rate), (roundings, settings.tune_travel / settings.tune)]

    def _weight_steps(self) -> list[Tensor]:
        """Steps of weights that may have any length."""
        held = self.roundings.values()
        return [r.log_step for r in held if not r.encoding.spec.power_of_two]

    def optimise(
        self, iterations: int, drop: float, rates: list[tuple[list[Tensor], float]]
    ) -> None:
        """Adam; afterwards nothing has a gradient."""
        self.masks = Masks(drop, self.generator)
        rates = [(parameters, rate) for parameters, rate in rates if parameters and rate]
        free = [p for parameters, _ in rates for p in parameters]
        if not free:  # a plan without layers
            return
        for p in free:
            p.requires_grad_()
        adam = torch.optim.Adam([{"params": p} for p, _ in rates], foreach=True)
        quantizers = self._dropping(drop)
        for iteration in range(iterations):
            self._gradients(drop, quantizers)
            fall = 0.5 * (1 + math.cos(math.pi * iteration / iterations))
            for group, (_, rate) in zip(adam.param_groups, rates, strict=True):
                group["lr"] = rate * fall
            adam.step()
            adam.zero_grad(set_to_none=True)
            for rounding in self.roundings.values():
                rounding.project()
        for p in free:
            p.requires_grad_(False)

    def _dropping(self, drop: float) -> Quantizers:
        """What quantizes activations while learning: those with learned steps, unless all of them
        stay float. Eight bits and more add next to nothing to the loss, and take as long.
        """
        if drop >= 1:
            return {}
        return {name: self._dropped(step) for name, step in self.steps.items()}

    def _dropped(self, step: Step) -> Callable[[Tensor], Tensor]:
        return lambda x: step(x, self.masks.like(x))

    def _gradients(self, drop: float, quantizers: Quantizers) -> None:
        """Of one batch, in parts where the graph insists on its own."""
        images = self._batch()
        size = self.problem.fixed_batch or images
        parts = -(-images // size)
        for _ in range(parts):
            rows = torch.randint(self.problem.learned_on, (size,), generator=self.generator)
            loss = self.loss(rows, drop, quantizers) / parts
            loss.backward()  # type: ignore[no-untyped-call]

    def _batch(self) -> int:
        """Images of one: fewer than asked for where they are large."""
        caches = [*(c for pair in self.problem.inputs.values() for c in pair)]
        largest = max(c.row_elements for c in (*caches, *self.problem.targets.values()))
        return max(min(self.settings.batch, MOST_ELEMENTS // max(largest, 1)), FEWEST_IMAGES)

    def flipped(self) -> float:
        """Share of codes that differ from plain rounding."""
        codes = [r.flipped() for r in self.roundings.values()]
        return round(sum(int(c.sum()) for c in codes) / max(sum(c.numel() for c in codes), 1), 4)

    def found(self) -> tuple[dict[str, np.ndarray], dict[str, Encoding]]:
        """Weights and encodings as learned."""
        weights, encodings = {}, {}
        for name, rounding in self.roundings.items():
            weight, encodings[name] = rounding.found()
            weights[name] = np.ascontiguousarray(weight.numpy())
        weights |= {name: self.bias(name).detach().numpy() for name in self.moves}
        return weights, encodings | {n: step.found() for n, step in self.steps.items()}
