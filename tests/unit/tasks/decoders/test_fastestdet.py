"""fastestdet: against the published formula written out cell by cell, and where boxes land."""

import math

import numpy as np
import pytest

from modelmill.tasks.decoders.fastestdet import decode


def _plain(x_KRC, size, classes, least=0.01):
    """[(score, class, x1, y1, x2, y2)] in pixels, best first, before suppression."""
    found = []
    _, rows, columns = x_KRC.shape
    for r in range(rows):
        for c in range(columns):
            cell = x_KRC[:, r, c].astype(float)
            best = max(range(classes), key=lambda k, cell=cell: cell[5 + k])
            score = cell[0] ** 0.6 * cell[5 + best] ** 0.4
            w, h = (1 / (1 + math.exp(-cell[k])) for k in (3, 4))
            x, y = (c + math.tanh(cell[1])) / columns, (r + math.tanh(cell[2])) / rows
            if score > least:
                box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                found.append(
                    (score, best, *(v * s for v, s in zip(box, size[::-1] * 2, strict=True)))
                )
    return sorted(found, key=lambda f: -f[0])


def _outputs(seed, batch=2, classes=3, rows=4, columns=5):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, 5 + classes, rows, columns)).astype(np.float32)
    x[:, [0, *range(5, 5 + classes)]] = rng.random((batch, 1 + classes, rows, columns))
    return x


def test_is_the_formula_cell_by_cell(detector):
    output = {"decode": "fastestdet", "iou_threshold": 1}  # nothing is suppressed
    card = detector(output=output, resize={"method": "opencv-area", "mode": "stretch"})
    sizes, x = [(60, 100), (33, 20)], _outputs(0)
    for found, one, size in zip(decode({"y": x}, card, sizes), x, sizes, strict=True):
        plain = _plain(one, size, 3)
        assert np.allclose(found.scores, [p[0] for p in plain])
        assert found.classes.tolist() == [p[1] for p in plain]
        assert np.allclose(found.boxes_xyxy, [p[2:] for p in plain])
        assert found.invalid == 0


def _one_box(card, sizes, t=(0.0, 0.0, 0.0, 0.0)):
    """A single sure object of class 1 in row 1, column 1 of a 2 x 2 map."""
    x = np.zeros((1, 8, 2, 2), np.float32)
    x[0, [0, 6], 1, 1] = 1
    x[0, 1:5, 1, 1] = t
    return decode({"y": x}, card, sizes)[0]


def test_boxes_are_in_pixels_of_the_original(detector):
    stretch = detector(size=[32, 64], resize={"method": "pillow-box", "mode": "stretch"})
    found = _one_box(stretch, [(100, 200)])
    assert np.allclose(found.boxes_xyxy, [[50, 25, 150, 75]])
    assert found.scores.tolist() == [1] and found.classes.tolist() == [1]
    boxed = detector(size=[64, 64], resize={"method": "pillow-box", "mode": "letterbox"})
    # 100 x 200 becomes 32 x 64 with a border of 16 above: the centre (32, 32) is the picture's
    assert np.allclose(_one_box(boxed, [(100, 200)]).boxes_xyxy, [[50, 0, 150, 100]])
    plain = detector(size=[32, 64])
    assert np.allclose(_one_box(plain, [(32, 64)]).boxes_xyxy, [[16, 8, 48, 24]])


def test_thresholds_of_the_card(detector):
    x = _outputs(1, batch=1)
    size = [(6, 8)]
    scores = decode({"y": x}, detector(), size)[0].scores

    def with_(**values):
        return decode({"y": x}, detector(output={"decode": "fastestdet", **values}), size)[0]

    middle = float(np.median(scores))
    assert np.array_equal(with_(score_threshold=middle).scores, scores[scores > middle])
    assert np.array_equal(with_(max_boxes=2).scores, scores[:2])
    assert len(with_(iou_threshold=0).scores) <= len(scores) <= len(with_(iou_threshold=1).scores)
    assert len(with_(score_threshold=1.0).scores) == 0


def test_one_class_does_not_suppress_another(detector):
    x = np.zeros((1, 8, 1, 2), np.float32)
    x[0, 0] = x[0, 5, 0, 0] = x[0, 5, 0, 1] = 1
    x[0, 3:5] = 9  # both as large as the picture
    x[0, 1, 0, 0] = 9  # and both centred where the second cell begins
    assert len(decode({"y": x}, detector(), [(6, 8)])[0].scores) == 1
    x[0, 5, 0, 1], x[0, 6, 0, 1] = 0, 1
    assert len(decode({"y": x}, detector(), [(6, 8)])[0].scores) == 2


def test_cells_that_are_not_finite_are_counted_and_left_out(detector):
    clean, x = _outputs(2), _outputs(2)
    x[0, 7, 0, 0], x[0, 1, 1, 1], x[1, 0, 2, 2] = np.nan, np.inf, -np.inf
    found = decode({"y": x}, detector(), [(6, 8)] * 2)
    assert [f.invalid for f in found] == [2, 1]
    assert all(np.isfinite(f.boxes_xyxy).all() and np.isfinite(f.scores).all() for f in found)
    clean[0, 0, 0, 0] = clean[0, 0, 1, 1] = clean[1, 0, 2, 2] = 0
    for f, c in zip(found, decode({"y": clean}, detector(), [(6, 8)] * 2), strict=True):
        assert np.array_equal(f.boxes_xyxy, c.boxes_xyxy)


def test_scores_below_zero_are_no_objects(detector):
    x = -_outputs(3)
    assert [len(f.scores) for f in decode({"y": x}, detector(), [(6, 8)] * 2)] == [0, 0]


@pytest.mark.parametrize("shape", [(1, 9, 2, 2), (1, 8, 4), (1, 10)])
def test_other_shapes_are_refused(detector, shape):
    with pytest.raises(ValueError, match=r"fastestdet reads \(batch, 8, rows, columns\)"):
        decode({"y": np.zeros(shape)}, detector(), [(6, 8)])
