"""channel_order: red and blue change places, the most frequent mistake of all.

Pillow gives RGB, OpenCV BGR. A network fed the wrong way still answers plausibly.
"""

from __future__ import annotations

from dataclasses import replace

from modelmill.audit.noise import LeftOut, Noise, Offer, Option, Subject
from modelmill.audit.pipeline import Pipeline

OTHER = {"RGB": "BGR", "BGR": "RGB"}


def swap(pipeline: Pipeline) -> Pipeline:
    """The other order; mean and std stay where they are."""
    spec = pipeline.card.input
    changed = replace(spec, color=OTHER[spec.color])
    return replace(pipeline, card=replace(pipeline.card, input=changed))


def options(subject: Subject) -> Offer:
    color = subject.card.input.color
    if color not in OTHER:
        return [LeftOut("", "the network takes grey pictures")]
    name = OTHER[color].lower()
    return [Option(name, f"{OTHER[color]} fed, {color} meant", swap, mistake=True)]


PLUGIN = Noise("channel_order", "channel order", "RGB against BGR", options)
