"""Reconstruction: learn roundings unit by unit, so that each unit's output stays what it was.

A unit is a layer (AdaRound) or a block (BRECQ, QDrop); `learn` has the loss and `rounding` what is
learned. The float network runs once: its values are kept, in half precision, from one unit to the
next, and so are those of the network quantized so far.

Memory: the model, the kept values between units (`caches`, under a budget), and one batch of one
unit with gradients.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelmill import executor, ir
from modelmill.executor.fake import FakeQuantize
from modelmill.ir import Plan, Point
from modelmill.numerics import QuantSpec
from modelmill.quant.augment import is_picture
from modelmill.quant.blocks import Partition, Unit
from modelmill.quant.caches import Budget, Cache
from modelmill.quant.calibrate import BIAS_BITS, LAYERS, encode_biases, weight_names
from modelmill.quant.learn import Learned, Problem, Settings, learn, tune
from modelmill.quant.observe import Batches
from modelmill.quant.resume import load_unit, save_unit

MEMORY = 2 << 30
CHUNK = 128  # images at a time where nothing is learned
HELD_OUT, MOST_HELD_OUT = 16, 64  # one image in so many judges the result, and at most so many
FISHER_IMAGES = 64
# Steps of activations with fewer bits are learned in units. With 8 the noise inside one is next to
# nothing, and takes as long; over the whole network it adds up.
LEARNED_BITS, TUNED_BITS = 8, 9
WHOLE = "the whole network"


@dataclass(frozen=True)
class UnitResult:
    """What became of one unit. loss_before, loss_after: squared error of its outputs relative to
    their energy, on images held out, with plain rounding and with the learned one. flipped: share
    of weight codes that differ from plain rounding. kept: plain rounding was better and stayed.
    """

    unit: str
    layers: tuple[str, ...]
    loss_before: float
    loss_after: float
    flipped: float
    kept: bool
    seconds: float


@dataclass(frozen=True)
class Reconstructed:
    """The graph with chosen weights, the plan with learned steps, and what became of each unit.

    tuned: of the whole network, which was learned last; None where they were not.
    cache_mib: peak of the kept values in memory; spilled_mib: how much of them went to disk.
    """

    graph: ir.Graph
    plan: Plan
    units: tuple[UnitResult, ...]
    notes: tuple[str, ...]
    cache_mib: float
    spilled_mib: float
    tuned: UnitResult | None = None


@dataclass(frozen=True)
class Workplace:
    """Where and how a reconstruction works.

    memory: bytes for kept values. folder: where it spills and keeps finished units, so that a
    killed run continues; it must be of this very run. None: a temporary place, nothing is kept.
    show: told (units done, units).
    """

    memory: int = MEMORY
    folder: Path | None = None
    show: Callable[[int, int], None] | None = None


WORKPLACE = Workplace()


def reconstruct(
    graph: ir.Graph,
    plan: Plan,
    batches: Batches,
    partition: Partition,
    settings: Settings,
    workplace: Workplace = WORKPLACE,
) -> Reconstructed:
    """Learn roundings and steps of `plan`, which has encodings, unit by unit.

    Raises:
        ValueError: no images, no room for the kept values, or a value becomes NaN (named).
    """
    folder, units = workplace.folder, list(partition.units)
    if settings.tune:
        units.append(_whole(graph, units))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("cache-*.bin"):  # of a run that was killed
            left.unlink()
    run = _Run(graph, plan, units, settings, Budget(workplace.memory, folder))
    results = []
    try:
        run.take_in(batches)
        for number, unit in enumerate(units):
            path = folder / f"unit-{number:03d}.npz" if folder is not None else None
            run.open(unit)
            held = load_unit(path, run.spec)
            if held is None:
                held = run.learn(unit, number)
                save_unit(path, *held)
            facts, learned = held
            run.settle(learned)
            if unit.name != WHOLE:
                run.hand_on(unit, number)
            results.append(UnitResult(**facts))
            if workplace.show is not None:
                workplace.show(number + 1, len(units))
    finally:
        run.close()
    budget = run.budget
    peaks = round(budget.peak / 2**20, 1), round(budget.spilled / 2**20, 1)
    notes = (*partition.notes, *run.notes)
    tuned = results.pop() if settings.tune else None
    return Reconstructed(*run.finished(), tuple(results), notes, *peaks, tuned)


class _Run:
    """One reconstruction at work: the values that are alive, and what was found so far."""

    def __init__(
        self,
        graph: ir.Graph,
        plan: Plan,
        units: Sequence[Unit],
        settings: Settings,
        budget: Budget,
    ) -> None:
        self.graph, self.plan, self.settings = graph, plan, settings
        self.units, self.budget = units, budget
        self.encodings = plan.encodings()
        self.constants = ir.constants(graph)
        values = (e for p, e in self.encodings.items() if p.value not in self.constants)
        if all(e.spec.bits >= LEARNED_BITS for e in values):
            # Nothing to be learned to bear; what a unit will read is the quantized path alone.
            self.settings = replace(settings, drop=1.0)
        self.learnable, self.notes = _learnable(graph, plan)
        static = {
            p: e
            for p, e in self.encodings.items()
            if p.node or (p.value in self.constants and p.value not in self.learnable)
        }
        static = {p: e for p, e in static.items() if e.spec.bits < BIAS_BITS}
        self.float_module = executor.Module(graph)
        self.module = executor.Module(graph, Plan(static)) if static else self.float_module
        self.weights: dict[str, np.ndarray] = {}  # chosen so far, by name
        self.stepped: set[Point] = set()  # activations whose step was learned
        self.batch = _fixed_batch(graph)
        self.fisher: dict[str, Tensor] = {}
        self.images = self.learned_on = 0  # the first so many are learned from, the others judge
        self.float: dict[str, Cache] = {}
        self.quantized: dict[str, Cache] = {}
        self.targets: dict[str, Cache] = {}  # float outputs of the unit at work

    # ------------------------------------------------------------ values of all images

    def take_in(self, batches: Batches) -> None:
        """Keep the graph's inputs.

        Raises:
            ValueError: no image, or no room.
        """
        sizes = [len(next(iter(feeds.values()))) for feeds in batches]
        if not sizes:
            raise ValueError(
                "reconstruction needs at least one image, found none; check --calib and --data"
            )
        self.images = sum(sizes)
        held_out = min(self.images // HELD_OUT, MOST_HELD_OUT)
        held_out -= held_out % (self.batch or 1)
        self.learned_on = self.images - held_out
        places = torch.split(_places(self.images, held_out), sizes)
        for feeds, where in zip(batches, places, strict=True):
            for name, array in feeds.items():
                if name not in self.float:
                    self.float[name] = self.quantized[name] = Cache(self.budget, self.images)
                self.float[name].append(torch.from_numpy(np.array(array)), where)
        if self.settings.fisher:
            first = slice(0, min(self.batch or FISHER_IMAGES, self.images))
            few = {name: cache.rows(first) for name, cache in self.float.items()}
            outputs = {name for unit in self.units for name in unit.outputs}
            self.fisher = fisher(self.float_module, few, sorted(outputs), self.settings.seed)

    def _chunks(self) -> Iterator[slice]:
        size = self.batch or CHUNK
        return (slice(at, min(at + size, self.images)) for at in range(0, self.images, size))

    def open(self, unit: Unit) -> None:
        """Run the float unit on all images: what its outputs shall be."""
        self.targets = {name: Cache(self.budget, self.images) for name in unit.outputs}
        with torch.no_grad():
            for rows in self._chunks():
                feeds = {name: self.float[name].rows(rows) for name in unit.inputs}
                for name, y in self.float_module(feeds, unit.outputs).items():
                    if not torch.isfinite(y).all():
                        raise ValueError(
                            f"value {name!r} holds NaN or infinity on calibration data; check the "
                            "card's scale, mean and std, then run 'modelmill inspect MODEL'"
                        )
                    self.targets[name].append(y)

    def hand_on(self, unit: Unit, number: int) -> None:
        """The outputs of the unit as it is quantized now; what nobody reads again is forgotten."""
        made = {name: Cache(self.budget, self.images) for name in unit.outputs}
        quantizers, weights = self._quantizers(unit), self._weights(unit)
        with torch.no_grad():
            for rows in self._chunks():
                feeds = {name: self.quantized[name].rows(rows) for name in unit.inputs}
                found = self._run(unit, {**feeds, **weights}, quantizers)
                for name, y in found.items():
                    made[name].append(y)
        self.float |= self.targets
        self.quantized |= made
        self.targets = {}
        later = {name for u in self.units[number + 1 :] for name in u.inputs}
        for held in (self.float, self.quantized):
            for name in [name for name in held if name not in later]:
                held.pop(name).release()

    def close(self) -> None:
        """Give all room back."""
        for held in (self.float, self.quantized, self.targets):
            for cache in held.values():
                cache.release()

    # ------------------------------------------------------------ one unit

    def _run(
        self,
        unit: Unit,
        feeds: Mapping[str, Tensor],
        quantizers: Mapping[str, Callable[[Tensor], Tensor]],
    ) -> dict[str, Tensor]:
        """The unit's outputs, before they are quantized, with weights among the feeds."""
        exact: dict[str, Tensor] = {}

        def look(name: str, x: Tensor) -> Tensor:
            if name in unit.outputs:  # the unit itself reads it, too, and reads codes
                exact[name] = x
            return quantizers[name](x)

        return self.module.visit(feeds, quantizers, look, unit.outputs) | exact

    def _quantizers(self, unit: Unit) -> dict[str, FakeQuantize]:
        """Fake quantization, as found so far, of what the unit reads and makes for itself."""
        members = set(unit.nodes)
        nodes = [n for n in ir.nodes(self.graph) if n.name in members]
        made = {o.name or "" for n in nodes for o in n.outputs}
        read = {v.name or "" for n in nodes for v in n.inputs if v is not None}
        names = [*unit.inputs, *sorted(made & read)]
        return {n: FakeQuantize(self.encodings[Point(n)]) for n in names if Point(n) in self.plan}

    def _weight_names(self, unit: Unit) -> list[str]:
        members = set(unit.layers)
        read = [n.inputs[1] for n in ir.nodes(self.graph) if n.name in members]
        names = [value.name or "" for value in read if value is not None]
        return [name for name in names if name in self.learnable]

    def _weights(self, unit: Unit) -> dict[str, Tensor]:
        """The unit's weights as they are deployed, as found so far."""
        found = {}
        for name in self._weight_names(unit):
            encoding = self.encodings[Point(name)]
            found[name] = _laid_out(encoding.fake(self.weights.get(name, self.constants[name])))
        return found

    def spec(self, name: str) -> QuantSpec:
        """The format of a value."""
        return self.plan.spec(Point(name))

    def learn(self, unit: Unit, number: int) -> tuple[dict[str, Any], Learned]:
        """The best roundings and steps of one unit; what became of it, as of UnitResult."""
        start = time.perf_counter()
        tuning = unit.name == WHOLE
        weights, chosen, calibrated = {}, {}, self.plan.encodings()
        for name in self._weight_names(unit):
            weights[name] = _laid_out(self.constants[name]), calibrated[Point(name)]
            if name in self.weights:
                chosen[name] = _laid_out(self.weights[name]), self.encodings[Point(name)]
        quantizers = self._quantizers(unit)
        problem = Problem(
            run=lambda feeds, quantize: self._run(unit, feeds, quantize),
            inputs={n: (self.quantized[n], self.float[n]) for n in unit.inputs},
            targets=self.targets,
            weights=weights,
            chosen=chosen,
            biases=self._biases(unit) if tuning else {},
            quantizers=quantizers,
            groups=self._groups(list(quantizers), again=tuning),
            fisher={n: self.fisher[n] for n in unit.outputs if n in self.fisher},
            learned_bits=TUNED_BITS if tuning else LEARNED_BITS,
            learned_on=self.learned_on,
            images=self.images,
            fixed_batch=self.batch,
            again=self._again(unit) if tuning else None,
        )
        learned = (tune if tuning else learn)(problem, self.settings, self.settings.seed + number)
        facts = {
            "unit": unit.name,
            "layers": unit.layers,
            "loss_before": learned.loss_before,
            "loss_after": learned.loss_after,
            "flipped": learned.flipped,
            "kept": learned.kept,
            "seconds": round(time.perf_counter() - start, 3),
        }
        return facts, learned

    def _again(self, unit: Unit) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None:
        """The float unit, where what it reads are pictures."""
        first = (self.float[name].rows(slice(0, 1)) for name in unit.inputs)
        if not all(is_picture(x) for x in first):
            return None
        return lambda feeds: self.float_module(feeds, unit.outputs)

    def _biases(self, unit: Unit) -> dict[str, Tensor]:
        """Biases that one layer alone reads."""
        found = {}
        for node in ir.nodes(self.graph):
            value = node.inputs[2] if node.name in unit.layers and len(node.inputs) > 2 else None
            array = ir.constant(value)
            if value is not None and array is not None and len(list(value.uses())) == 1:
                found[value.name or ""] = torch.from_numpy(np.array(array))
        return found

    def _groups(self, names: list[str], again: bool) -> list[tuple[str, ...]]:
        """Values among `names` whose step may be learned now, those that share one together;
        `again`: also those whose step was learned before.
        """
        tied = {point: group for group in self.plan.ties for point in group}
        groups: dict[Point, list[str]] = {}
        for name in names:
            point, spec = Point(name), self.plan.spec(Point(name))
            if (
                (again or point not in self.stepped)
                and not spec.power_of_two
                and not spec.logarithmic
            ):
                groups.setdefault(tied.get(point, (point,))[0], []).append(name)
        return [tuple(group) for group in groups.values()]

    def settle(self, learned: Learned) -> None:
        """Adopt what was found."""
        tied = {point: group for group in self.plan.ties for point in group}
        self.weights |= learned.weights
        for name, encoding in learned.encodings.items():
            point = Point(name)
            alike = [p for p in tied.get(point, (point,)) if p in self.plan]
            self.encodings |= dict.fromkeys(alike, encoding)
            self.stepped.update(alike)

    def finished(self) -> tuple[ir.Graph, Plan]:
        """The graph with the chosen weights, and its plan."""
        made = ir.clone(self.graph)
        for node in ir.nodes(made):
            for index, value in enumerate(node.inputs):
                if value is not None and value.name in self.weights:
                    ir.set_constant(made, node, index, self.weights[value.name])
        return made, encode_biases(made, self.plan.replace(self.encodings))


