"""colour: a camera or a video decoder hands over NV12, and RGB is made from it.

Both ways round to bytes, three quarters of the colour is averaged away, and the matrix and range of
the two ways may not be the same. A device may use OpenCV's conversion (BT.601, limited range),
FFmpeg's scaler, or firmware in whole numbers.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from modelmill.audit.noise import LeftOut, Noise, Offer, Option, Subject, missing
from modelmill.audit.pipeline import Pipeline, Step
from modelmill.audit.yuv import Standard, from_nv12, to_nv12
from modelmill.tasks.images import Picture


def formula(rgb: Picture, there: Standard, back: Standard, swapped: bool = False) -> Picture:
    """To NV12 by one standard and back by another; swapped: Cb and Cr taken for one another."""
    y, chroma = to_nv12(rgb, there)
    return from_nv12(y, chroma[..., ::-1] if swapped else chroma, back)


def opencv(rgb: Picture) -> Picture:
    """OpenCV's own two conversions, whose planes hold what NV12 holds."""
    import cv2

    h, w = rgb.shape[:2]
    even = np.pad(rgb, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    planes = cv2.cvtColor(even, cv2.COLOR_RGB2YUV_I420)
    back: Any = cv2.cvtColor(planes, cv2.COLOR_YUV2RGB_I420)
    return np.ascontiguousarray(back[:h, :w])


def ffmpeg(rgb: Picture, matrix: str, full: bool) -> Picture:
    """FFmpeg's scaler to NV12 and back, by PyAV."""
    import av
    from av.video.reformatter import ColorRange, Colorspace

    space = {"bt601": Colorspace.ITU601, "bt709": Colorspace.ITU709}[matrix]
    held = ColorRange.JPEG if full else ColorRange.MPEG
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    nv12 = frame.reformat(
        format="nv12", dst_colorspace=space, dst_color_range=held, threads=1,
        src_color_range=ColorRange.JPEG,
    )  # fmt: skip
    back = nv12.reformat(
        format="rgb24", src_colorspace=space, src_color_range=held,
        dst_color_range=ColorRange.JPEG, threads=1,
    )  # fmt: skip
    found: Any = back.to_ndarray()
    return np.ascontiguousarray(found)


def _formulas() -> list[tuple[str, str, Any, bool]]:
    """(name, words, function, whether it is a mistake)."""
    found = []
    for matrix in ("bt601", "bt709"):
        title = matrix.upper().replace("BT", "BT.")
        for full in (False, True):
            name, words = ("full", "full range") if full else ("limited", "limited range")
            s = Standard(matrix, full)
            run = partial(formula, there=s, back=s)
            found.append((f"{matrix}-{name}", f"NV12, {title}, {words}", run, False))
        s = Standard(matrix, integer=True)
        run = partial(formula, there=s, back=s)
        words = f"NV12, {title}, limited range, in whole numbers"
        found.append((f"{matrix}-integer", words, run, False))
    old, new, full_old = Standard("bt601"), Standard("bt709"), Standard("bt601", True)
    wrong = (
        ("bt601-as-bt709", "NV12 made by BT.601, read by BT.709", old, new, False),
        ("full-as-limited", "NV12 of full range, read as limited", full_old, old, False),
        ("limited-as-full", "NV12 of limited range, read as full", old, full_old, False),
        ("nv21-as-nv12", "Cb and Cr taken for one another", old, old, True),
    )
    for name, words, there, back, swapped in wrong:
        run = partial(formula, there=there, back=back, swapped=swapped)
        found.append((name, words, run, True))
    return found


LIBRARIES: tuple[tuple[str, str, str, Any], ...] = (
    ("opencv", "cv2", "OpenCV's RGB -> YUV 4:2:0 -> RGB (BT.601, limited range)", opencv),
    ("ffmpeg-bt601", "av", "FFmpeg's RGB -> NV12 -> RGB, BT.601, limited range",
     partial(ffmpeg, matrix="bt601", full=False)),
    ("ffmpeg-bt601-full", "av", "FFmpeg's RGB -> NV12 -> RGB, BT.601, full range",
     partial(ffmpeg, matrix="bt601", full=True)),
    ("ffmpeg-bt709", "av", "FFmpeg's RGB -> NV12 -> RGB, BT.709, limited range",
     partial(ffmpeg, matrix="bt709", full=False)),
)  # fmt: skip


def _set(pipeline: Pipeline, step: Step) -> Pipeline:
    return replace(pipeline, colour=step)


def options(subject: Subject) -> Offer:
    found: list[Option | LeftOut] = []
    for name, module, about, run in LIBRARIES:
        absent = missing(module, name)
        found.append(absent or Option(name, about, partial(_set, step=Step(name, run))))
    for name, about, run, wrong in _formulas():
        found.append(Option(name, about, partial(_set, step=Step(name, run)), wrong))
    return found


PLUGIN = Noise("colour", "colour", "RGB -> NV12 -> RGB on the way to the network", options)
