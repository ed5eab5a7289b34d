"""Is one model or engine really better than another? Both score the same images; a test decides.

Where right is yes or no (top-1): McNemar's exact test. Only the images that one got right and the
other wrong count; if both are equally good they fall either way like a coin, so with b and c of
them

    p = min(1, 2 P(X <= min(b, c))),  X ~ Binomial(b + c, 1/2)

The interval of the difference is that of Agresti and Min, "Simple improved confidence intervals for
comparing matched proportions" (Statistics in Medicine 24, 2005): half an image is added to each of
the four cells.

For other metrics (average precision): a paired bootstrap over images. Images are drawn with
replacement, both sides scored on the same draw; the standard error of the difference gives interval
and p by the normal approximation, for which 50 to 200 draws are enough (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, section 6.4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import comb, sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from modelmill import tasks
from modelmill.line.artifact import engine_file, engines_of, limited, load_artifact
from modelmill.line.evaluate import Evaluation, score_on
from modelmill.line.inspect import Model
from modelmill.line.show import SILENT, Show
from modelmill.line.source import DataSource, Source
from modelmill.records.machine import this_machine
from modelmill.runtimes import SessionOptions
from modelmill.tasks import Card, Score

ALPHA = 0.05
MOST_DRAWS, LEAST_DRAWS = 200, 50
IMAGES_DRAWN = 100_000  # bounds the time: draws x images

Verdict = Literal["better", "worse", "no significant difference"]


@dataclass(frozen=True)
class Paired:
    """difference = candidate - reference with its 95 % interval, and p of there being none.

    test: the name of the test. only_reference, only_candidate: images that one alone got right;
    None for a bootstrap.
    """

    test: str
    difference: float
    low: float
    high: float
    p: float
    only_reference: int | None = None
    only_candidate: int | None = None

    @property
    def verdict(self) -> Verdict:
        """What may be said of the candidate."""
        if self.p >= ALPHA:
            return "no significant difference"
        return "better" if self.difference > 0 else "worse"


@dataclass(frozen=True)
class Comparison:
    """Both sides on the same images, and the test."""

    reference: Evaluation
    candidate: Evaluation
    metric: str
    paired: Paired

    @property
    def accepted(self) -> bool:
        """Whether the candidate is not significantly worse."""
        return self.paired.verdict != "worse"

    def to_json(self) -> dict[str, Any]:
        """All fields but the predictions."""
        return {
            "metric": self.metric,
            "reference": self.reference.to_json(),
            "candidate": self.candidate.to_json(),
            **vars(self.paired),
            "verdict": self.paired.verdict,
            "accepted": self.accepted,
        }


def compare(  # noqa: PLR0913 (keyword arguments are the interface)
    reference: Model,
    candidate: Model,
    data: DataSource,
    targets: str | Sequence[str] = (),
    *,
    runtimes: str | Sequence[str] = (),
    card: str | Path | Card | None = None,
    limit: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    timeout_s: float = 300.0,
    transform: Callable[[Any], Any] | None = None,
    show: Show = SILENT,
) -> Comparison:
    """Score two models, or one on two engines, on the same images, and test the difference.

    Args:
        reference: an ONNX file, PyTorch network or graph.
        candidate: the other one; may be the same.
        data: labelled images.
        targets: one target, or one for each side; its engine is taken.
        runtimes: instead: one engine, or one for each side.
        card: how both are fed and read; None: the one beside each, or of the build it comes from.
        limit: score so many images, drawn by `seed`.
        seed: of the draw and of the bootstrap.
        threads: of the engines; None: every core.
        timeout_s: of one request to an engine.
        transform: see `modelmill.tasks.open_data`.
        show: who watches.

    Raises:
        ValueError: wrong input, or two models of different tasks.
        DeploymentError: an engine failed.
    """
    engines = engines_of(targets, runtimes)
    if len(engines) not in (1, 2):
        raise ValueError(
            f"name one engine, or one for each side, not {len(engines)}; for example -t ort_cpu"
        )
    a, b = load_artifact(reference, card), load_artifact(candidate, card)
    if (a.card.task, a.card.class_count) != (b.card.task, b.card.class_count):
        raise ValueError(
            f"{a.name} does {a.card.task} with {a.card.class_count} classes, {b.name} "
            f"{b.card.task} with {b.card.class_count}: only models of one task can be compared"
        )
    metrics = [source.task.primary(source.card) for source in (a, b)]
    if metrics[0] != metrics[1]:
        raise ValueError(f"the cards ask for {metrics[0]} and {metrics[1]}; give one with --card")
    options = SessionOptions(threads or this_machine().cores, timeout_s)
    scored: list[Evaluation] = []
    for model, source, engine in zip(
        (reference, candidate), (a, b), (engines[0], engines[-1]), strict=True
    ):
        dataset = limited(tasks.open_data(data, source.card, transform), limit, seed)
        with engine_file(model, source.graph) as path:
            scored.append(score_on(engine, source, path, dataset, options, show))
    with show.step("test the difference"):
        paired = paired_test(a, scored[0].score, scored[1].score, seed)
    return Comparison(scored[0], scored[1], metrics[0], paired)


def paired_test(source: Source, reference: Score, candidate: Score, seed: int) -> Paired:
    """The paired test that fits the task's metric; both scores are of the same images in order."""
    task, card = source.task, source.card
    if task.correct is not None and task.primary(card) == task.metrics[0]:
        before = task.correct(reference.predictions, reference.truths)
        return mcnemar(before, task.correct(candidate.predictions, candidate.truths))
    metric = task.primary(card)
    card = replace(card, metric=metric)  # no other is needed on the draws
    first = task.resampled(reference.predictions, reference.truths, card)
    second = task.resampled(candidate.predictions, candidate.truths, card)
    return bootstrap(lambda i: first(i)[metric], lambda i: second(i)[metric], reference.n, seed)