def _places(images: int, held_out: int) -> Tensor:
    """The row of each image: those held out are taken evenly, as data is often sorted by class, and
    come last.
    """
    judges = torch.zeros(images, dtype=torch.bool)
    judges[((torch.arange(held_out) + 0.5) * images / max(held_out, 1)).long()] = True
    order = torch.cat([torch.nonzero(~judges).flatten(), torch.nonzero(judges).flatten()])
    return torch.argsort(order)


def _whole(graph: ir.Graph, units: Sequence[Unit]) -> Unit:
    """The network as one unit."""
    outputs = [v for v in graph.graph.outputs if ir.dtype(v) == np.float32]
    return Unit(
        WHOLE,
        tuple(n.name or "" for n in ir.nodes(graph)),
        tuple(layer for unit in units for layer in unit.layers),
        tuple(v.name or "" for v in graph.graph.inputs if not v.is_initializer()),
        tuple(v.name or "" for v in outputs),
    )


def _learnable(graph: ir.Graph, plan: Plan) -> tuple[frozenset[str], list[str]]:
    """The weights whose roundings can be learned; notes name those that cannot."""
    names, notes = set(), []
    for name in sorted(weight_names(graph)):
        value = ir.values(graph)[name]
        if Point(name) in plan and len(list(value.uses())) == 1:
            if not plan.spec(Point(name)).logarithmic:
                names.add(name)
        elif any(point.value == name for point in plan):
            notes.append(f"weight {name} is shared by several layers: it keeps plain rounding")
    return frozenset(names), notes


