"""Operators that detectors end with."""

from __future__ import annotations

import torch
from torch import Tensor


def NonMaxSuppression(
    boxes: Tensor,
    scores: Tensor,
    max_output_boxes_per_class: int | None = None,
    iou_threshold: float | None = None,
    score_threshold: float | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """Boxes (batch, n, 4), scores (batch, class, n) -> rows (batch, class, box) of what is kept.

    A box is dropped where it overlaps one with a higher score by more than `iou_threshold`.
    """
    most = max_output_boxes_per_class or 0
    corners = _corners(boxes, center_point_box)
    kept = []
    for batch, of_batch in enumerate(scores):
        for kind, score in enumerate(of_batch):
            order = torch.sort(score, descending=True, stable=True).indices
            if score_threshold is not None:
                order = order[score[order] > score_threshold]
            overlapping = _overlaps(corners[batch][order]) > (iou_threshold or 0.0)
            chosen = _greedy(overlapping, most)
            kept += [(batch, kind, int(order[i])) for i in chosen]
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _corners(boxes: Tensor, centered: int) -> Tensor:
    """Any two opposite corners, or centre, width and height, as lowest and highest corner."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if centered:
        first, second = first - second / 2, first + second / 2
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], -1)


def _overlaps(boxes: Tensor) -> Tensor:
    """Intersection over union of every pair: (n, 4) -> (n, n)."""
    low, high = boxes[:, :2], boxes[:, 2:]
    area = (high - low).prod(-1)
    sides = torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)
    shared = sides.clamp(min=0).prod(-1)
    union = area[:, None] + area - shared
    return torch.where(union > 0, shared / union, torch.zeros_like(union))


def _greedy(overlapping: Tensor, most: int) -> list[int]:
    """Positions kept, from a matrix of which boxes overlap, best box first."""
    chosen: list[int] = []
    dropped = torch.zeros(len(overlapping), dtype=torch.bool)
    overlapping = overlapping.cpu()
    for i in range(len(overlapping)):
        if len(chosen) == most:
            break
        if not dropped[i]:
            chosen.append(i)
            dropped |= overlapping[i]
    return chosen
