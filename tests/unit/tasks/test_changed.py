"""What two predictions of one picture say differently."""

import numpy as np

from modelmill import plugins
from modelmill.tasks import Boxes
from modelmill.tasks.classification import Ranking


def test_classes():
    changed = plugins.load("modelmill.tasks", "classification").changed
    assert changed(Ranking((1, 2)), Ranking((1, 3))) == (0, 1)
    assert changed(Ranking((1, 2)), Ranking((2, 1))) == (1, 1)
    assert changed(Ranking((1, 2)), Ranking((), 1)) == (1, 1)


def found(*rows):
    """(x, class, score) of boxes of 10 by 10."""
    boxes = np.array([[x, 0, x + 10, 10] for x, _, _ in rows], float).reshape(-1, 4)
    return Boxes(boxes, np.array([s for _, _, s in rows], float),
                 np.array([c for _, c, _ in rows], int))  # fmt: skip


def test_boxes():
    """Partners overlap by half: shifted by 3 of 10 the IoU is 7/13, by 4 it is 6/14."""
    changed = plugins.load("modelmill.tasks", "detection").changed
    a = found((0, 1, 0.9), (50, 2, 0.8), (90, 3, 0.2))  # the last is not sure
    assert changed(a, a) == (0, 4)
    assert changed(a, found((3, 1, 0.9), (50, 2, 0.3))) == (0, 4)
    assert changed(a, found((4, 1, 0.9), (50, 2, 0.3))) == (2, 4)
    assert changed(a, found((0, 2, 0.9), (50, 2, 0.3))) == (2, 4)
    assert changed(a, found((0, 1, 0.9))) == (1, 3)
    assert changed(a, found()) == (2, 2) and changed(found(), found()) == (0, 0)
    twice = found((0, 1, 0.9), (1, 1, 0.8))
    assert changed(twice, found((0, 1, 0.9))) == (1, 3)  # a box has one partner
