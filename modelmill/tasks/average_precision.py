"""Average precision of draws of the pictures, from boxes that were matched once.

A draw gives every picture a weight, how often it was drawn. With the boxes of a class in the order
of their scores, TP and FP are running sums of weights, and COCO's precision at recall r is

    max over boxes at or behind the first with TP >= r * objects of TP / (TP + FP)

All classes lie one behind the other in one array; a class number times a large whole number keeps
their sums apart, so that one search answers for all. Counts are whole, so results are COCO's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
APART = 2**40  # more than any number of boxes


@dataclass(frozen=True, eq=False)
class Matched:
    """Boxes of all classes, by class, then by falling score.

    picture, kind (N,): where each is. right, wrong (T, N): at each IoU threshold; neither is a box
    that does not count. objects (classes, pictures): how many there are to find.
    """

    picture: Ints
    kind: Ints
    right: Bools
    wrong: Bools
    objects: Ints

    def precision(self, weights: Ints, threshold: int, recalls: npt.NDArray[Any]) -> float:
        """Mean precision over classes and recall levels of pictures with weights; 0 of nothing."""
        objects = self.objects @ weights
        present = np.flatnonzero(objects)
        if not len(present):
            return 0.0
        counts = weights[self.picture]
        tp = _sums(counts * self.right[threshold], self.kind)
        fp = _sums(counts * self.wrong[threshold], self.kind)
        precision = tp / np.maximum(tp + fp, 1)
        # The largest from here to the end of the class: classes are kept apart by whole numbers.
        raised = precision - 2.0 * self.kind
        best = np.maximum.accumulate(raised[::-1])[::-1] + 2.0 * self.kind
        wanted = _first_counts(objects[present], recalls)
        keys = tp + APART * self.kind
        at = np.searchsorted(keys, wanted + APART * present[:, None])
        ends = np.searchsorted(self.kind, present, side="right")[:, None]
        inside = at < ends
        best = np.concatenate([best, np.zeros(1)])  # for a search that ends behind the last class
        return float(np.where(inside, best[at], 0.0).mean())


def _sums(counts: Ints, kind: Ints) -> Ints:
    """Running sums that start anew with every class."""
    total = np.cumsum(counts)
    starts = np.searchsorted(kind, kind)
    before: Ints = np.concatenate([np.zeros(1, np.int64), total])[starts]
    return total - before


def _first_counts(objects: Ints, recalls: npt.NDArray[Any]) -> Ints:
    """(classes, R): the least count whose share of the objects, as floats divide, is >= recall."""
    n = objects[:, None]
    count = np.maximum(np.floor(recalls * n).astype(np.int64) - 1, 0)
    for _ in range(2):  # the product may be off by one either way
        count += count / n < recalls
    return count


def matched(
    images: Sequence[Mapping[str, Any] | None], classes: int, pictures: int, most: int
) -> Matched:
    """From the matches of pycocotools (class by class, picture by picture, one size of boxes);
    `most` boxes of a picture and class count.
    """
    rows: list[tuple[int, int, Mapping[str, Any]]] = [
        (n // pictures, n % pictures, held) for n, held in enumerate(images) if held is not None
    ]
    objects = np.zeros((classes, pictures), np.int64)
    for kind, picture, held in rows:
        objects[kind, picture] = np.count_nonzero(np.asarray(held["gtIgnore"]) == 0)
    sizes = [min(len(held["dtScores"]), most) for _, _, held in rows]
    kinds = np.repeat(np.array([k for k, _, _ in rows], np.int64), sizes)
    places = np.repeat(np.array([p for _, p, _ in rows], np.int64), sizes)
    scores = np.concatenate([np.zeros(0), *(held["dtScores"][:most] for _, _, held in rows)])
    levels = len(rows[0][2]["dtMatches"]) if rows else 0
    none = np.zeros((levels, 0), bool)
    hit = np.concatenate([none, *(h["dtMatches"][:, :most] > 0 for _, _, h in rows)], axis=1)
    out = np.concatenate([none, *(h["dtIgnore"][:, :most] > 0 for _, _, h in rows)], axis=1)
    order = np.lexsort((-scores, kinds))  # stable: equal scores stay in the order of the pictures
    hit, out = hit[:, order].astype(bool), out[:, order].astype(bool)
    return Matched(places[order], kinds[order], hit & ~out, ~hit & ~out, objects)
