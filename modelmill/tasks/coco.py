"""COCO's 80 detection classes and its annotation file, `instances.json`.

The file gives boxes as [x, y, width, height] in pixels of the picture and categories by an id with
gaps (1..90); class index here is the rank of the category id, which is the order of `COCO80`.
Format: https://cocodataset.org/#format-data
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelmill.tasks.boxes import Objects, objects

COCO80 = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


@dataclass(frozen=True)
class Annotated:
    """One picture of an annotation file: name, (height, width) if given, what is in it."""

    file: str
    size: tuple[int, int] | None
    truth: Objects


def read(
    text: bytes, where: str, class_names: Sequence[str] | None, classes: int
) -> list[Annotated]:
    """The pictures of an annotation file, in its order.

    Classes are matched by name when the model's names are known, else by the rank of the category
    id.

    Raises:
        ValueError: not JSON, a key missing, a reference into nothing, or other classes than the
            model's.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    images = _rows(data, "images", ("id", "file_name"), where)
    categories = _rows(data, "categories", ("id", "name"), where)
    annotations = _rows(data, "annotations", ("image_id", "category_id", "bbox"), where)
    index = _class_index(categories, where, class_names, classes)
    by_image: dict[Any, list[Mapping[str, Any]]] = {row["id"]: [] for row in images}
    if len(by_image) < len(images):
        raise ValueError(f"{where}: two images have the same id")
    for n, row in enumerate(annotations):
        if row["image_id"] not in by_image:
            raise ValueError(
                f"{where}: annotations[{n}].image_id = {row['image_id']!r} is not the id of any of "
                "the images"
            )
        if row["category_id"] not in index:
            raise ValueError(
                f"{where}: annotations[{n}].category_id = {row['category_id']!r} is not the id of "
                "any category"
            )
        by_image[row["image_id"]].append(row)
    return [
        Annotated(
            str(row["file_name"]), _size(row), _objects(by_image[row["id"]], index, row, where)
        )
        for row in images
    ]


def _rows(data: Any, key: str, fields: tuple[str, ...], where: str) -> list[Mapping[str, Any]]:
    if not isinstance(data, dict) or not isinstance(data.get(key), list):
        found = ", ".join(data) if isinstance(data, dict) else type(data).__name__
        raise ValueError(
            f"{where}: no list {key!r}; COCO has images, annotations, categories; found: {found}"
        )
    rows: list[Mapping[str, Any]] = data[key]
    for n, row in enumerate(rows):
        missing = [f for f in fields if not isinstance(row, dict) or f not in row]
        if missing:
            raise ValueError(
                f"{where}: {key}[{n}] has no {missing[0]!r}; it needs {', '.join(fields)}"
            )
        for field in fields:
            if field.endswith("id") and not isinstance(row[field], int | str):
                raise ValueError(
                    f"{where}: {key}[{n}].{field} = {row[field]!r} is not a number or a text"
                )
    return rows


def _class_index(
    categories: list[Mapping[str, Any]], where: str, class_names: Sequence[str] | None, classes: int
) -> dict[Any, int]:
    if class_names is not None:
        strange = [str(c["name"]) for c in categories if c["name"] not in class_names]
        if strange:
            raise ValueError(
                f"{where}: the card's {classes} classes do not include "
                f"{', '.join(strange[:5])}{' ...' if len(strange) > 5 else ''}; remove these "
                "categories and their annotations, or name them in the card's classes"
            )
        return {c["id"]: class_names.index(c["name"]) for c in categories}
    if len(categories) != classes:
        raise ValueError(
            f"{where}: {len(categories)} categories, but the card says classes = {classes}; give "
            "the card a list of "
            'class names (or "coco80") to match them by name'
        )
    ids = sorted((c["id"] for c in categories), key=lambda i: (isinstance(i, str), i))
    return {category: rank for rank, category in enumerate(ids)}


def _size(row: Mapping[str, Any]) -> tuple[int, int] | None:
    h, w = row.get("height"), row.get("width")
    return (h, w) if isinstance(h, int) and isinstance(w, int) else None


def _objects(
    rows: list[Mapping[str, Any]], index: dict[Any, int], image: Mapping[str, Any], where: str
) -> Objects:
    try:
        xywh = np.array([row["bbox"] for row in rows], np.float64).reshape(len(rows), 4)
        area = [row.get("area", w * h) for row, (w, h) in zip(rows, xywh[:, 2:], strict=True)]
        return objects(
            np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
            [index[row["category_id"]] for row in rows],
            area,
            [bool(row.get("iscrowd", 0)) for row in rows],
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{where}: the annotations of {image['file_name']}: {error}; bbox must be [x, y, "
            "width, height]"
        ) from None