def mcnemar(reference: np.ndarray, candidate: np.ndarray) -> Paired:
    """McNemar's exact test of two bool arrays (n,): who was right on which image."""
    n = len(reference)
    lost, won = int((reference & ~candidate).sum()), int((candidate & ~reference).sum())
    discordant = lost + won
    tail = sum(comb(discordant, k) for k in range(min(lost, won) + 1))
    p = min(1.0, 2 * tail / 2**discordant)
    centre = (won - lost) / (n + 2)
    error = sqrt((discordant + 1) - (won - lost) ** 2 / (n + 2)) / (n + 2)
    reach = NormalDist().inv_cdf(1 - ALPHA / 2) * error
    low, high = max(-1.0, centre - reach), min(1.0, centre + reach)
    return Paired("McNemar, exact", (won - lost) / n, low, high, p, lost, won)


def bootstrap(
    reference: Callable[[np.ndarray], float],
    candidate: Callable[[np.ndarray], float],
    n: int,
    seed: int,
) -> Paired:
    """Paired bootstrap; both functions give the metric on the images of a draw.

    A draw is an array of indices, n of them, with repetitions.
    """
    drawn = list(draws(n, seed))
    return interval([reference(i) for i in drawn], [candidate(i) for i in drawn])


def draws(n: int, seed: int) -> Iterator[np.ndarray]:
    """All n images once, then as many draws as a bootstrap takes: arrays of n indices."""
    random = np.random.default_rng(seed)
    yield np.arange(n)
    for _ in range(min(MOST_DRAWS, max(LEAST_DRAWS, IMAGES_DRAWN // n))):
        yield random.integers(0, n, n)


def interval(reference: Sequence[float], candidate: Sequence[float]) -> Paired:
    """The paired bootstrap of a metric on all images (first) and on each draw (the rest)."""
    difference, *others = (b - a for a, b in zip(reference, candidate, strict=True))
    error = float(np.std(others, ddof=1))
    normal = NormalDist()
    reach = normal.inv_cdf(1 - ALPHA / 2) * error
    p = 2 * normal.cdf(-abs(difference) / error) if error > 0 else float(difference == 0)
    low, high = difference - reach, difference + reach
    return Paired(f"paired bootstrap, {len(others)} draws", difference, low, high, p)
