"""From a decoder's candidates to boxes, in the variants that deployments have.

The candidates are the decoder's own boxes with its suppression switched off (IoU limit 1). They are
taken back to pixels of the network's input, where devices suppress, and afterwards to the picture.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from modelmill import plugins
from modelmill.audit.pipeline import Reading
from modelmill.tasks import Boxes, Card, Task
from modelmill.tasks.boxes import Floats, Ints, iou
from modelmill.tasks.card import Size
from modelmill.tasks.images import Placement, place
from modelmill.tasks.task import Outputs

MANY = 10**6  # more boxes than any decoder has candidates


class Limits(NamedTuple):
    """What a decoder keeps: scores above, overlaps up to, at most so many boxes."""

    score: float
    iou: float
    boxes: int


@functools.cache
def limits(card: Card) -> Limits | None:
    """The card's limits, else the decoder's own; None where it has none: it does not suppress."""
    held = sys.modules[plugins.load("modelmill.tasks.decoders", card.output.decode).__module__]
    found: list[Any] = []
    for field in ("score_threshold", "iou_threshold", "max_boxes"):
        given = getattr(card.output, field)
        found.append(getattr(held, field.upper(), None) if given is None else given)
    return None if None in found else Limits(*found)


def read(
    reading: Reading, task: Task, outputs: Outputs, card: Card, sizes: Sequence[Size]
) -> list[Boxes]:
    """Boxes per picture in pixels of the picture, best first."""
    asked = limits(card)
    assert asked is not None, "the noise is left out where there are no limits"
    loose = replace(card, output=replace(card.output, iou_threshold=1.0, max_boxes=MANY))
    candidates = task.decode(outputs, loose, sizes)
    return [
        _chosen(reading, asked, found, place(card.input, size))
        for found, size in zip(candidates, sizes, strict=True)
    ]


def _chosen(reading: Reading, asked: Limits, found: Boxes, lies: Placement) -> Boxes:
    boxes = _to_input(lies, found.boxes_xyxy)
    boxes = boxes - reading.far_edge * np.array([0, 0, 1, 1])
    scores = _rounded(found.scores, reading.levels)
    likely = scores > asked.score
    boxes, scores, classes = boxes[likely], scores[likely], found.classes[likely]
    limit = asked.iou if reading.iou is None else reading.iou
    kept = _suppress(reading, boxes, scores, classes, limit)[: asked.boxes]
    return Boxes(lies.to_picture(boxes[kept]), scores[kept], classes[kept], found.invalid)


def _to_input(lies: Placement, xyxy: Floats) -> Floats:
    """The inverse of `Placement.to_picture`."""
    offset = np.array([lies.offset[1], lies.offset[0]] * 2, np.float64)
    scale = np.array([lies.scale[1], lies.scale[0]] * 2, np.float64)
    found: Floats = xyxy * scale + offset
    return found


def _rounded(scores: Floats, levels: int) -> Floats:
    if levels == -16:
        return scores.astype(np.float16).astype(np.float64)
    return np.rint(scores * levels) / levels if levels else scores


def _suppress(reading: Reading, boxes: Floats, scores: Floats, classes: Ints, limit: float) -> Ints:
    """Indices of the boxes kept, best first; equal scores keep their order."""
    if reading.suppress == "opencv":
        return _by_opencv(boxes, scores, classes, limit)
    order = np.argsort(-scores, kind="stable")
    if reading.suppress == "none":
        return order
    sorted_boxes, kinds = boxes[order], classes[order]
    # Counting both ends is the same as boxes that end one pixel later.
    wide = sorted_boxes + reading.inclusive * np.array([0, 0, 1, 1])
    beats = iou(wide, wide) > limit
    if reading.suppress == "class-wise":
        beats &= kinds[:, None] == kinds[None, :]
    keep = np.ones(len(order), bool)
    for i in range(len(order)):
        if keep[i]:
            keep[i + 1 :] &= ~beats[i, i + 1 :]
    return order[keep]


def _by_opencv(boxes: Floats, scores: Floats, classes: Ints, limit: float) -> Ints:
    """cv2.dnn.NMSBoxesBatched: float32, boxes as x, y, width, height."""
    import cv2

    if not len(boxes):
        return np.zeros(0, np.int64)
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    picked: Any = cv2.dnn.NMSBoxesBatched(
        xywh.tolist(), scores.astype(np.float32).tolist(), classes.tolist(), 0.0, limit
    )
    kept = np.asarray(picked, np.int64).reshape(-1)
    return kept[np.argsort(-scores[kept], kind="stable")]
