"""Scores of draws: fast, and equal to scoring the drawn pictures."""

import dataclasses

import numpy as np
import pytest

from modelmill import plugins
from modelmill.tasks import Boxes, DataError

TASKS = plugins.names("modelmill.tasks")


@pytest.mark.parametrize("name", TASKS)
def test_a_draw_scores_as_its_pictures_do(name):
    task = plugins.load("modelmill.tasks", name)
    card, truths = task.example(0)
    predictions = [task.ideal(truth, card) for truth in truths]
    if name == "detection":  # worse than ideal, so that something is to be counted
        rng = np.random.default_rng(0)
        predictions = [
            Boxes(p.boxes_xyxy + rng.normal(0, 4, p.boxes_xyxy.shape), rng.random(len(p.scores)),
                  p.classes)
            for p in predictions
        ]  # fmt: skip
    else:
        predictions = [predictions[i // 2] for i in range(len(predictions))]
    score = task.resampled(predictions, truths, card)
    rng = np.random.default_rng(1)
    for drawn in [np.arange(len(truths)), *rng.integers(0, len(truths), (6, len(truths)))]:
        expected = task.score([predictions[i] for i in drawn], [truths[i] for i in drawn], card)
        assert score(drawn) == pytest.approx(expected, abs=1e-12)


def test_a_draw_without_objects_scores_nothing():
    task = plugins.load("modelmill.tasks", "detection")
    card, truths = task.example(0)
    score = task.resampled([task.ideal(t, card) for t in truths], truths, card)
    empty = [i for i, t in enumerate(truths) if len(t.classes) == 0 or t.crowd.all()]
    assert empty and score(np.array(empty)) == {"ap50": 0.0, "ap": 0.0, "ap75": 0.0}


def test_no_object_at_all():
    task = plugins.load("modelmill.tasks", "detection")
    card, truths = task.example(0)
    bare = [t for t in truths if len(t.classes) == 0]
    with pytest.raises(DataError, match="undefined"):
        task.resampled([task.ideal(t, card) for t in bare], bare, card)


@pytest.mark.parametrize("metric", ["ap50", "ap", "ap75"])
def test_the_cards_metric_alone(metric):
    """Many boxes, equal scores among them, crowds: a draw scores as pycocotools scores it."""
    task = plugins.load("modelmill.tasks", "detection")
    card, truths = task.example(1)
    rng = np.random.default_rng(0)
    predictions = []
    for truth in truths:
        boxes = truth.boxes_xyxy.repeat(3, axis=0)
        scores = np.sort(rng.integers(0, 9, len(boxes)) / 10)[::-1]
        noisy = boxes + rng.normal(0, 2, boxes.shape)
        predictions.append(Boxes(noisy, scores, rng.integers(0, 5, len(boxes))))
    card = dataclasses.replace(card, metric=metric)
    score = task.resampled(predictions, truths, card)
    for drawn in [np.arange(len(truths)), *(rng.permutation(len(truths))[:5] for _ in range(4))]:
        drawn = np.sort(drawn)  # equal scores keep the order of the pictures
        held = [predictions[i] for i in drawn], [truths[i] for i in drawn]
        assert score(drawn) == pytest.approx({metric: task.score(*held, card)[metric]}, abs=1e-12)
