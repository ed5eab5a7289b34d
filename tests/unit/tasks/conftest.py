"""Small cards and small picture files for the tests of tasks."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modelmill.tasks import Card, card_from_json

Make = Callable[..., Any]


def card_data(**changes: Any) -> dict[str, Any]:
    """JSON of a classification card; keys of `input` may be given beside the outer ones."""
    data: dict[str, Any] = {
        "task": "classification",
        "input": {
            "layout": "NCHW",
            "size": [6, 8],
            "color": "RGB",
            "resize": None,
            "scale": 0.00392156862745098,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "output": {"decode": "argmax"},
        "classes": 3,
    }
    for key, value in changes.items():
        holder = data["input"] if key in data["input"] or key == "exif" else data
        holder[key] = value
    return data


@pytest.fixture
def data() -> Callable[..., dict[str, Any]]:
    return card_data


@pytest.fixture
def card() -> Callable[..., Card]:
    return lambda **changes: card_from_json(card_data(**changes))


@pytest.fixture
def detector() -> Callable[..., Card]:
    def make(**changes: Any) -> Card:
        output = {"decode": "fastestdet"}
        return card_from_json(card_data(**{"task": "detection", "output": output, **changes}))

    return make


def picture(seed: int, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(name="picture")
def picture_fixture() -> Callable[..., np.ndarray]:
    return picture


@pytest.fixture(name="encoded")
def encoded_fixture() -> Callable[..., bytes]:
    return encoded


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    """Three classes, two pictures each; picture n of class c is `picture(10 * c + n)`."""
    root = tmp_path / "folder"
    for c, name in enumerate(("ant", "bee", "cat")):
        (root / name).mkdir(parents=True)
        for n in range(2):
            (root / name / f"{n}.png").write_bytes(encoded(picture(10 * c + n)))
    return root


@pytest.fixture
def csv_folder(tmp_path: Path) -> Path:
    root = tmp_path / "csv"
    (root / "images").mkdir(parents=True)
    for n in range(4):
        (root / "images" / f"{n}.png").write_bytes(encoded(picture(n)))
    lines = ["file,class_index", "3.png,2", "0.png,0", "1.png,1", "2.png,0"]
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def instances() -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "b.png", "height": 20, "width": 30},
            {"id": 3, "file_name": "a.png", "height": 10, "width": 12},
        ],
        "categories": [{"id": 90, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [
            {"image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 8], "area": 60.5, "iscrowd": 0},
            {"image_id": 7, "category_id": 5, "bbox": [0, 0, 30, 20], "area": 9, "iscrowd": 1},
            {"image_id": 3, "category_id": 5, "bbox": [2, 2, 4, 5]},
        ],
    }


@pytest.fixture(name="instances")
def instances_fixture() -> dict[str, Any]:
    return instances()


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    (root / "images").mkdir(parents=True)
    (root / "images" / "a.png").write_bytes(encoded(picture(1, (10, 12))))
    (root / "images" / "b.png").write_bytes(encoded(picture(2, (20, 30))))
    (root / "instances.json").write_text(json.dumps(instances()))
    return root
