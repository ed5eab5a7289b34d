"""Photographs in small: JPEG files of every kind a decoder meets, and a card for them."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modelmill import ir, plugins
from modelmill.audit import FLOAT32, Network, Subject
from modelmill.tasks import Card, card_from_json


def _smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture as photographs are: what is near is alike. (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _encoded(image: Image.Image, kind: str = "JPEG", **kept: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **kept)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def smooth() -> Callable[..., np.ndarray]:
    """smooth(height, width, seed=0) -> RGB bytes."""
    return _smooth


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """encoded(image, "JPEG", quality=85) -> the bytes of a file."""
    return _encoded


@pytest.fixture(scope="session")
def files() -> dict[str, bytes]:
    """One of every kind that is no plain colour JPEG."""
    image = Image.fromarray(_smooth(40, 50))
    deep = Image.fromarray(_smooth(40, 50)[..., 0].astype(np.uint16) * 256)
    second = Image.fromarray(_smooth(40, 50, 1))
    return {
        "cmyk": _encoded(image.convert("CMYK")),
        "grey": _encoded(image.convert("L")),
        "progressive": _encoded(image, progressive=True),
        "444": _encoded(Image.fromarray(_smooth(41, 51)), subsampling=0),
        "one pixel": _encoded(Image.fromarray(_smooth(1, 1))),
        "16 bits": _encoded(deep, "PNG"),
        "gif": _encoded(image, "GIF", save_all=True, append_images=[second]),
    }


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    return _smooth(90, 121)


@pytest.fixture(scope="session")
def jpeg(photo: np.ndarray) -> bytes:
    return _encoded(Image.fromarray(photo), quality=85)


@pytest.fixture
def card() -> Callable[..., Card]:
    """card(color="BGR", resize={...}) -> a card of a 16x16 classifier."""

    def make(task: str = "classification", decode: str = "argmax", **changes: object) -> Card:
        held = {
            "layout": "NCHW", "size": [16, 16], "color": "RGB",
            "resize": {"method": "pillow-bilinear", "mode": "shorter-side", "to": 18,
                       "crop": "center"},
            "scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
        }  # fmt: skip
        return card_from_json(
            {"task": task, "input": held | changes, "output": {"decode": decode}, "classes": 4}
        )

    return make


@pytest.fixture
def subject(graph_from_text: Callable[..., ir.Graph]) -> Callable[..., Subject]:
    """subject(card, turned=1, graph=...) -> what noises are asked about."""
    small = graph_from_text("g (float[N,3,16,16] x) => (float[N,3,16,16] y) { y = Relu(x) }")

    def make(card: Card, turned: int = 0, graph: ir.Graph = small, jpegs: int = 9) -> Subject:
        task = plugins.load("modelmill.tasks", card.task)
        network = Network(FLOAT32, Path("float.onnx"), "")
        return Subject(card, graph, task, 9, True, jpegs, turned, network)

    return make
