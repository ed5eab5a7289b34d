"""Every filter gives what its library gives when it is called directly."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from modelmill.audit.noise import Option
from modelmill.audit.pipeline import Pipeline
from modelmill.audit.resize import PLUGIN, nv12_linear
from modelmill.audit.sweep import _fit
from modelmill.audit.yuv import Standard, from_nv12, to_nv12
from modelmill.tasks.schema import METHODS

SIZE = (16, 16)
STRETCH = {"method": "pillow-bilinear", "mode": "stretch"}


def by_hand(name: str, photo: np.ndarray) -> np.ndarray:
    library, _, kernel = name.partition("-")
    if library == "pillow":
        return np.asarray(Image.fromarray(photo).resize(SIZE, Image.Resampling[kernel.upper()]))
    if library == "opencv":
        flag = {"lanczos": "INTER_LANCZOS4"}.get(kernel, f"INTER_{kernel.upper()}")
        return cv2.resize(photo, SIZE, interpolation=getattr(cv2, flag))
    x = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None]
    x = x.float() if "float" in name else x
    mode = kernel.split("-")[0]
    corners = {} if mode == "nearest" else {"align_corners": False}
    antialias = "antialias" in name or "float" in name
    y = torch.nn.functional.interpolate(x, SIZE, mode=mode, antialias=antialias, **corners)
    return y[0].permute(1, 2, 0).numpy()


def test_as_the_library_itself(photo, card, subject):
    held = card(resize=STRETCH)
    options = [o for o in PLUGIN.options(subject(held)) if isinstance(o, Option)]
    names = {o.name for o in options}
    assert names > set(METHODS) - {"pillow-bilinear"} and "pillow-bilinear" not in names
    for option in options:
        if option.name != "nv12-linear":
            pipeline = option.change(Pipeline(held))
            found = _fit(pipeline, pipeline.card.input, photo)
            assert np.array_equal(found, by_hand(option.name, photo)), option.name


def test_nv12_is_resized_by_opencv_plane_by_plane(photo):
    y, chroma = to_nv12(photo, Standard("bt601"))
    y = cv2.resize(y, (20, 14), interpolation=cv2.INTER_LINEAR)
    chroma = cv2.resize(chroma, (10, 7), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(nv12_linear(photo, (14, 20)), from_nv12(y, chroma, Standard("bt601")))
    assert nv12_linear(photo, (13, 1)).shape == (13, 1, 3)


@pytest.mark.parametrize("name", ["torch-bilinear", "torch-bicubic-antialias", "torch-nearest"])
def test_grey_pictures(name, card, subject, smooth):
    held = card(color="GRAY", mean=[0.0], std=[1.0], resize=STRETCH)
    offered = {o.name: o for o in PLUGIN.options(subject(held))}
    pipeline = offered[name].change(Pipeline(held))
    grey = smooth(40, 50)[..., 0]
    assert _fit(pipeline, held.input, grey).shape == SIZE
    assert "grey" in offered["nv12-linear"].why


def test_nothing_to_resize(card, subject):
    (only,) = PLUGIN.options(subject(card(resize=None)))
    assert only.name == "" and "resizes nothing" in only.why
