"""Boxes found, objects annotated, and the greedy suppression of boxes that overlap a better one.

Boxes are xyxy = [x1, y1, x2, y2] in pixels of the original picture (not of the network's input),
float64. The overlap of two boxes is intersection over union, IoU = |A and B| / |A or B|.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Boxes:
    """What a detector found in one picture.

    boxes_xyxy (n, 4), scores (n,) in descending order, classes (n,). `invalid` counts candidates
    whose numbers were NaN or infinite; they are left out, so they count as not found.
    """

    boxes_xyxy: Floats
    scores: Floats
    classes: Ints
    invalid: int = 0


@dataclass(frozen=True, eq=False)
class Objects:
    """What is in one picture: boxes_xyxy (n, 4), classes (n,), area (n,) in pixels, crowd (n,).

    A crowd is a region of many objects: finding it is neither right nor wrong (COCO's rule).
    """

    boxes_xyxy: Floats
    classes: Ints
    area: Floats
    crowd: Bools


def objects(
    boxes_xyxy: npt.ArrayLike,
    classes: npt.ArrayLike,
    area: npt.ArrayLike | None = None,
    crowd: npt.ArrayLike | None = None,
) -> Objects:
    """Objects from lists; without `area` the boxes' own, without `crowd` no crowds.

    Raises:
        ValueError: shapes that do not agree, numbers that are not finite, x2 < x1 or y2 < y1.
    """
    boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
    n = len(boxes)
    kinds = np.asarray(classes, np.int64).reshape(-1)
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(axis=1) if area is None else np.asarray(area, np.float64).reshape(-1)
    crowds = np.zeros(n, bool) if crowd is None else np.asarray(crowd).astype(bool).reshape(-1)
    if not len(kinds) == len(areas) == len(crowds) == n:
        raise ValueError(
            f"{n} boxes with {len(kinds)} classes, {len(areas)} areas, {len(crowds)} crowd flags; "
            "give one of each per box"
        )
    if not np.isfinite(boxes).all() or (sides < 0).any():
        raise ValueError("boxes must be finite [x1, y1, x2, y2] with x1 <= x2 and y1 <= y2")
    return Objects(boxes, kinds, areas, crowds)


def iou(a_xyxy: Floats, b_xyxy: Floats) -> Floats:
    """IoU of every box of `a` (n, 4) with every one of `b` (m, 4): (n, m); 0 if both are empty."""
    shared = _shared(a_xyxy, b_xyxy, 0) * _shared(a_xyxy, b_xyxy, 1)
    union = _area(a_xyxy)[:, None] + _area(b_xyxy)[None, :] - shared
    ratio: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio


def suppress(
    boxes_xyxy: Floats, scores: Floats, classes: Ints, iou_threshold: float, max_boxes: int
) -> Ints:
    """Class-wise non-maximum suppression: indices of the boxes kept, best first.

    At most `max_boxes` are kept. A box goes if a better kept one of its class overlaps it by more
    than `iou_threshold`. Equal scores keep their order.
    """
    order = np.argsort(-scores, kind="stable")
    keep = np.ones(len(order), bool)
    for kind in np.unique(classes):
        rank = np.flatnonzero(classes[order] == kind)
        mine = boxes_xyxy[order[rank]]
        beats = iou(mine, mine) > iou_threshold
        for i in range(len(rank)):
            if keep[rank[i]]:
                keep[rank[i + 1 :][beats[i, i + 1 :]]] = False
    return order[keep][:max_boxes]


def _shared(a_xyxy: Floats, b_xyxy: Floats, axis: int) -> Floats:
    """Length that a box of `a` and one of `b` share along `axis` (0 x, 1 y): (n, m)."""
    low = np.maximum(a_xyxy[:, None, axis], b_xyxy[None, :, axis])
    high = np.minimum(a_xyxy[:, None, axis + 2], b_xyxy[None, :, axis + 2])
    return (high - low).clip(min=0)


def _area(xyxy: Floats) -> Floats:
    area: Floats = (xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1])
    return area
