"""box_offset: whether a box ends at its last pixel or behind it, x2 - x1 + 1 against x2 - x1.

Both conventions live on in converters and post-processing code; SysNoise (MLSys 2023) found the
offset among the costliest noises of detection.
"""

from __future__ import annotations

from functools import partial

from modelmill.audit.nms import change_reading, no_boxes
from modelmill.audit.noise import Noise, Offer, Option, Subject

WAYS = (
    ("in-nms", "overlaps count both ends", {"inclusive": 1}),
    ("in-boxes", "boxes end at their last pixel", {"far_edge": 1}),
    ("in-both", "boxes end at their last pixel, overlaps count both ends",
     {"far_edge": 1, "inclusive": 1}),
)  # fmt: skip


def options(subject: Subject) -> Offer:
    absent = no_boxes(subject)
    if absent is not None:
        return [absent]
    return [Option(name, words, partial(change_reading, changed=how)) for name, words, how in WAYS]


PLUGIN = Noise("box_offset", "post-processing", "where a box ends, offset 0 or 1", options)
