"""What a pipeline's answers are worth beside the card's: score, difference, interval, changes.

The interval of a difference is a paired bootstrap over pictures: both sides are scored on the same
draws, and the standard error of the difference gives the 95 % interval (see `line.compare`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from modelmill import plugins
from modelmill.audit import Answers, Noise, Option, Sweep
from modelmill.line.audit_report import Outcome
from modelmill.line.audit_work import Crew
from modelmill.line.compare import draws, interval
from modelmill.line.show import Show
from modelmill.tasks import Card, Task, pack


@functools.cache
def _task(name: str) -> Task:
    """Looking up a plug-in reads its folder, too slow to do for every picture."""
    found: Task = plugins.load("modelmill.tasks", name)
    return found


@dataclass(frozen=True)
class Asked:
    """Answers to be judged, and what they are of."""

    stage: str
    noise: str
    option: str
    about: str
    answers: Answers
    mistake: bool = False


def of(noise: Noise, option: Option, answers: Answers) -> Asked:
    """The answers of an option of a noise."""
    return Asked(noise.stage, noise.name, option.name, option.about, answers, option.mistake)


@dataclass(frozen=True, eq=False)
class Judge:
    """Judges answers by those of the card's pipeline.

    truths: None without labels. ids: names of the pictures. scores: of the base on all pictures and
    on every draw, empty without labels. It goes to other processes, so it names the task.
    """

    card: Card
    truths: Sequence[Any] | None
    ids: Sequence[str]
    base: Answers
    seed: int
    scores: tuple[float, ...] = ()

    @property
    def task(self) -> Task:
        """What the answers are to."""
        return _task(self.card.task)

    @property
    def metric(self) -> str:
        """The name of the score."""
        return self.task.primary(self.card)

    @property
    def score(self) -> float | None:
        """Of the card's pipeline on all pictures; None without labels."""
        return self.scores[0] if self.scores else None

    def judge(self, asked: Asked) -> Outcome:
        """What these answers are worth."""
        answers = asked.answers
        read = [i for i, p in enumerate(answers.predictions) if p is not None]
        before = [self.base.predictions[i] for i in read]
        after = [answers.predictions[i] for i in read]
        counts = [self._changed(a, b) for a, b in zip(before, after, strict=True)]
        differing, total = (sum(c[k] for c in counts) for k in (0, 1))
        alike = pack(before) == pack(after)
        score, delta, low, high = self._difference(before, after, read, alike)
        return Outcome(
            stage=asked.stage,
            noise=asked.noise,
            option=asked.option,
            about=asked.about,
            mistake=asked.mistake,
            n=len(read),
            score=score,
            delta=delta,
            low=low,
            high=high,
            changed=differing / max(total, 1),
            largest=answers.change if math.isfinite(answers.change) else None,
            refused=tuple((self.ids[i], why) for i, why in answers.refused),
            same=alike and answers.change == 0.0 and not answers.refused,
        )

    def _changed(self, a: Any, b: Any) -> tuple[int, int]:
        if self.task.changed is None:
            return int(pack([a]) != pack([b])), 1
        return self.task.changed(a, b)

    def _difference(
        self, before: Sequence[Any], after: Sequence[Any], read: Sequence[int], alike: bool
    ) -> tuple[float | None, float | None, float | None, float | None]:
        """Score, difference and its interval; exactly 0 where both say the same."""
        if self.truths is None or not read:
            return None, None, None, None
        whole = len(read) == len(self.ids)
        old = self.scores if whole else self.on_draws(before, read)
        if alike:
            return old[0], 0.0, 0.0, 0.0
        new = self.on_draws(after, read)
        found = interval(old, new)
        return new[0], found.difference, found.low, found.high

    def on_draws(self, predictions: Sequence[Any], read: Sequence[int]) -> tuple[float, ...]:
        """The metric on the pictures `read`, then on every draw of them."""
        assert self.truths is not None
        truths = [self.truths[i] for i in read]
        drawn = draws(len(read), self.seed)
        if self.task.correct is not None and self.metric == self.task.metrics[0]:
            right = self.task.correct(predictions, truths)
            return tuple(float(right[i].mean()) for i in drawn)
        card = replace(self.card, metric=self.metric)  # no other is needed
        scored = self.task.resampled(list(predictions), truths, card)
        return tuple(float(scored(i)[self.metric]) for i in drawn)


def judge_for(
    card: Card, truths: Sequence[Any] | None, ids: Sequence[str], base: Answers, seed: int
) -> Judge:
    """The judge by the answers of the card's own pipeline."""
    judge = Judge(card, truths, ids, base, seed)
    if truths is None:
        return judge
    return replace(judge, scores=judge.on_draws(base.predictions, range(len(ids))))


def _judged(sweep: Sweep, judge: Judge, asked: Asked) -> Outcome:
    """In a process of the crew, which has its own data open but needs none."""
    return judge.judge(asked)


def judge_all(judge: Judge, asked: Sequence[Asked], crew: Crew, show: Show) -> list[Outcome]:
    """What each of these answers is worth, by all processes."""
    found: dict[int, Outcome] = {}
    with show.step("scores and intervals", len(asked)) as advance:
        for i, outcome in crew.each(_judged, [(judge, a) for a in asked]):
            found[i] = outcome
            advance(len(found))
    return [found[i] for i in range(len(asked))]
