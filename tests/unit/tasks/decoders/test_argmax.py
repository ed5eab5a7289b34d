"""argmax: order, ties, NaN, shapes, number types."""

import numpy as np
import pytest

from modelmill.tasks.classification import Ranking
from modelmill.tasks.decoders.argmax import decode


def test_first_is_numpys_argmax_and_order_is_by_value(card):
    x = np.random.default_rng(0).standard_normal((50, 12)).astype(np.float32)
    found = decode({"y": x}, card(classes=12), [(6, 8)] * 50)
    assert [p.classes[0] for p in found] == x.argmax(1).tolist()
    for row, p in zip(x, found, strict=True):
        assert list(p.classes) == sorted(range(12), key=lambda k: -row[k])[:5]
        assert type(p.classes[0]) is int and p.invalid == 0


def test_ties_rank_by_index_as_argmax_does(card):
    x = np.array([[1, 2, 2, 2], [0, 0, 0, 0], [3, 1, 3, 1]], np.float32)
    found = decode({"y": x}, card(classes=4), [(6, 8)] * 3)
    assert [p.classes for p in found] == [(1, 2, 3, 0), (0, 1, 2, 3), (0, 2, 1, 3)]


def test_nan_is_invalid_and_infinity_is_a_number(card):
    x = np.array([[np.nan, 1, 2], [np.inf, 1, 2], [-np.inf, 1, 2]], np.float32)
    found = decode({"y": x}, card(), [(6, 8)] * 3)
    assert found == [Ranking((), 1), Ranking((0, 2, 1)), Ranking((2, 1, 0))]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.float16, np.float64])
def test_number_types(card, dtype):
    x = np.array([[0, 127, 3]], dtype)
    assert decode({"y": x}, card(), [(6, 8)])[0].classes == (1, 2, 0)


def test_trailing_dimensions_of_one(card):
    x = np.zeros((2, 3, 1, 1), np.float32)
    x[:, 2] = 1
    assert [p.classes[0] for p in decode({"y": x}, card(), [(6, 8)] * 2)] == [2, 2]


@pytest.mark.parametrize("shape", [(1, 4), (3,), (1, 3, 2), ()])
def test_other_shapes_are_refused(card, shape):
    with pytest.raises(ValueError, match=r"argmax reads \(batch, 3\)"):
        decode({"y": np.zeros(shape)}, card(), [(6, 8)])
