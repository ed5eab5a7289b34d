"""Mixed precision in the line: the search for bits layer by layer, and the attempts it gives.

The search (`modelmill.search`) predicts; what counts is the score of the engine. Its candidates are
sorted, cheap and noisy ones first, so the cheapest that scores well enough is found by halving.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

from modelmill.ir import Plan
from modelmill.line.attempt import Attempt, calibration, inputs_of, with_algorithm
from modelmill.line.job import Job
from modelmill.line.options import SEARCHED
from modelmill.line.quantize import Where
from modelmill.line.report import FLOAT
from modelmill.line.rewrite import rewritten
from modelmill.line.show import Advance
from modelmill.line.store import Json, key_of
from modelmill.numerics import parse_precision
from modelmill.records.database import Database
from modelmill.records.engine import UnreachableError
from modelmill.runtimes import SessionOptions
from modelmill.search import Bench, Candidate, Goal, Notebook, choose
from modelmill.targets import Target

BASE_BITS = 8
LEARNED_BELOW = 8  # bits of some weight: then roundings are learned
FEW = 12  # candidates: four of them are tried


@dataclass(frozen=True)
class Found:
    """What a search gives, as JSON: `answer`, `chosen`, `uniform`, `pareto`, `notes`."""

    held: Json
    base: Attempt

    @property
    def count(self) -> int:
        """Number of candidates."""
        return len(self.held["pareto"])

    @property
    def proven(self) -> bool:
        """Whether what the search chose has been timed, not only predicted."""
        return bool(self.held["objective"] == "latency")

    @property
    def floats(self) -> bool:
        """Whether nothing on integers is as fast as the float model, both timed as a whole."""
        return self.proven and bool(self.held["answer"] == FLOAT)

    def floating(self) -> Attempt:
        """The float model as an attempt."""
        return replace(self.base, name=FLOAT)

    def start(self) -> int:
        """The candidate to try first: what the search would choose, else the middle."""
        pareto: list[Json] = self.held["pareto"]
        chosen = self.held["chosen"]
        return pareto.index(chosen) if chosen in pareto else self.count // 2

    def attempt(self, job: Job, number: int) -> Attempt:
        """A candidate as an attempt; with weights of few bits its roundings are learned."""
        candidate: Json = self.held["pareto"][number]
        layers = tuple((name, w, a) for name, w, a in candidate["layers"])
        kept = self.base.where.keep_float | frozenset(candidate["keep_float"])
        where = replace(self.base.where, keep_float=kept, layers=layers)
        fewest = min((min(w, a) for _, w, a in layers), default=BASE_BITS)
        recipe = replace(self.base.recipe, protect=None)
        if job.options.algorithm != SEARCHED:
            recipe = with_algorithm(recipe, job.options.algorithm, where, job.options.seed)
        elif fewest < LEARNED_BELOW and recipe.reconstruct is None:
            recipe = with_algorithm(recipe, "qdrop", where, job.options.seed)
        return Attempt(_name(number), recipe, where)

    def with_kept(self, name: str) -> Json:
        """As JSON with `kept`, the number of the candidate that is deployed, None where it is none
        of them.
        """
        kept = next((i for i in range(self.count) if _name(i) == name), None)
        return {**self.held, "kept": kept}


def _name(number: int) -> str:
    """What the attempt of a candidate is called."""
    return f"mixed-{number + 1}"


def eight_bits(where: Where) -> Where:
    """The same at the target's own 8-bit precision, which candidates narrow."""
    activations = parse_precision(where.precision)[1]
    return replace(where, precision=f"w{BASE_BITS}a{max(activations, BASE_BITS)}")


def goal_of(job: Job, where: Where) -> Goal:
    """What is searched for: with --precision auto any bits, else those of the precision, 8 bits or
    float where it takes them.
    """
    o = job.options
    if o.precision == SEARCHED:
        if o.objective == "latency":  # the fastest first that is as good as uniform
            return Goal("latency", None, first_last=where.first_last, candidates=FEW)
        return Goal("size", first_last=where.first_last, candidates=FEW)
    weights, activations = parse_precision(where.precision)
    few = (activations,) if activations < BASE_BITS else ()
    return Goal("size", 24.0, (weights,), few, where.first_last, candidates=FEW)


def search(job: Job, target: Target, best: Attempt) -> Found:
    """Candidates for a target, from the recipe of the best attempt so far.

    Raises:
        ValueError: nothing to choose bits for, or latency where the target cannot be timed.
        DeploymentError: the engine does not run the model.
    """
    base = replace(best, where=eight_bits(best.where))
    goal = goal_of(job, best.where)
    inputs = {**inputs_of(job, target, base), "goal": asdict(goal)}
    key = key_of(inputs)

    def compute() -> tuple[Json, dict[str, bytes]]:
        batches = calibration(job)
        graph, recipe = job.graph, base.recipe
        if recipe.equalize is not None:
            graph, _ = recipe.equalize(graph, Plan(), batches)
        graph = rewritten(graph, target)
        wanted = replace(goal, calibrate=recipe.calibrate)
        where = base.where
        database = _database(job)
        options = SessionOptions(threads=1, timeout_s=job.options.timeout_s, batch=1)
        with ExitStack() as steps:
            choice = choose(
                graph,
                target,
                lambda more: where.plan(graph, target, more),
                batches,
                wanted,
                Bench(database, options),
                Notebook(*_notes(job, f"cache/noise-{key}.json"), _progress(job, steps)),
            )
        return {
            "answer": choice.answer,
            "chosen": _json(choice.chosen),
            "uniform": _json(choice.uniform),
            "pareto": [_json(c) for c in choice.pareto if c.integer],
            "notes": list(choice.notes),
            "objective": goal.objective,
        }, {}

    held = job.store.step(f"search-{target.name}", inputs, compute)
    for note in held["notes"]:
        job.show.say(f"{target.name}: {note}")
    return Found(held, base)


def _database(job: Job) -> Database:
    """Where times of layers are kept for all builds; for this one if that cannot be reached."""
    if job.options.db is not None:
        try:
            return Database(job.options.db)
        except UnreachableError as error:
            job.show.say(f"{error}. Layers are timed anew")
    return Database(job.store.path("records.db"))


def _json(candidate: Candidate) -> Json:
    held: Json = json.loads(json.dumps(asdict(candidate)))  # as it will be read back
    return held


def _notes(job: Job, name: str) -> tuple[Mapping[str, float], Callable[[str, float], None]]:
    """What a killed search measured, and how to write more down."""
    known: dict[str, float] = {}
    path = job.store.path(name)
    if job.options.resume and path.is_file():
        known = json.loads(path.read_bytes())

    def note(key: str, noise: float) -> None:
        known[key] = noise
        job.store.write_json(name, known)

    return dict(known), note


def _progress(job: Job, steps: ExitStack) -> Callable[[str, int, int], None]:
    """Progress of the search as steps of the build."""
    running: dict[str, Advance] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in running:
            running[what] = steps.enter_context(job.show.step(what, total))
        running[what](done)

    return show
