"""How alike deployments answer: shares counted by hand, boxes that are known."""

import numpy as np
import pytest

from modelmill import plugins
from modelmill.line.cross import compare_all, likeness
from modelmill.line.page_cross import lines, matrix
from modelmill.line.report import CrossAgreement
from modelmill.tasks import Boxes
from modelmill.tasks.classification import Ranking

CLASSIFICATION = plugins.load("modelmill.tasks", "classification")
DETECTION = plugins.load("modelmill.tasks", "detection")
CARD = CLASSIFICATION.example(0)[0]
DETECTOR = DETECTION.example(0)[0]


def rankings(*classes):
    return [Ranking((c,)) if c >= 0 else Ranking((), 1) for c in classes]


def boxes(*rows):
    """(x, class, score) of squares of 10 pixels, best first."""
    found = np.array([[x, 0, x + 10, 10] for x, _, _ in rows], float).reshape(-1, 4)
    scores = np.array([s for _, _, s in rows], float)
    return Boxes(found, scores, np.array([c for _, c, _ in rows], int))


def test_the_share_of_pictures_with_the_same_first_class():
    held = {
        "float": rankings(1, 2, 3, 4, 5),
        "a": rankings(1, 2, 3, 0, 0),
        "b": rankings(1, 0, 3, 0),  # saw fewer pictures
    }
    seen = []
    found = compare_all(CLASSIFICATION, CARD, held, seen.append)
    assert (found.metric, found.n, found.names) == ("top1", 4, ("float", "a", "b"))
    assert found.rows == ((1, 0.75, 0.5), (0.75, 1, 0.75), (0.5, 0.75, 1))
    assert seen == list(range(1, 10))
    assert found.least("a", "b") == (0.75, "a", "b") and found.least("a") is None
    assert CrossAgreement.from_json(found.to_json()) == found


def test_nonsense_agrees_with_nothing():
    assert likeness(CLASSIFICATION, CARD, rankings(-1, 2), rankings(-1, 2)) == 0.5


def test_boxes_against_boxes():
    """The faint box of the first is no truth for the second, and costs it nothing."""
    first = [boxes((0, 1, 0.9), (50, 2, 0.5), (80, 1, 0.1)), boxes((0, 0, 0.3))]
    second = [boxes((0, 1, 0.8), (51, 2, 0.4)), boxes((0, 0, 0.6))]
    assert likeness(DETECTION, DETECTOR, first, first) == pytest.approx(1)
    assert likeness(DETECTION, DETECTOR, second, first) == pytest.approx(1)
    missed = [boxes((0, 1, 0.8)), boxes((0, 0, 0.6))]  # one of three classes is not found
    assert likeness(DETECTION, DETECTOR, missed, first) == pytest.approx(2 / 3)
    assert likeness(DETECTION, DETECTOR, first, missed) == pytest.approx(1)


def test_answers_without_anything_sure():
    nothing = [boxes((0, 1, 0.1)), boxes()]
    found = compare_all(DETECTION, DETECTOR, {"float": [boxes((0, 1, 0.9))] * 2, "a": nothing})
    assert found.metric == "ap50"
    # The float model's boxes, one of which is found, though faintly; nothing to find in a's.
    assert [[None if v is None else round(v, 2) for v in row] for row in found.rows] == [
        [1, None],
        [0.5, None],
    ]


def test_what_is_said_of_it():
    shares = ((1.0, 0.98, 0.9), (0.98, 1.0, 0.95), (0.9, 0.95, 1.0))
    cross = CrossAgreement("top1", 500, ("float", "a", "b"), shares)
    assert lines(cross) == (
        "Share of 500 images with the same first class: any two deployments agree to 95.00 % or "
        "more (a, b), with the float model to 90.00 % or more (b)",
    )
    table = matrix(cross)
    assert [c.text for c in table.rows[0]] == ["100.00 %", "98.00 %", "90.00 %"]
    heat = [c.heat for c in table.rows[0]]
    assert heat[0] == 0 and heat[1] == pytest.approx(0.5) and 0.8 < heat[2] < 1
    assert matrix(None) is None and lines(None) == ()


def test_one_deployment_that_is_sure_of_nothing():
    cross = CrossAgreement("ap50", 9, ("float", "a"), ((1.0, None), (0.5, None)))
    assert matrix(cross).rows[0][1].text == "–"
    assert lines(cross)[0].endswith("with the float model to 0.5000 or more (a)")
