"""Several noises at once: the worst of each together, and a greedy search for the worst case.

Greedy: noises in the order of what they cost alone; of each, the options that cost most alone are
tried on top of what was chosen so far, and the worst stays if it costs anything. Mistakes are no
part of either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelmill.audit import Noise, Option, Pipeline
from modelmill.line.audit_measure import Asked, Judge, judge_all
from modelmill.line.audit_report import Outcome, Together
from modelmill.line.audit_work import Bench
from modelmill.line.show import SILENT

TRIED = 2  # options of a noise that greedy tries


@dataclass(frozen=True)
class Candidate:
    """An option that was measured alone."""

    noise: Noise
    option: Option
    outcome: Outcome


def ranked(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Per noise the options from the worst on, the worst noise first; mistakes and what changes
    nothing are left out.
    """
    counted = [c for c in candidates if not c.option.mistake and not c.outcome.same]
    names = dict.fromkeys(c.noise.name for c in counted)
    groups = [
        sorted(
            (c for c in counted if c.noise.name == name), key=lambda c: _cost(c.outcome),
            reverse=True,
        )
        for name in names
    ]  # fmt: skip
    return sorted(groups, key=lambda group: _cost(group[0].outcome), reverse=True)


def _cost(outcome: Outcome) -> tuple[float, float]:
    """What ranks: score lost, then the share of changed predictions."""
    return outcome.harm, outcome.changed


def combined(
    base: Pipeline, candidates: Sequence[Candidate], bench: Bench, judge: Judge
) -> Together | None:
    """The worst option of every noise at once; None of fewer than two noises."""
    worst = [group[0] for group in ranked(candidates)]
    worst.sort(key=lambda c: candidates.index(c))  # in the order of the stages
    pipeline, chosen = base, []
    for candidate in worst:
        tried = candidate.option.change(pipeline)
        if not bench.failures([tried])[0]:  # two rewrites may not stand one another
            pipeline = tried
            chosen.append(candidate)
    if len(chosen) < 2:
        return None
    answers = bench.try_all("combined", [base, pipeline])[1]
    steps = tuple((c.noise.name, c.option.name, c.outcome.harm) for c in chosen)
    words = "the worst option of every noise at once"
    return Together(steps, judge.judge(Asked("all", "together", "combined", words, answers)))


def greedy(
    base: Pipeline, candidates: Sequence[Candidate], bench: Bench, judge: Judge
) -> Together | None:
    """The worst case found; None where nothing costs anything."""
    pipeline, steps, best = base, [], None
    for group in ranked(candidates):
        tried = [(c, c.option.change(pipeline)) for c in group[:TRIED]]
        failures = bench.failures([p for _, p in tried])
        tried = [pair for pair, why in zip(tried, failures, strict=True) if not why]
        if not tried:
            continue
        noise = group[0].noise.name
        found = bench.try_all(f"worst case, {noise}", [base, *(p for _, p in tried)])[1:]
        asked = [Asked("all", "together", "greedy", "the worst case found", a) for a in found]
        outcomes = judge_all(judge, asked, bench.crew, SILENT)
        worst = max(range(len(tried)), key=lambda i: _cost(outcomes[i]))
        if outcomes[worst].harm <= (0.0 if best is None else best.harm):
            continue
        best = outcomes[worst]
        candidate, pipeline = tried[worst]
        steps.append((noise, candidate.option.name, best.harm))
    return None if best is None else Together(tuple(steps), best)