def fisher(
    module: executor.Module, feeds: Mapping[str, Tensor], names: list[str], seed: int
) -> dict[str, Tensor]:
    """How much the network's outputs answer to each channel of the named values, mean 1.

    The diagonal of the Gauss-Newton matrix J^T J of the outputs, J^T r squared for random signs r
    (Hutchinson), averaged over images and places: BRECQ's squared gradient (arXiv:2102.05426,
    equation 10) without labels. Shape (1, channels, 1, ...).
    """
    generator = torch.Generator().manual_seed(seed)
    seen: dict[str, Tensor] = {}

    def look(name: str, x: Tensor) -> Tensor:
        seen[name] = x if x.requires_grad else x.detach().requires_grad_()
        seen[name].retain_grad()
        return seen[name]

    outputs = module.visit(feeds, names, look, module.outputs)
    projected: Tensor = torch.zeros(())
    for y in outputs.values():
        if y.requires_grad:
            signs = torch.randint(0, 2, y.shape, generator=generator) * 2 - 1
            projected = projected + (y * signs).sum() / y.numel() ** 0.5
    projected.backward()  # type: ignore[no-untyped-call]
    found = {}
    for name, x in seen.items():
        if x.grad is not None and x.dim() > 1:
            squared = x.grad.square().mean(dim=[d for d in range(x.dim()) if d != 1], keepdim=True)
            if float(squared.mean()) > 0:
                found[name] = squared / squared.mean()
    return found


def _fixed_batch(graph: ir.Graph) -> int | None:
    """The batch the graph insists on, None where it takes any."""
    if ir.is_batch_dynamic(graph):
        return None
    first = next(iter(ir.inputs(graph).values())).shape
    return int(first[0]) if first and isinstance(first[0], int) else None


def _laid_out(weight: np.ndarray) -> Tensor:
    """As the executor likes kernels: channels-last."""
    held = torch.from_numpy(np.array(weight, dtype=np.float32))
    return held.contiguous(memory_format=torch.channels_last) if held.dim() == 4 else held


def learned_layers(graph: ir.Graph, plan: Plan) -> tuple[str, ...]:
    """Names of the nodes whose weight has a point in the plan."""
    found = []
    for node in ir.nodes(graph):
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if ir.constant(weight) is not None and node.op_type in LAYERS:
            assert weight is not None
            if plan.at(weight.name or "", node.name or "", 1) is not None:
                found.append(node.name or "")
    return tuple(found)
