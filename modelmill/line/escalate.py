"""The accuracy loop: where a target loses more than is allowed, what costs more is tried, one
after another, until the score of the engine itself is good enough.

Every attempt is quantized, converted and scored; only the one that is kept is compared with its
simulation and timed. Kept is the first that meets the limit, else the best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from modelmill.line import attempt as attempts
from modelmill.line import mixed
from modelmill.line.attempt import Attempt, attempt_from, with_algorithm
from modelmill.line.deploy import Scored
from modelmill.line.job import Job
from modelmill.line.mixed import Found
from modelmill.line.options import SEARCHED
from modelmill.line.quantize import Recipe, Where
from modelmill.line.report import AttemptReport
from modelmill.line.store import Json, OutputError
from modelmill.numerics import parse_precision
from modelmill.quant.bias_correction import BiasCorrection
from modelmill.quant.equalize import Equalize
from modelmill.runtimes import DeploymentError
from modelmill.targets import Target

# In this order, cheapest first: seconds, seconds, then minutes. At 8 bits rounding to the nearest
# is nearly always enough. Below it is hopeless, and with 4 bits or fewer AdaRound, which leaves the
# steps of activations as they are, is too weak: a build starts where success is likely.
LADDER = ("round", "ranges", "adaround", "qdrop")
ROUNDS_FROM, LEARNS_ROUNDING_FROM = 8, 5  # bits

UNKNOWN = Scored(float("nan"), 0.0)


def first_rung(precision: str) -> str:
    """Where a build at this precision starts."""
    least = min(parse_precision(precision))
    if least >= ROUNDS_FROM:
        return "round"
    return "adaround" if least >= LEARNS_ROUNDING_FROM else "qdrop"


def begin(job: Job, chosen: Mapping[str, Target]) -> dict[str, Kept]:
    """The first attempt for every target, quantized; by one pass of the calibration data for all
    that begin alike.
    """
    o = job.options
    assert o.recipe is not None
    first = first_attempt(o.algorithm, o.recipe, o.where(), o.seed)
    held = o.attempts or {}
    firsts = {n: attempt_from(held[n]) if n in held else first for n in chosen}
    logs: dict[str, Json] = {}
    for attempt in dict.fromkeys(firsts.values()):
        group = {n: target for n, target in chosen.items() if firsts[n] == attempt}
        logs |= attempts.quantized(job, group, attempt)
    return {n: Kept(firsts[n], logs[n]) for n in chosen}


def first_attempt(algorithm: str, recipe: Recipe, where: Where, seed: int) -> Attempt:
    """What a build does first, for all targets: what was asked for, or where the ladder begins."""
    name = algorithm if algorithm != SEARCHED else first_rung(where.precision)
    if algorithm == SEARCHED and recipe.reconstruct is not None:  # given from Python: as it is
        return Attempt(type(recipe.reconstruct).__name__.lower(), recipe, where)
    return Attempt(name, with_algorithm(recipe, name, where, seed), where)


def other_ranges(recipe: Recipe) -> Recipe:
    """The recipe with ranges by squared error, or by extremes where it has these already; and with
    equalization and bias correction.
    """
    activations = "minmax" if recipe.calibrate.activations == "mse" else "mse"
    return replace(
        recipe,
        equalize=recipe.equalize or Equalize(),
        calibrate=replace(recipe.calibrate, activations=activations),
        bias_correction=recipe.bias_correction or BiasCorrection(),
    )


def rungs_after(name: str) -> tuple[str, ...]:
    """What comes after an attempt of that name, costlier each time."""
    return LADDER[LADDER.index(name) + 1 :] if name in LADDER else ()


def climb_from(best: Attempt, name: str, seed: int) -> Attempt:
    """The next attempt, on top of what has helped so far."""
    if name == "ranges":
        return Attempt(name, other_ranges(best.recipe), best.where)
    return Attempt(name, with_algorithm(best.recipe, name, best.where, seed), best.where)


@dataclass(frozen=True)
class Kept:
    """The attempt that a target is deployed with, what it logged, its score; and all that were
    tried.
    """

    attempt: Attempt
    log: Json
    scored: Scored = UNKNOWN
    tried: tuple[AttemptReport, ...] = ()


def settle(job: Job, target: Target, begun: Kept, base: float) -> Kept:
    """Score what a build began with, and go on as far as the options say.

    base: the float score on the same images.

    Raises:
        DeploymentError: the engine runs not even the first.
    """
    first, log = begun.attempt, begun.log
    scored = attempts.score(job, target, first, log)
    best = Kept(first, log, scored, (_report(job, first, log, scored, base, None),))
    options = job.options
    if options.attempts is not None:  # an earlier build has chosen
        return _marked(best)
    if options.precision == SEARCHED:
        return _marked(_search(job, target, base, best))
    if options.algorithm == SEARCHED and not _meets(job, best, base):
        best = _climb(job, target, base, best)
    return _marked(best)


def _climb(job: Job, target: Target, base: float, best: Kept) -> Kept:
    """One rung after another until the limit is met, bits of single layers last."""
    for name in rungs_after(best.attempt.name):
        _say(job, target, best.tried[-1], f"trying {name}")
        attempt = climb_from(best.attempt, name, job.options.seed)
        best = _better(best, _try(job, target, attempt, base, best))
        if _meets(job, best, base):
            _say(job, target, best.tried[-1], "that is good enough")
            return best
    _say(job, target, best.tried[-1], "trying more bits for the layers that cost most")
    best = _search(job, target, base, best)
    if not _meets(job, best, base):
        job.show.say(f"{target.name}: nothing else is left to try; {best.attempt.name} is kept")
    return best


def _search(job: Job, target: Target, base: float, best: Kept) -> Kept:
    """What a search for bits leads to: one of its candidates; float where that is fastest, or
    where none of them is good enough and no bits were asked for.
    """
    try:
        found = mixed.search(job, target, best.attempt)
    except OutputError:
        raise
    except (DeploymentError, ValueError) as error:
        if job.options.precision == SEARCHED:
            raise
        failed = AttemptReport("mixed", None, None, None, 0.0, failed=str(error))
        return replace(best, tried=(*best.tried, failed))
    kept = best if found.floats else _bisect(job, target, found, base, best)
    free = job.options.precision == SEARCHED  # to keep float: no bits were asked for
    if found.floats or (free and not _meets(job, kept, base)):
        tried = _try(job, target, found.floating(), base, kept)
        kept = tried if tried.log else replace(kept, tried=tried.tried)  # empty: it failed
    return replace(kept, log={**kept.log, "search": found.with_kept(kept.attempt.name)})


def _bisect(job: Job, target: Target, found: Found, base: float, best: Kept) -> Kept:
    """Of the candidates the cheapest that meets the limit; where none does, the best of all that
    was tried.
    """
    cheapest: Kept | None = None
    low, high, at = 0, found.count, found.start()
    while low < high:
        attempt = found.attempt(job, at)
        job.show.say(f"{target.name}: trying {attempt.name}, candidate {at + 1} of {found.count}")
        tried = _try(job, target, attempt, base, best)
        best, meets = _better(best, tried), _meets(job, tried, base)
        _say(job, target, tried.tried[-1], "that is good enough" if meets else "that is too much")
        if meets:
            cheapest, high = tried, at
            if found.proven and at == found.start():  # what is cheaper is a prediction only
                break
        else:
            low = at + 1
        at = (low + high) // 2
    return best if cheapest is None else replace(cheapest, tried=best.tried)


def _try(job: Job, target: Target, attempt: Attempt, base: float, best: Kept) -> Kept:
    """One more attempt, after those that led to the best so far. One that fails did not help."""
    try:
        log = attempts.quantized(job, {target.name: target}, attempt, first=False)[target.name]
        scored = attempts.score(job, target, attempt, log, first=False)
    except OutputError:
        raise
    except (DeploymentError, ValueError) as error:
        failed = AttemptReport(attempt.name, None, None, None, 0.0, failed=str(error))
        return Kept(attempt, {}, UNKNOWN, (*best.tried, failed))
    report = _report(job, attempt, log, scored, base, best.scored.value)
    return Kept(attempt, log, scored, (*best.tried, report))


def _better(best: Kept, tried: Kept) -> Kept:
    """The better of two, with all that was tried."""
    won = tried if tried.scored.value > best.scored.value else best
    return replace(won, tried=tried.tried)


def _meets(job: Job, kept: Kept, base: float) -> bool:
    """Whether the loss is within the limit; exactly the limit is allowed, whatever its last bit."""
    return base - kept.scored.value <= job.options.max_drop + 1e-9


def _report(
    job: Job, attempt: Attempt, log: Json, scored: Scored, base: float, before: float | None
) -> AttemptReport:
    gained = None if before is None else scored.value - before
    seconds = round(log["seconds"] + scored.seconds, 3)
    return AttemptReport(attempt.name, scored.value, base - scored.value, gained, seconds)


def _marked(kept: Kept) -> Kept:
    """With the attempt that is kept marked as such."""
    tried = tuple(replace(t, kept=t.name == kept.attempt.name) for t in kept.tried)
    return replace(kept, tried=tried)


def _say(job: Job, target: Target, tried: AttemptReport, then: str) -> None:
    """What an attempt gave and what comes next."""
    if tried.failed is not None:
        found = f"failed ({tried.failed})"
    else:
        assert tried.drop is not None
        gained = "" if tried.gained is None else f", {tried.gained:+.4f} over the best before"
        limit = f"--max-drop allows {job.options.max_drop:g}"
        found = f"{tried.score:.4f} is {tried.drop:.4f} below float{gained}; {limit}"
    job.show.say(f"{target.name}, {tried.name}: {found}; {then}")
