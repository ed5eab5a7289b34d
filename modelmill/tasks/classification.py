"""Classification: one class per picture; top-1 and top-5 accuracy.

top-k = fraction of pictures whose class is among the k highest outputs. Equal outputs rank by class
index, as argmax does; a picture with a NaN among its outputs counts as wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modelmill.tasks.card import Card, Input, Output
from modelmill.tasks.task import Task


@dataclass(frozen=True)
class Ranking:
    """The best classes of one picture, best first, at most five; none if its outputs held a NaN."""

    classes: tuple[int, ...]
    invalid: int = 0


def score(predictions: Sequence[Ranking], truths: Sequence[int], card: Card) -> dict[str, float]:
    """Top-1 and top-5 accuracy, fractions between 0 and 1."""
    hits = [truth in p.classes for p, truth in zip(predictions, truths, strict=True)]
    return {"top1": float(correct(predictions, truths).mean()), "top5": float(np.mean(hits))}


def correct(predictions: Sequence[Ranking], truths: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Whether the first class is the truth, per picture."""
    return np.array(
        [p.classes[:1] == (truth,) for p, truth in zip(predictions, truths, strict=True)], bool
    )


def ideal(truth: int, card: Card) -> Ranking:
    return Ranking((truth,))


def as_truth(prediction: Ranking, card: Card) -> int:
    """The first class; -1, which no picture has, where the outputs held a NaN."""
    return prediction.classes[0] if prediction.classes else -1


def changed(a: Ranking, b: Ranking) -> tuple[int, int]:
    """(1, 1) where the first class is another, else (0, 1)."""
    return int(a.classes[:1] != b.classes[:1]), 1


def example(seed: int) -> tuple[Card, list[int]]:
    scaled = Input("NCHW", (8, 8), "RGB", None, 1 / 255, (0.0,) * 3, (1.0,) * 3)
    card = Card("classification", scaled, Output("argmax"), 7)
    return card, np.random.default_rng(seed).integers(0, 7, 20).tolist()


PLUGIN = Task(
    name="classification",
    metrics=("top1", "top5"),
    truth=int,
    prediction=Ranking,
    score=score,
    ideal=ideal,
    example=example,
    correct=correct,
    as_truth=as_truth,
    changed=changed,
)
