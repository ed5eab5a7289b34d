"""What a pipeline's answers are worth beside the card's: score, difference, interval, changes.

The interval of a difference is a paired bootstrap over pictures: both sides are scored on the same
draws, and the standard error of the difference gives the 95 % interval (see `line.compare`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from modelmill.audit import Answers, Noise, Option
from modelmill.line.audit_report import Outcome
from modelmill.line.compare import bootstrap
from modelmill.tasks import Card, Task, pack

Metric = Callable[[np.ndarray], float]


@dataclass(frozen=True, eq=False)
class Judge:
    """Judges answers by those of the card's pipeline. truths: None without labels; ids: names of
    the pictures.
    """

    task: Task
    card: Card
    truths: Sequence[Any] | None
    ids: Sequence[str]
    base: Answers
    seed: int

    @property
    def metric(self) -> str:
        """The name of the score."""
        return self.task.primary(self.card)

    @cached_property
    def score(self) -> float | None:
        """Of the card's pipeline on all pictures; None without labels."""
        return self._score(self.base.predictions, range(len(self.ids)))

    def outcome(self, noise: Noise, option: Option, answers: Answers) -> Outcome:
        """What an option did."""
        return self.judge(noise.stage, noise.name, option, answers)

    def judge(self, stage: str, noise: str, option: Option, answers: Answers) -> Outcome:
        """The same by names, for several options at once and for devices."""
        read = [i for i, p in enumerate(answers.predictions) if p is not None]
        before = [self.base.predictions[i] for i in read]
        after = [answers.predictions[i] for i in read]
        counts = [self._changed(a, b) for a, b in zip(before, after, strict=True)]
        differing, total = (sum(c[k] for c in counts) for k in (0, 1))
        delta, low, high = self._difference(before, after, read)
        return Outcome(
            stage=stage,
            noise=noise,
            option=option.name,
            about=option.about,
            mistake=option.mistake,
            n=len(read),
            score=self._score(after, read),
            delta=delta,
            low=low,
            high=high,
            changed=differing / max(total, 1),
            largest=answers.change if math.isfinite(answers.change) else None,
            refused=tuple((self.ids[i], why) for i, why in answers.refused),
        )

    def _changed(self, a: Any, b: Any) -> tuple[int, int]:
        if self.task.changed is None:
            return int(pack([a]) != pack([b])), 1
        return self.task.changed(a, b)

    def _score(self, predictions: Sequence[Any], read: Sequence[int]) -> float | None:
        if self.truths is None or not read:
            return None
        truths = [self.truths[i] for i in read]
        return float(self.task.score(list(predictions), truths, self.card)[self.metric])

    def _difference(
        self, before: Sequence[Any], after: Sequence[Any], read: Sequence[int]
    ) -> tuple[float | None, float | None, float | None]:
        """Difference and interval; exactly 0 where both say the same."""
        if self.truths is None or not read:
            return None, None, None
        if pack(before) == pack(after):
            return 0.0, 0.0, 0.0
        old = self._draws_of_base if len(read) == len(self.ids) else self._metric(before, read)
        found = bootstrap(old, self._metric(after, read), len(read), self.seed)
        return found.difference, found.low, found.high

    @cached_property
    def _draws_of_base(self) -> Metric:
        """The card's side on every draw, which are the same for all options of one seed."""
        metric = self._metric(self.base.predictions, range(len(self.ids)))
        known: dict[bytes, float] = {}

        def on(drawn: np.ndarray) -> float:
            key = drawn.tobytes()
            if key not in known:
                known[key] = metric(drawn)
            return known[key]

        return on

    def _metric(self, predictions: Sequence[Any], read: Sequence[int]) -> Metric:
        """The metric on draws of the pictures `read`."""
        assert self.truths is not None
        truths = [self.truths[i] for i in read]
        if self.task.correct is not None and self.metric == self.task.metrics[0]:
            right = self.task.correct(predictions, truths)
            return lambda drawn: float(right[drawn].mean())
        scored = self.task.resampled(list(predictions), truths, self.card)
        return lambda drawn: float(scored(drawn)[self.metric])
