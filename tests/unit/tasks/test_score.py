"""evaluate: any function from feeds to outputs is scored; what cannot be scored is said."""

import numpy as np
import pytest

from modelmill import plugins
from modelmill.tasks import DataError, evaluate, open_data

TASK = plugins.load("modelmill.tasks", "classification")


def _pictures(levels):
    return [(np.full((6, 8, 3), level, np.uint8), truth) for level, truth in levels]


def _by_brightness(feeds):
    """A network of three classes: dark, middle, bright (scale 1, mean 0, std 1)."""
    mean = feeds["image"].mean((1, 2, 3))
    return {"y": -np.abs(mean[:, None] - np.array([0.0, 128, 255]))}


LEVELS = [(10, 0), (130, 1), (250, 2), (120, 1), (20, 2), (255, 2), (140, 1)]


@pytest.fixture
def plain(card):
    return card(scale=1, mean=[0, 0, 0], std=[1, 1, 1])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_score_is_the_same_for_every_batch_size(plain, batch_size):
    shapes, done = set(), []

    def run(feeds):
        shapes.add(feeds["image"].shape)
        return _by_brightness(feeds)

    data = open_data(_pictures(LEVELS), plain)
    score = evaluate(TASK, run, data, plain, batch_size, "image", done.append)
    assert (score.metric, score.n, score.invalid) == ("top1", 7, 0)
    assert score.value == score.metrics["top1"] == 6 / 7 and score.metrics["top5"] == 1
    assert shapes == {(batch_size, 3, 6, 8)}
    assert done == [min(i + batch_size, 7) for i in range(0, 7, batch_size)]
    assert [p.classes[0] for p in score.predictions] == [0, 1, 2, 1, 0, 2, 1]
    assert score.truths == tuple(truth for _, truth in LEVELS)
    assert (
        TASK.correct(score.predictions, score.truths).tolist() == [True] * 4 + [False] + [True] * 2
    )


def test_the_cards_metric_is_the_headline(card):
    five = card(scale=1, mean=[0, 0, 0], std=[1, 1, 1], metric="top5")
    score = evaluate(TASK, _by_brightness, open_data(_pictures(LEVELS), five), five, 2, "image")
    assert (score.metric, score.value) == ("top5", 1)


def test_nan_counts_as_wrong_and_is_counted(plain):
    def run(feeds):
        y = _by_brightness(feeds)["y"]
        y[0, 2] = np.nan
        return {"y": y}

    score = evaluate(TASK, run, open_data(_pictures(LEVELS), plain), plain, 3, "image")
    assert score.invalid == 3 and score.value == 3 / 7


def test_detection_from_end_to_end(coco_folder, detector):
    """Feeding a detector's exact answers through decoding and scoring gives AP 1."""
    card = detector(classes=2, resize={"method": "opencv-area", "mode": "stretch"})
    data = open_data(coco_folder, card)
    truths = iter([data.sample(i).truth for i in range(2)])
    sizes = iter([data.sample(i).size for i in range(2)])

    def run(feeds):
        truth, (h, w) = next(truths), next(sizes)
        x = np.zeros((1, 7, 1, 2), np.float32)
        for n in np.flatnonzero(~truth.crowd):
            x1, y1, x2, y2 = truth.boxes_xyxy[n] / [w, h, w, h]
            x[0, [0, 5 + truth.classes[n]], 0, n] = 1
            x[0, 1, 0, n] = np.arctanh((x1 + x2) / 2 * 2 - n)
            x[0, 2, 0, n] = np.arctanh((y1 + y2) / 2)
            for channel, side in ((3, x2 - x1), (4, y2 - y1)):
                x[0, channel, 0, n] = np.log(side / (1 - side))
        return {"y": x}

    task = plugins.load("modelmill.tasks", "detection")
    score = evaluate(task, run, data, card, 1, "image")
    assert (score.metric, score.n) == ("ap50", 2)
    assert list(score.metrics.values()) == pytest.approx([1, 1, 1])


def test_no_labels_no_score(plain):
    pictures = [image for image, _ in _pictures(LEVELS)]
    with pytest.raises(DataError, match=r"no labels.*--calib"):
        evaluate(TASK, _by_brightness, open_data(pictures, plain), plain, 2, "image")
    with pytest.raises(DataError, match="no pictures are left"):
        nothing = open_data(_pictures(LEVELS), plain).subset([])
        evaluate(TASK, _by_brightness, nothing, plain, 2, "image")
    half = [*_pictures(LEVELS[:3]), pictures[0]]
    with pytest.raises(DataError, match="item 3 has no label"):
        evaluate(TASK, _by_brightness, open_data(half, plain), plain, 2, "image")


def test_outputs_that_do_not_fit_are_named(plain):
    data = open_data(_pictures(LEVELS), plain)
    for run, words in (
        (lambda feeds: {"y": np.zeros((2, 4))}, r"argmax reads \(batch, 3\).*\(2, 4\)"),
        (lambda feeds: {"y": np.zeros((1, 3))}, "gave 1 predictions for 2 pictures"),
        (lambda feeds: {}, "0 outputs"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate(TASK, run, data, plain, 2, "image")


def test_errors_of_the_engine_pass_through(plain):
    def run(feeds):
        raise RuntimeError("engine died")

    with pytest.raises(RuntimeError, match="engine died"):
        evaluate(TASK, run, open_data(_pictures(LEVELS), plain), plain, 2, "image")
