"""Overlap against pycocotools, suppression against its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask

from modelmill.tasks.boxes import iou, objects, suppress


def _random(rng: np.random.Generator, n: int) -> np.ndarray:
    corner = rng.uniform(0, 20, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(0, 20, (n, 2))], axis=1)


def test_iou_is_that_of_pycocotools():
    rng = np.random.default_rng(0)
    a, b = _random(rng, 30), _random(rng, 20)
    xywh = [np.concatenate([x[:, :2], x[:, 2:] - x[:, :2]], axis=1) for x in (a, b)]
    assert np.allclose(iou(a, b), mask.iou(*xywh, [0] * 20), atol=1e-12)


def test_iou_of_empty_boxes_is_zero():
    point = np.array([[1.0, 1, 1, 1]])
    assert iou(point, point).tolist() == [[0]]
    assert iou(np.zeros((0, 4)), point).shape == (0, 1)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 40), st.integers(0, 99), st.floats(0, 1), st.integers(1, 50))
def test_suppress_keeps_the_best_and_only_them(n, seed, threshold, most):
    rng = np.random.default_rng(seed)
    boxes, scores = _random(rng, n), rng.integers(0, 10, n) / 10
    classes = rng.integers(0, 3, n)
    every = suppress(boxes, scores, classes, threshold, n + 1).tolist()
    rank = {box: (-scores[box], box) for box in range(n)}
    assert every == sorted(every, key=rank.__getitem__)
    for box in range(n):
        rivals = [k for k in every if rank[k] < rank[box] and classes[k] == classes[box]]
        beaten = any(iou(boxes[[k]], boxes[[box]])[0, 0] > threshold for k in rivals)
        assert beaten == (box not in every)
    assert suppress(boxes, scores, classes, threshold, most).tolist() == every[:most]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: objects([[0, 0, 1, 1]], [1, 2]), "1 boxes with 2 classes"),
        (lambda: objects([[0, 0, 1, 1]], [1], area=[]), "0 areas"),
        (lambda: objects([[0, 0, 1, 1]], [1], crowd=[0, 0]), "2 crowd flags"),
        (lambda: objects([[0, 0, -1, 1]], [1]), "finite"),
        (lambda: objects([[0, 0, np.nan, 1]], [1]), "finite"),
        (lambda: objects([[0, 0, 1]], [1]), "reshape"),
    ],
)
def test_objects_that_are_wrong(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_objects_of_an_empty_picture():
    empty = objects([], [])
    assert empty.boxes_xyxy.shape == (0, 4) and len(empty.classes) == len(empty.crowd) == 0
