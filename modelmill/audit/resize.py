"""resize: the library and filter that change a picture's size.

Libraries mean different things by one name. Pillow's filters grow with the reduction
(antialiasing), OpenCV's "linear" reads four pixels whatever the reduction, torch does either;
cameras resize NV12, where colour has half the size. "float" keeps what others round to bytes.

Source: SysNoise, MLSys 2023, section 3; the libraries' documentation.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from modelmill.audit.noise import LeftOut, Noise, Offer, Option, Subject, missing
from modelmill.audit.pipeline import Pipeline, Step
from modelmill.audit.yuv import Standard, from_nv12, to_nv12
from modelmill.tasks.card import Size
from modelmill.tasks.images import Picture, Pixels, opencv
from modelmill.tasks.schema import METHODS


def torch_interpolate(
    image: Picture, size: Size, mode: str, antialias: bool = False, rounded: bool = True
) -> Pixels:
    """torch.nn.functional.interpolate on bytes, or on float32 without rounding."""
    import torch
    from torch.nn.functional import interpolate

    planes = image[None, None] if image.ndim == 2 else image.transpose(2, 0, 1)[None]
    x = torch.from_numpy(planes.copy())  # Pillow hands out read-only memory
    x = x if rounded else x.float()
    corners = {} if mode.startswith("nearest") else {"align_corners": False}
    y = interpolate(x, size, mode=mode, antialias=antialias, **corners)[0].numpy()
    return np.ascontiguousarray(y[0] if image.ndim == 2 else y.transpose(1, 2, 0))


def nv12_linear(image: Picture, size: Size) -> Pixels:
    """OpenCV's linear filter on the two planes of NV12 (BT.601, limited range)."""
    cv2 = opencv()
    standard = Standard("bt601")
    y, chroma = to_nv12(image, standard)
    h, w = size
    y = cv2.resize(y, (w, h), interpolation=cv2.INTER_LINEAR)
    half = ((w + 1) // 2, (h + 1) // 2)
    chroma = cv2.resize(chroma, half, interpolation=cv2.INTER_LINEAR).reshape(half[1], half[0], 2)
    return from_nv12(y, chroma, standard)


TORCH: tuple[tuple[str, str, Any], ...] = (
    ("torch-nearest", "torch, nearest", {"mode": "nearest"}),
    ("torch-bilinear", "torch, bilinear, no antialiasing", {"mode": "bilinear"}),
    ("torch-bilinear-antialias", "torch, bilinear, antialiasing",
     {"mode": "bilinear", "antialias": True}),
    ("torch-bilinear-float", "torch, bilinear, antialiasing, not rounded to bytes",
     {"mode": "bilinear", "antialias": True, "rounded": False}),
    ("torch-bicubic", "torch, bicubic, no antialiasing", {"mode": "bicubic"}),
    ("torch-bicubic-antialias", "torch, bicubic, antialiasing",
     {"mode": "bicubic", "antialias": True}),
)  # fmt: skip


def _method(pipeline: Pipeline, method: str) -> Pipeline:
    spec = pipeline.card.input
    assert spec.resize is not None
    changed = replace(spec, resize=replace(spec.resize, method=method))
    return replace(pipeline, card=replace(pipeline.card, input=changed))


def _set(pipeline: Pipeline, step: Step) -> Pipeline:
    return replace(pipeline, resize=step)


def options(subject: Subject) -> Offer:
    how = subject.card.input.resize
    if how is None:
        return [LeftOut("", "the card resizes nothing: pictures have the input's size")]
    no_opencv = missing("cv2", "opencv")
    found: list[Option | LeftOut] = []
    for method in METHODS:
        library, _, kernel = method.partition("-")
        if library == "opencv" and no_opencv is not None:
            found.append(LeftOut(method, no_opencv.why))
        elif method != how.method:
            words = f"{ {'pillow': 'Pillow', 'opencv': 'OpenCV'}[library] }, {kernel}"
            found.append(Option(method, words, partial(_method, method=method)))
    for name, words, kept in TORCH:
        step = Step(name, partial(torch_interpolate, **kept))
        found.append(Option(name, words, partial(_set, step=step)))
    name = "nv12-linear"
    if subject.card.input.color == "GRAY":
        return [*found, LeftOut(name, "the network takes grey pictures")]
    if no_opencv is not None:
        return [*found, LeftOut(name, no_opencv.why)]
    words = "NV12 resized plane by plane, OpenCV's linear filter"
    return [*found, Option(name, words, partial(_set, step=Step(name, nv12_linear)))]


PLUGIN = Noise("resize", "resize", "the library and filter that change the size", options)
