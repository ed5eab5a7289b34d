"""scores: boxes whose scores were rounded before they are compared.

Firmware keeps scores in float16 or in 8 bits; then many are equal and keep the order they came in.
"""

from __future__ import annotations

from functools import partial

from modelmill.audit.nms import change_reading, no_boxes
from modelmill.audit.noise import Noise, Offer, Option, Subject

WAYS = (
    ("float16", "scores in float16", -16),
    ("1-256", "scores on 1/256", 256),
    ("1-100", "scores in whole per cent", 100),
)


def options(subject: Subject) -> Offer:
    absent = no_boxes(subject)
    if absent is not None:
        return [absent]
    return [
        Option(name, words, partial(change_reading, changed={"levels": levels}))
        for name, words, levels in WAYS
    ]


PLUGIN = Noise("scores", "post-processing", "scores rounded before boxes are compared", options)
