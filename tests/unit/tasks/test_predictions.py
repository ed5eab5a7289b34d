"""Predictions as bytes: what comes back is what went in."""

import dataclasses

import numpy as np
import pytest

from modelmill.tasks import Boxes, pack, unpack
from modelmill.tasks.classification import Ranking


def test_rankings_of_different_length():
    held = (Ranking((7, 300)), Ranking((), 1), Ranking((70000,)), Ranking((1, 2, 3, 4, 5)))
    assert unpack(pack(held), Ranking) == held


def test_boxes_are_kept_to_float32():
    rng = np.random.default_rng(0)
    held = [
        Boxes(rng.normal(size=(n, 4)) * 500, rng.random(n), rng.integers(0, 80, n), n % 2)
        for n in (3, 0, 100, 1)
    ]
    found = unpack(pack(held), Boxes)
    for a, b in zip(held, found, strict=True):
        assert b.invalid == a.invalid and b.classes.dtype == np.int64
        np.testing.assert_array_equal(b.classes, a.classes)
        np.testing.assert_array_equal(b.boxes_xyxy, a.boxes_xyxy.astype("f").astype("d"))
        np.testing.assert_array_equal(b.scores, a.scores.astype("f").astype("d"))
    assert len(pack(held)) < 104 * (4 + 1 + 1) * 4 + 3000


def test_nothing_found_and_nothing_predicted():
    nothing = Boxes(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    (found,) = unpack(pack([nothing]), Boxes)
    assert found.boxes_xyxy.shape == (0, 4) and found.classes.shape == (0,)
    assert unpack(pack([]), Boxes) == ()


def test_what_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Words:
        word: str
        invalid: int = 0

    with pytest.raises(TypeError, match=r"Words\.word"):
        pack([Words("a")])
    for data in (b"", b"PK\x03\x04 not a zip", pack([Ranking((1,))])):
        with pytest.raises(ValueError, match="not the predictions"):
            unpack(data, Boxes)
