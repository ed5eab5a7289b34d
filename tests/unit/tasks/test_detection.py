"""Average precision against pycocotools fed from files, and its corners."""

import json
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from modelmill.tasks import Boxes, DataError, objects
from modelmill.tasks.detection import PLUGIN, example


def _shaken(truths, seed):
    """Detections that are nearly the truth, with some missed and some invented."""
    rng = np.random.default_rng(seed)
    found = []
    for truth in truths:
        keep = rng.random(len(truth.classes)) < 0.8
        boxes = truth.boxes_xyxy[keep] + rng.normal(0, 2, (int(keep.sum()), 4))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
        boxes = np.concatenate([boxes, [[0, 0, 9, 9]]])
        classes = np.append(truth.classes[keep], rng.integers(0, 5))
        found.append(Boxes(boxes, rng.random(len(boxes)), classes))
    return found


def _xywh(box):
    return [float(v) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1])]


def test_is_what_pycocotools_says_of_files(tmp_path, capsys):
    card, truths = example(3)
    found = _shaken(truths, 0)
    annotations, detections = [], []
    for image, (t, f) in enumerate(zip(truths, found, strict=True)):
        for box, c, area, crowd in zip(t.boxes_xyxy, t.classes, t.area, t.crowd, strict=True):
            row = {"id": len(annotations) + 1, "image_id": image, "category_id": int(c) + 1}
            row |= {"bbox": _xywh(box), "area": float(area), "iscrowd": int(crowd)}
            annotations.append(row)
        for box, c, score in zip(f.boxes_xyxy, f.classes, f.scores, strict=True):
            row = {"image_id": image, "category_id": int(c) + 1, "bbox": _xywh(box)}
            detections.append({**row, "score": float(score)})
    (tmp_path / "gt.json").write_text(
        json.dumps(
            {
                "images": [{"id": i} for i in range(len(truths))],
                "categories": [{"id": c + 1} for c in range(5)],
                "annotations": annotations,
            }
        )
    )
    (tmp_path / "dt.json").write_text(json.dumps(detections))
    truth = COCO(str(tmp_path / "gt.json"))
    truth.dataset["info"] = {}
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "dt.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    scores = PLUGIN.score(found, truths, card)
    assert [scores[k] for k in ("ap", "ap50", "ap75")] == pytest.approx(list(evaluation.stats[:3]))
    assert 0 < scores["ap"] < scores["ap50"] < 1
    assert capsys.readouterr().out == ""


def test_nothing_found_scores_zero():
    card, truths = example(0)
    nothing = Boxes(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    assert PLUGIN.score([nothing] * len(truths), truths, card) == {"ap50": 0, "ap": 0, "ap75": 0}


def test_wrong_class_scores_zero():
    card, _ = example(0)
    truth = objects([[0, 0, 9, 9]], [1])
    found = Boxes(truth.boxes_xyxy, np.ones(1), np.array([2]))
    assert PLUGIN.score([found], [truth], card)["ap50"] == 0


def test_a_crowd_is_neither_right_nor_wrong():
    card, _ = example(0)
    truth = objects([[0, 0, 9, 9], [20, 20, 60, 60]], [1, 1], crowd=[0, 1])
    boxes = np.array([[0, 0, 9, 9], [25, 25, 40, 40.0]])
    found = Boxes(boxes, np.array([0.5, 0.9]), np.array([1, 1]))
    assert PLUGIN.score([found], [truth], card)["ap"] == pytest.approx(1)


@pytest.mark.parametrize("truth", [objects([], []), objects([[0, 0, 9, 9]], [1], crowd=[1])])
def test_no_object_at_all_is_undefined(truth):
    card, _ = example(0)
    with pytest.raises(DataError, match="undefined"):
        PLUGIN.score([PLUGIN.ideal(truth, card)], [truth], card)


def test_missing_pycocotools_gives_the_pip_line(monkeypatch):
    card, truths = example(0)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ValueError, match=r"pip install 'modelmill\[detection\]'"):
        PLUGIN.score([PLUGIN.ideal(t, card) for t in truths], truths, card)


def test_headline(detector):
    assert PLUGIN.primary(detector()) == "ap50" and PLUGIN.primary(detector(metric="ap")) == "ap"
