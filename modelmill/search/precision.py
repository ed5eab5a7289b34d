"""The precision of every layer: the smallest or fastest model whose predicted noise is within a
limit, and all that are better than others in one of the two.

    1  noise of every layer alone at every precision            `sensitivity`, measured
    2  bytes, or milliseconds on the engine, of every layer      `cost`, counted or measured
    3  the Pareto front of both                                  `allocate`
    4  for latency: the model chosen, the uniform one and the float one timed on the engine

The prediction assumes that noise and cost add up over layers, and knows nothing of bias correction
or reconstruction: what counts is the deployed score, which the caller measures on a few candidates
of the front.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from modelmill import ir, targets
from modelmill.latency import Latency, Speedup, compare
from modelmill.quant.calibrate import Calibrate, activation_names, encode
from modelmill.quant.observe import Batches, Statistics, observe, take
from modelmill.runtimes import SessionOptions
from modelmill.search.allocate import Option, front
from modelmill.search.cost import (
    FLOAT_BITS,
    Bench,
    LayerTime,
    Planner,
    layer_bytes,
    layer_times,
    stored_bits,
    time_files,
)
from modelmill.search.sensitivity import (
    REST,
    Bits,
    Probe,
    Unit,
    in_db,
    key,
    sensitivities,
    units,
)
from modelmill.targets import Target

Answer = Literal["mixed", "uniform", "float"]
BASE_BITS = 8
UNKNOWN_MS = 1e-6  # saved by a layer whose time is not known: it is on integers without a reason
CALIBRATE = Calibrate()


@dataclass(frozen=True)
class Goal:
    """What is wanted.

    objective: what is made small, "size" (bytes of the layers) or "latency" (ms on the engine).
    limit_db: least SQNR of the outputs, predicted; Protect's threshold is 24. None: that of uniform
        8 bits, for who knows that these score well enough.
    weight_bits: bits to choose from, besides float. activation_bits: the same for what layers read;
        empty: as the plan has them. Below 8 no engine runs them.
    first_last: least bits of the first and the last layers; 0: they are like the others.
    images: so many calibration images are looked at.
    candidates: at most about so many of the Pareto front are given back.
    """

    objective: Literal["size", "latency"] = "size"
    limit_db: float | None = 24.0
    weight_bits: tuple[int, ...] = (2, 3, 4, 8)
    activation_bits: tuple[int, ...] = ()
    first_last: int = 8
    images: int = 32
    candidates: int = 40
    calibrate: Calibrate = CALIBRATE

    def __post_init__(self) -> None:
        if self.objective not in ("size", "latency"):
            raise ValueError(f"unknown objective {self.objective!r}. Choices: size, latency")


@dataclass(frozen=True)
class Candidate:
    """One assignment of bits, as `line.quantize.Where` takes it.

    layers: (node, bits of the weight, bits of what it reads) of every layer on integers, in graph
    order. keep_float: names of the others. noise_db: predicted SQNR of the outputs. bytes: of the
    constants of all layers as the file stores them. ms: predicted p50 of the model, batch 1; None
    where the objective is size.
    """

    layers: tuple[tuple[str, int, int], ...]
    keep_float: tuple[str, ...]
    noise_db: float
    bytes: int
    ms: float | None = None

    @property
    def integer(self) -> bool:
        """Whether any layer is left on integers."""
        return bool(self.layers)


@dataclass(frozen=True)
class Verified:
    """Whole models on the engine, in turns: p50 in ms. mixed_ms is None where mixed is uniform.
    over_float, over_uniform: how many times as fast the model of the answer is.
    """

    float_ms: float
    uniform_ms: float
    mixed_ms: float | None
    over_float: Speedup
    over_uniform: Speedup


@dataclass(frozen=True)
class Choice:
    """The outcome.

    answer: "mixed"; "uniform", every layer at 8 bits; or "float": do not quantize this model for
        this target (its integer kernels are slower than float, or nothing else is within the
        limit).
    chosen: the candidate of the answer.
    uniform: every layer at 8 bits. pareto: by rising cost and rising noise_db, the last may be all
        float; what is within the limit and what is not.
    times: of each layer alone, by node. sensitivity: noise by `sensitivity.key`, to be given back
        as `Notebook.known`. verified: of latency only. notes: for the user.
    """

    answer: Answer
    chosen: Candidate
    uniform: Candidate
    pareto: tuple[Candidate, ...]
    sensitivity: Mapping[str, float] = field(hash=False)
    times: Mapping[str, LayerTime] = field(default_factory=dict, hash=False)
    verified: Verified | None = None
    notes: tuple[str, ...] = ()


def _ignore(name: str, noise: float) -> None:
    """Nothing is written down."""


def _silent(what: str, done: int, total: int) -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class Notebook:
    """What is known before, and who is told what is found.

    known: noise by `sensitivity.key` of the same graph, plan, images and calibration, not measured
    again. note(key, noise): called after each measurement, so that a killed search can go on.
    show(what, done, total): progress.
    """

    known: Mapping[str, float] = field(default_factory=dict, hash=False)
    note: Callable[[str, float], None] = _ignore
    show: Callable[[str, int, int], None] = _silent


GOAL, BENCH, NOTEBOOK = Goal(), Bench(), Notebook()


def choose(
    graph: ir.Graph,
    target: Target,
    plan: Planner,
    batches: Batches,
    goal: Goal = GOAL,
    bench: Bench = BENCH,
    notebook: Notebook = NOTEBOOK,
) -> Choice:
    """Bits for every layer of `graph` on `target`.

    The same inputs, the same `notebook.known` and the same times in `bench.database` give the same
    candidates. To meet a deployed score, call this once and walk `Choice.pareto`: candidates are
    sorted, cheap and noisy first, so the cheapest one that scores well enough is found by
    bisection. Each goes into a plan as `Where(layers=c.layers, keep_float=kept | {*c.keep_float})`
    at the target's 8-bit precision. For latency `Choice.chosen` has been timed: it is uniform
    unless mixed is measurably faster or uniform too noisy, and not slower than float; another
    candidate of the front is a prediction only. Give `limit_db=None` where uniform scores well
    enough.

    Args:
        graph: clean float graph, equalised if the recipe does that, after the target's passes.
        target: as for its 8-bit precision (`load_target`, not `at_precision` of fewer bits).
        plan: nodes to keep in float besides the user's -> the plan of `graph` at 8 bits, such as
            `lambda more: where.plan(graph, target, more)`.
        batches: re-iterable of {input name: array}; ranges and noise come from its first images.
        goal: what is wanted.
        bench: where layers are timed; not used for size.
        notebook: resuming and progress.

    Raises:
        ValueError: no layer to choose bits for, no image, NaN; or latency on a target without an
            engine, or with one that only emulates it.
        DeploymentError: the engine does not run the whole model.
    """
    return _Search(graph, target, plan, batches, goal, bench, notebook).run()


class _Search:
    """The state of one `choose` call."""

    def __init__(
        self,
        graph: ir.Graph,
        target: Target,
        plan: Planner,
        batches: Batches,
        goal: Goal,
        bench: Bench,
        notebook: Notebook,
    ) -> None:
        self.graph, self.target, self.plan, self.batches = graph, target, plan, batches
        self.goal, self.bench, self.notebook = goal, bench, notebook
        self.base = plan(frozenset()).plan
        least = targets.layer_bits(graph, self.base, "w2a2", goal.first_last)
        if not least:
            raise ValueError(
                f"target {target.name} quantizes no layer of this model, so there are no bits to "
                f"choose; see 'modelmill check MODEL -t {target.name}'"
            )
        self.timed = goal.objective == "latency"
        if self.timed and (target.runtime is None or target.emulated):
            why = "its engine only emulates it" if target.emulated else "no engine here runs it"
            raise ValueError(f"--objective latency: target {target.name} cannot be timed, {why}")
        self.nodes = {n.name or "": n for n in ir.nodes(graph)}
        self.layers = tuple(n for n in least if self.timed or _has_weight(self.nodes[n]))
        self.full = BASE_BITS, self._activation_bits()
        self.options = {unit: self._options(unit, least) for unit in units(graph, self.layers)}

    def _activation_bits(self) -> int:
        """Bits that the plan gives to what layers read."""
        reads = [(self.nodes[n].inputs[0], n) for n in self.layers]
        return max(
            spec.bits
            for value, name in reads
            if value is not None
            for point in (ir.Point(value.name or "", name, 0), ir.Point(value.name or ""))
            if point in self.base
            for spec in [self.base.spec(point)]
        )

    def _options(self, unit: Unit, least: Mapping[str, Bits]) -> tuple[Bits, ...]:
        """What a unit may have besides float, the target's own bits last. Of bits that take the
        same room in the file the most; where time is the cost, the target's own alone.
        """
        if self.timed:
            return (self.full,)
        weights, activations = (max(least[name][i] for name in unit) for i in range(2))
        held = sorted({*self.goal.weight_bits, self.full[0]})
        widest = {stored_bits(self.target, w): w for w in held if w <= self.full[0]}
        fewer = [
            (w, a)
            for w in widest.values()
            for a in sorted(self.goal.activation_bits or self.full[1:])
            if weights <= w and activations <= a <= self.full[1]
        ]
        return (*(bits for bits in fewer if bits != self.full), self.full)

    def run(self) -> Choice:
        """See `choose`."""
        statistics = self._observe()
        noise = sensitivities(
            Probe(self.graph, self.batches, self.goal.images),
            self.base,
            statistics,
            self.options,
            self.goal.calibrate,
            self.notebook.known,
            self._note(),
        )
        times = self._times()
        allocations = front([self._item(unit, noise, times) for unit in self.options])
        pareto = [self._candidate(a.picks, noise, a.cost) for a in allocations]
        uniform = self._candidate([len(o) - 1 for o in self.options.values()], noise, 0.0)
        nothing = self._candidate([len(o) for o in self.options.values()], noise, 0.0)
        pareto = [c for c in pareto if c.integer and c.noise_db < nothing.noise_db]
        limit = self._limit(uniform)
        within = [c for c in pareto if c.noise_db >= limit]
        best = within[0] if within else nothing
        held = {name: t for name, t in times.items() if isinstance(t, LayerTime)}
        choice = Choice(self._word(best, uniform), best, uniform, (*pareto, nothing), noise, held)
        choice = replace(choice, notes=self._notes(choice, times))
        if self.timed:
            choice = self._verify(choice, statistics)
        return replace(choice, pareto=_thinned(choice, self.goal.candidates))

    def _limit(self, uniform: Candidate) -> float:
        return uniform.noise_db if self.goal.limit_db is None else self.goal.limit_db

    def _observe(self) -> dict[str, Statistics]:
        """Statistics of every activation, as each may become the first of a tie where others are
        float.
        """
        constants = self.graph.graph.initializers
        names = {p.value for p in self.base if p.value not in constants}
        names |= set(activation_names(self.graph, self.base))
        return observe(self.graph, sorted(names), take(self.graph, self.batches, self.goal.images))

    def _note(self) -> Callable[[str, float], None]:
        wanted = {key(u, bits) for u, held in self.options.items() for bits in held} | {REST}
        total, done = len(wanted), len(wanted & self.notebook.known.keys())

        def note(name: str, noise: float) -> None:
            nonlocal done
            done += 1
            self.notebook.note(name, noise)
            self.notebook.show("sensitivity", done, total)

        return note

    def _times(self) -> dict[str, LayerTime | str]:
        if not self.timed:
            return {}
        show = self.notebook.show
        return layer_times(self.graph, self.target, self.plan, self.layers, self.bench, show)

    def _item(
        self, unit: Unit, noise: Mapping[str, float], times: Mapping[str, LayerTime | str]
    ) -> list[Option]:
        """The options of a unit in the order of `options`, then float."""
        if self.timed:
            held = [times[name] for name in unit]
            saved = sum(t.saved_ms if isinstance(t, LayerTime) else UNKNOWN_MS for t in held)
            return [Option(0.0, noise[key(unit, self.full)]), Option(saved, 0.0)]
        options = [
            Option(self._bytes(unit, bits[0]), noise[key(unit, bits)])
            for bits in self.options[unit]
        ]
        return [*options, Option(self._bytes(unit, FLOAT_BITS), 0.0)]

    def _bytes(self, unit: Unit, bits: int) -> int:
        """Of a unit: the weight its layers share is counted once."""
        stored = stored_bits(self.target, bits)
        return max(layer_bytes(self.nodes[name], self.base, stored) for name in unit)

    def _candidate(
        self, picks: Sequence[int], noise: Mapping[str, float], cost: float
    ) -> Candidate:
        bits: dict[str, Bits] = {}
        total, size = noise[REST], 0
        for (unit, options), pick in zip(self.options.items(), picks, strict=True):
            taken = options[pick] if pick < len(options) else None
            size += self._bytes(unit, taken[0] if taken else FLOAT_BITS)
            if taken is not None:
                total += noise[key(unit, taken)]
                bits |= dict.fromkeys(unit, taken)
        if not bits:
            total = 0.0
        layers = tuple((name, *bits[name]) for name in self.layers if name in bits)
        kept = tuple(name for name in self.layers if name not in bits)
        return Candidate(layers, kept, in_db(total), size, cost if self.timed else None)

    def _word(self, candidate: Candidate, uniform: Candidate) -> Answer:
        if not candidate.integer:
            return "float"
        return "uniform" if candidate.layers == uniform.layers else "mixed"

    def _notes(self, choice: Choice, times: Mapping[str, LayerTime | str]) -> tuple[str, ...]:
        limit, found = self._limit(choice.uniform), []
        if not choice.chosen.integer and limit > choice.uniform.noise_db:
            found.append(
                f"no assignment of bits is predicted to reach {limit:.1f} dB; all layers at "
                f"{BASE_BITS} bits have {choice.uniform.noise_db:.1f} dB"
            )
        refused = [(name, why) for name, why in times.items() if isinstance(why, str)]
        if refused:
            found.append(
                f"the times of {len(refused)} of {len(times)} layers are not known, as the engine "
                f"refused them alone; the first: {refused[0][0]}: {refused[0][1]}"
            )
        return tuple(found)

    # ------------------------------------------------------------ the whole model

    def _verify(self, choice: Choice, statistics: Mapping[str, Statistics]) -> Choice:
        """Time the whole models; keep the faster of mixed and uniform, and neither if it is slower
        than float.
        """
        files = {"float": self.graph, "uniform": self._quantized(choice.uniform, statistics)}
        if choice.answer == "mixed":
            files["mixed"] = self._quantized(choice.chosen, statistics)
        self.notebook.show("time the model", 0, 1)
        times, _ = time_files(
            self.target, files, self._picture(), self._session(), self.bench.whole
        )
        self.notebook.show("time the model", 1, 1)
        good = choice.uniform.noise_db >= self._limit(choice.uniform)
        answer, notes = settle(choice.answer, good, times)
        verified = Verified(
            float_ms=times["float"].p50_ms,
            uniform_ms=times["uniform"].p50_ms,
            mixed_ms=times["mixed"].p50_ms if "mixed" in times else None,
            over_float=compare(times["float"], times[answer]),
            over_uniform=compare(times["uniform"], times[answer]),
        )
        mixed_ms, cost = verified.mixed_ms, choice.chosen.ms or 0.0
        base = verified.uniform_ms if mixed_ms is None else mixed_ms - cost
        *quantized, nothing = (replace(c, ms=base + (c.ms or 0.0)) for c in choice.pareto)
        nothing = replace(nothing, ms=verified.float_ms)
        others = [c for c in quantized if c.layers != choice.uniform.layers]
        uniform = replace(choice.uniform, ms=verified.uniform_ms)
        mixed = replace(choice.chosen, ms=base + cost)
        chosen = {"float": nothing, "uniform": uniform, "mixed": mixed}[answer]
        return replace(
            choice,
            answer=answer,
            chosen=chosen,
            uniform=uniform,
            pareto=_fastest((*others, uniform), chosen, nothing),
            verified=verified,
            notes=(*choice.notes, *notes),
        )

    def _quantized(self, candidate: Candidate, statistics: Mapping[str, Statistics]) -> ir.Graph:
        plan = self.plan(frozenset(candidate.keep_float)).plan
        encoded = encode(self.graph, plan, statistics, self.goal.calibrate)
        return ir.to_qdq(self.graph, encoded, self.target.on_codes, self.target.shield)

    def _picture(self) -> dict[str, np.ndarray]:
        return dict(next(take(self.graph, self.batches, 1)))

    def _session(self) -> SessionOptions:
        batch = 1 if ir.is_batch_dynamic(self.graph) else None
        return replace(self.bench.options, batch=batch)


def _has_weight(node: ir.Node) -> bool:
    """Whether it holds bytes; a product of two activations keeps the bits of the plan where bytes
    are counted, as float would cost it nothing.
    """
    return any(ir.constant(value) is not None for value in node.inputs[:2])


def settle(
    answer: Answer, uniform_is_good: bool, times: Mapping[str, Latency]
) -> tuple[Answer, tuple[str, ...]]:
    """The answer that the times of the whole models leave, and why in words: mixed where uniform
    will not do or is measurably slower, and neither where it is slower than float.

    Args:
        answer: by the sum of the layers.
        uniform_is_good: whether uniform bits are within the limit of noise.
        times: of "float" and "uniform", and of "mixed" where that is the answer.
    """
    notes = []
    if answer == "float" and uniform_is_good:
        answer = "uniform"  # the layers say float; the whole model decides
    if answer == "mixed" and uniform_is_good:
        gain = compare(times["uniform"], times["mixed"])
        if gain.verdict != "faster":
            answer = "uniform"
            notes.append(f"mixed is {gain.ratio:.2f} times as fast as uniform, which is kept")
    gain = compare(times["float"], times[answer])
    if gain.ratio < 1:
        notes.append(f"{answer} is {gain.ratio:.2f} times as fast as float: the model stays float")
        answer = "float"
    return answer, tuple(notes)


def _fastest(
    candidates: Sequence[Candidate], chosen: Candidate, nothing: Candidate
) -> tuple[Candidate, ...]:
    """Those faster than float that none beats in time and noise, by rising time, then float. What
    was chosen stays, even where its time is that of float.
    """
    found: list[Candidate] = []
    for c in sorted(candidates, key=lambda c: (c.ms or 0.0, -c.noise_db)):
        better = not found or c.noise_db > found[-1].noise_db
        if better and ((c.ms or 0.0) < (nothing.ms or 0.0) or c == chosen):
            found.append(c)
    return (*found, nothing)


def _thinned(choice: Choice, most: int) -> tuple[Candidate, ...]:
    """About `most` of the front at even steps of noise, with both ends and the chosen one."""
    front = choice.pareto
    if len(front) <= most:
        return front
    steps = np.linspace(front[0].noise_db, front[-2].noise_db, most - 2)
    places = np.searchsorted([c.noise_db for c in front[:-1]], steps)
    kept = {0, len(front) - 1, *(min(int(i), len(front) - 2) for i in places)}
    kept |= {i for i, c in enumerate(front) if c == choice.chosen}
    return tuple(front[i] for i in sorted(kept))
