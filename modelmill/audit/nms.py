"""nms: which boxes a device removes because a better one overlaps them.

Class by class or over all classes at once, at another overlap, or by OpenCV's function.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from modelmill.audit.noise import LeftOut, Noise, Offer, Option, Subject, missing
from modelmill.audit.pipeline import Pipeline, Reading
from modelmill.audit.suppression import limits
from modelmill.tasks import Boxes

OVERLAPS = (0.3, 0.4, 0.5, 0.6, 0.7)


def change_reading(pipeline: Pipeline, changed: dict[str, Any]) -> Pipeline:
    """The pipeline with fields of its reading set."""
    return replace(pipeline, reading=replace(pipeline.reading or Reading(), **changed))


def no_boxes(subject: Subject) -> LeftOut | None:
    """Why nothing about boxes applies; None if it does."""
    if subject.task.prediction is not Boxes:
        return LeftOut("", f"task {subject.task.name!r} finds no boxes")
    if limits(subject.card) is None:
        decoder = subject.card.output.decode
        return LeftOut("", f"the decoder {decoder!r} does not say at which overlap it suppresses")
    return None


def options(subject: Subject) -> Offer:
    absent = no_boxes(subject)
    if absent is not None:
        return [absent]
    held = limits(subject.card)
    assert held is not None
    words = "over all classes at once"
    found: list[Option | LeftOut] = [
        Option("agnostic", words, partial(change_reading, changed={"suppress": "agnostic"}))
    ]
    for overlap in OVERLAPS:
        if abs(overlap - held.iou) > 1e-9:
            change = partial(change_reading, changed={"iou": overlap})
            found.append(Option(f"iou-{overlap:g}", f"boxes go from IoU {overlap:g}", change))
    no_opencv = missing("cv2", "opencv")
    change = partial(change_reading, changed={"suppress": "opencv"})
    found.append(no_opencv or Option("opencv", "OpenCV's NMSBoxesBatched", change))
    change = partial(change_reading, changed={"suppress": "none"})
    return [*found, Option("none", "nothing is removed", change, mistake=True)]


PLUGIN = Noise("nms", "post-processing", "which overlapping boxes are removed", options)
