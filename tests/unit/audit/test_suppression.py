"""Boxes read in variants: the card's own is the decoder's to the bit."""

import cv2
import numpy as np
import pytest

from modelmill import plugins
from modelmill.audit.pipeline import Reading
from modelmill.audit.suppression import limits, read

ROWS = 8


@pytest.fixture
def detector(card):
    """task, outputs, card, sizes: maps of boxes that overlap, in a stretched picture."""
    held = card("detection", "fastestdet", resize={"method": "opencv-area", "mode": "stretch"},
                size=[64, 64])  # fmt: skip
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (3, 9, ROWS, ROWS)).astype(np.float32)
    x[:, 0] = rng.random((3, ROWS, ROWS))
    x[:, 5:] = rng.random((3, 4, ROWS, ROWS))
    return plugins.load("modelmill.tasks", "detection"), {"y": x}, held, [(100, 80)] * 3


def same(a, b):
    return all(
        np.array_equal(p.scores, q.scores) and np.array_equal(p.classes, q.classes)
        and np.allclose(p.boxes_xyxy, q.boxes_xyxy, atol=1e-9)
        for p, q in zip(a, b, strict=True)
    )  # fmt: skip


def test_the_usual_reading_is_the_decoders(detector):
    task, outputs, held, sizes = detector
    expected = task.decode(outputs, held, sizes)
    assert same(read(Reading(), task, outputs, held, sizes), expected)
    assert 0 < len(expected[0].scores) < ROWS * ROWS  # something was suppressed
    assert limits(held).iou == 0.45


def test_opencv_is_the_same_up_to_float32(detector):
    task, outputs, held, sizes = detector
    assert same(
        read(Reading("opencv"), task, outputs, held, sizes), task.decode(outputs, held, sizes)
    )


def test_over_all_classes_as_opencv_does_it(detector):
    task, outputs, held, sizes = detector
    found = read(Reading("agnostic"), task, outputs, held, sizes)
    everything = read(Reading("none"), task, outputs, held, sizes)
    scale = np.array([0.8, 0.64, 0.8, 0.64])  # 80 and 100 pixels to 64
    for kept, all_of in zip(found, everything, strict=True):
        boxes = all_of.boxes_xyxy * scale
        xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        expected = cv2.dnn.NMSBoxes(xywh.tolist(), all_of.scores.tolist(), 0.0, 0.45)
        assert np.array_equal(kept.scores, all_of.scores[np.sort(expected)])


def test_nothing_removed_and_another_overlap(detector):
    task, outputs, held, sizes = detector
    counts = [
        sum(len(p.scores) for p in read(Reading(iou=t), task, outputs, held, sizes))
        for t in (0.0, 0.3, 0.7, 1.0)
    ]
    everything = sum(len(p.scores) for p in read(Reading("none"), task, outputs, held, sizes))
    assert counts == sorted(counts) and counts[0] < counts[-1] == everything


def test_the_last_pixel(detector):
    """The far edge moves by one pixel of the network's input, that is 80/64 and 100/64 here."""
    task, outputs, held, sizes = detector
    usual = read(Reading(inclusive=1), task, outputs, held, sizes)
    found = read(Reading(far_edge=1, inclusive=1), task, outputs, held, sizes)
    whole = read(Reading(), task, outputs, held, sizes)
    for a, b in zip(whole, found, strict=True):  # ends earlier, counts both ends: the same overlaps
        assert np.allclose(a.boxes_xyxy - b.boxes_xyxy, [0, 0, 80 / 64, 100 / 64])
    assert sum(len(p.scores) for p in usual) <= sum(len(p.scores) for p in whole)


@pytest.mark.parametrize("levels, unit", [(256, 1 / 256), (100, 0.01)])
def test_rounded_scores(detector, levels, unit):
    task, outputs, held, sizes = detector
    for p in read(Reading(levels=levels), task, outputs, held, sizes):
        assert np.allclose(p.scores / unit, np.rint(p.scores / unit))
    halves = read(Reading(levels=-16), task, outputs, held, sizes)
    assert all(np.array_equal(p.scores, p.scores.astype(np.float16)) for p in halves)
