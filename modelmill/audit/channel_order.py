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


def swap_all(pipeline: Pipeline) -> Pipeline:
    """The other order; every channel keeps its own mean and std."""
    swapped = swap(pipeline)
    spec = swapped.card.input
    changed = replace(spec, mean=spec.mean[::-1], std=spec.std[::-1])
    return replace(swapped, card=replace(swapped.card, input=changed))


def options(subject: Subject) -> Offer:
    color = subject.card.input.color
    if color not in OTHER:
        return [LeftOut("", "the network takes grey pictures")]
    name, spec = OTHER[color].lower(), subject.card.input
    words = f"{OTHER[color]} fed, {color} meant"
    found = [Option(name, words, swap, mistake=True)]
    if (spec.mean, spec.std) != (spec.mean[::-1], spec.std[::-1]):
        along = f"{words}, mean and std swapped along"
        found.append(Option(f"{name}-scaled", along, swap_all, mistake=True))
    return found


PLUGIN = Noise("channel_order", "channel order", "RGB against BGR", options)
