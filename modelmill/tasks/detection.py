"""Detection: boxes with classes; COCO's average precision.

AP is the area under precision over recall at 101 recall levels, averaged over classes and over IoU
thresholds 0.50, 0.55, ..., 0.95; AP50 and AP75 take one threshold. At most 100 boxes count per
picture; a crowd is neither right nor wrong to find. Computed by pycocotools, COCO's own code, so
numbers compare with published ones.
"""

import contextlib
import io
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from modelmill.tasks.average_precision import matched
from modelmill.tasks.boxes import Boxes, Objects, iou, objects
from modelmill.tasks.card import Card, Input, Output
from modelmill.tasks.images import DataError
from modelmill.tasks.task import Task

SURE = 0.25  # score from which a found box counts as said to be there
PARTNERS = 0.5  # IoU from which two boxes are taken for one

# pycocotools prints; standard output belongs to the process, so one score at a time redirects it.
_silence = threading.Lock()


def score(predictions: Sequence[Boxes], truths: Sequence[Objects], card: Card) -> dict[str, float]:
    """COCO's AP50, AP and AP75, fractions between 0 and 1.

    Raises:
        DataError: no object in any truth, so that precision and recall mean nothing.
        ValueError: pycocotools is not installed (the message has the pip line).
    """
    evaluation = _evaluation(predictions, truths, card)
    with _silence, contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ap, ap50, ap75 = (float(value) for value in evaluation.stats[:3])
    return {"ap50": ap50, "ap": ap, "ap75": ap75}


def resample(
    predictions: Sequence[Boxes], truths: Sequence[Objects], card: Card
) -> Callable[[npt.NDArray[np.intp]], dict[str, float]]:
    """Scores of draws of the pictures (indices with repetition); boxes are matched only once. Of
    the card's metric alone where it names one, else of all.

    A draw without any object scores 0. Raises as `score` does.
    """
    evaluation = _evaluation(predictions, truths, card)
    params = evaluation.params
    params.areaRng, params.areaRngLbl = [[0, 1e10]], ["all"]
    params.maxDets = params.maxDets[-1:]
    rows = {"ap50": [0], "ap": list(range(len(params.iouThrs))), "ap75": [5]}  # IoU thresholds
    if card.metric is not None:
        params.iouThrs = params.iouThrs[rows[card.metric]]
        rows = {card.metric: list(range(len(params.iouThrs)))}
    with _silence, contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    found = matched(evaluation.evalImgs, card.class_count, len(truths), params.maxDets[-1])

    def score_draw(drawn: npt.NDArray[np.intp]) -> dict[str, float]:
        weights = np.bincount(drawn, minlength=len(truths))
        needed = {t for each in rows.values() for t in each}
        at = {t: found.precision(weights, t, params.recThrs) for t in needed}
        return {k: float(np.mean([at[t] for t in each])) for k, each in rows.items()}

    return score_draw


def _evaluation(predictions: Sequence[Boxes], truths: Sequence[Objects], card: Card) -> Any:
    """The evaluation of pycocotools, ready to run; see `score` for what it raises."""
    if all(truth.crowd.all() for truth in truths):
        raise DataError("no picture has an annotated object: average precision is undefined")
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ValueError(
            f"detection is scored by pycocotools, which is not installed ({error}): pip install "
            "'modelmill[detection]'"
        ) from None
    with _silence, contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset = _dataset([_annotations(t) for t in truths], card.class_count)
        found.dataset = _dataset([_detections(p) for p in predictions], card.class_count)
        truth.createIndex()
        found.createIndex()
        return COCOeval(truth, found, "bbox")


def _dataset(rows: list[list[dict[str, Any]]], classes: int) -> dict[str, Any]:
    """COCO's dataset of one row per box; ids start at 1, its matcher reads 0 as no match."""
    annotations = [
        {**row, "image_id": image} for image, rows_of in enumerate(rows, 1) for row in rows_of
    ]
    return {
        "images": [{"id": image} for image in range(1, len(rows) + 1)],
        "categories": [{"id": c} for c in range(classes)],
        "annotations": [{**row, "id": n} for n, row in enumerate(annotations, 1)],
    }


def _annotations(truth: Objects) -> list[dict[str, Any]]:
    return [
        {"bbox": _xywh(box), "category_id": int(c), "area": float(area), "iscrowd": int(crowd)}
        for box, c, area, crowd in zip(
            truth.boxes_xyxy, truth.classes, truth.area, truth.crowd, strict=True
        )
    ]


def _detections(found: Boxes) -> list[dict[str, Any]]:
    return [
        {
            "bbox": _xywh(box),
            "category_id": int(c),
            "score": float(s),
            "area": float((box[2] - box[0]) * (box[3] - box[1])),
            "iscrowd": 0,
        }
        for box, c, s in zip(found.boxes_xyxy, found.classes, found.scores, strict=True)
    ]


def _xywh(box: Any) -> list[float]:
    x1, y1, x2, y2 = box.tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def ideal(truth: Objects, card: Card) -> Boxes:
    seen = ~truth.crowd
    return Boxes(truth.boxes_xyxy[seen], np.ones(int(seen.sum())), truth.classes[seen])


def as_truth(prediction: Boxes, card: Card) -> Objects:
    """The boxes of at least SURE as objects. Boxes below it, of which a detector emits many to win
    a little recall, are not what it says is there.
    """
    sure = prediction.scores >= SURE
    return objects(prediction.boxes_xyxy[sure], prediction.classes[sure])


def changed(a: Boxes, b: Boxes) -> tuple[int, int]:
    """How many boxes of at least SURE, of both, have no partner on the other side, and how many
    there are: partners are of one class and overlap with an IoU of at least PARTNERS.
    """
    one, other = a.scores >= SURE, b.scores >= SURE
    overlap = iou(a.boxes_xyxy[one], b.boxes_xyxy[other])
    overlap[a.classes[one][:, None] != b.classes[other][None, :]] = 0.0
    pairs = 0
    for row in range(len(overlap)):
        best = int(overlap[row].argmax()) if overlap.shape[1] else 0
        if overlap.shape[1] and overlap[row, best] >= PARTNERS:
            overlap[:, best] = 0.0  # a box has one partner
            pairs += 1
    total = int(one.sum()) + int(other.sum())
    return total - 2 * pairs, total


def example(seed: int) -> tuple[Card, list[Objects]]:
    rng = np.random.default_rng(seed)
    scaled = Input("NCHW", (64, 96), "RGB", None, 1 / 255, (0.0,) * 3, (1.0,) * 3)
    card = Card("detection", scaled, Output("fastestdet"), 5)
    truths = []
    for n in rng.integers(0, 6, 8):
        corner = rng.uniform(0, 50, (n, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(4, 40, (n, 2))], axis=1)
        truths.append(objects(boxes, rng.integers(0, 5, n), crowd=rng.random(n) < 0.2))
    return card, truths


PLUGIN = Task(
    name="detection",
    metrics=("ap50", "ap", "ap75"),
    truth=Objects,
    prediction=Boxes,
    score=score,
    ideal=ideal,
    example=example,
    as_truth=as_truth,
    resample=resample,
    changed=changed,
)
