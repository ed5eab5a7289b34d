"""decode: the library that turns a JPEG file into RGB bytes, and how exactly.

The standard fixes what a decoder may do to within a level or two, not to the bit: libjpeg's
accurate inverse DCT rounds once, its fast one uses 8-bit multipliers; half-resolution colour is
interpolated ("fancy") or repeated; FFmpeg converts to RGB by its scaler's own tables. Decoders that
let a device read at half or a quarter of the size ("draft") skip the high frequencies before the
network's resize sees them.

Source: libjpeg-turbo's and FFmpeg's documentation; SysNoise, MLSys 2023, section 3.
"""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from modelmill.audit.noise import LeftOut, Noise, Offer, Option, Subject, missing
from modelmill.audit.pipeline import Pipeline, Step
from modelmill.tasks.card import Input
from modelmill.tasks.images import DataError, Picture, decode, to_rgb

JPEG = b"\xff\xd8"
UPRIGHT = 1  # value of the EXIF orientation that turns nothing


def pillow(data: bytes, name: str, spec: Input) -> Picture:
    """What the card means: Pillow with libjpeg-turbo's defaults."""
    return decode(data, name, spec.exif)


def pillow_draft(data: bytes, name: str, spec: Input) -> Picture:
    """Pillow's draft mode: the DCT gives the smallest of 1/1, 1/2, 1/4, 1/8 that is not below the
    size before the crop.
    """
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", _wanted(spec, image.size))
        return to_rgb(ImageOps.exif_transpose(image) if spec.exif else image)


def _wanted(spec: Input, size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) that a draft must not go below."""
    to = spec.resize.to if spec.resize is not None else None
    rows, columns = (to, to) if isinstance(to, int) else to or spec.size
    w, h = size
    scale = max(rows / h, columns / w)
    return (max(columns, int(w * scale)), max(rows, int(h * scale)))


def opencv(data: bytes, name: str, spec: Input, reduced: bool = False) -> Picture:
    """OpenCV's imdecode without orientation; reduced: at half the size where that is enough."""
    import cv2

    flags = cv2.IMREAD_COLOR
    if reduced:
        with Image.open(io.BytesIO(data)) as image:
            w, h = image.size
            enough = w >= 2 * _wanted(spec, (w, h))[0] and h >= 2 * _wanted(spec, (w, h))[1]
        flags = cv2.IMREAD_REDUCED_COLOR_2 if enough else flags
    if not spec.exif:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if bgr is None:
        raise DataError(f"{name}: OpenCV cannot decode it")
    return np.ascontiguousarray(bgr[..., ::-1])


def simplejpeg(data: bytes, name: str, spec: Input, fast: str) -> Picture:
    """libjpeg-turbo by its own interface; `fast`: "dct", "upsample" or both."""
    import simplejpeg as library

    dct, upsample = "dct" in fast, "upsample" in fast
    rgb = library.decode_jpeg(data, fastdct=dct, fastupsample=upsample, strict=False)
    return _turned(rgb, data, spec)


def ffmpeg(data: bytes, name: str, spec: Input, flags: str) -> Picture:
    """FFmpeg's own JPEG decoder and scaler, by PyAV; `flags` are the scaler's."""
    import av
    from av.video.reformatter import Interpolation

    context = av.CodecContext.create("mjpeg", "r")
    frames = [*context.decode(av.Packet(data)), *context.decode(None)]
    if not frames:
        raise DataError(f"{name}: FFmpeg found no picture")
    how = Interpolation(0)
    for flag in flags.split("|"):
        how |= Interpolation[flag]
    # One thread: two in the scaler cut the picture into slices, which changes rows at the seam.
    frame = frames[0].reformat(format="rgb24", interpolation=how, threads=1)
    rgb: Any = frame.to_ndarray()
    return _turned(rgb, data, spec)


def _turned(rgb: Picture, data: bytes, spec: Input) -> Picture:
    """Upright by the EXIF tag where the card asks for it: these decoders do not do it."""
    if not spec.exif:
        return rgb
    with Image.open(io.BytesIO(data)) as image:
        tag = image.getexif()
        turned = Image.fromarray(rgb)
        turned.getexif().update(tag)
        return np.asarray(ImageOps.exif_transpose(turned))


def by_library(data: bytes, name: str, spec: Input, run: Any, jpeg_only: bool) -> Picture:
    """A library's decoder with its own errors told as DataError; what it is not for is decoded as
    the card says.
    """
    if jpeg_only and not data.startswith(JPEG):
        return pillow(data, name, spec)
    try:
        picture: Picture = run(data, name, spec)
    except DataError:
        raise
    except Exception as error:  # decoders raise nearly anything
        raise DataError(f"{name}: {type(error).__name__}: {error}") from None
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise DataError(f"{name}: decoded to {picture.dtype} {picture.shape}, not to RGB bytes")
    return picture


LIBRARIES: tuple[tuple[str, str, str, Any], ...] = (
    ("opencv", "cv2", "OpenCV's imdecode", opencv),
    ("opencv-half", "cv2", "OpenCV decoding at half the size", partial(opencv, reduced=True)),
    ("pillow-draft", "PIL", "Pillow's draft mode: at 1/2, 1/4, 1/8 of the size", pillow_draft),
    ("turbojpeg", "simplejpeg", "libjpeg-turbo by its own interface, accurate",
     partial(simplejpeg, fast="")),
    ("turbojpeg-fast-dct", "simplejpeg", "libjpeg-turbo's fast DCT",
     partial(simplejpeg, fast="dct")),
    ("turbojpeg-fast-upsample", "simplejpeg", "libjpeg-turbo repeating half-size colour",
     partial(simplejpeg, fast="upsample")),
    ("turbojpeg-fast", "simplejpeg", "libjpeg-turbo's fast DCT, repeating half-size colour",
     partial(simplejpeg, fast="dct upsample")),
    ("ffmpeg", "av", "FFmpeg, its scaler's bilinear default", partial(ffmpeg, flags="BILINEAR")),
    ("ffmpeg-accurate", "av", "FFmpeg, bicubic colour, full chroma, accurate rounding",
     partial(ffmpeg, flags="BICUBIC|FULL_CHR_H_INT|ACCURATE_RND")),
    ("ffmpeg-point", "av", "FFmpeg repeating half-size colour", partial(ffmpeg, flags="POINT")),
)  # fmt: skip


def _set(pipeline: Pipeline, step: Step) -> Pipeline:
    return replace(pipeline, decode=step)


def _flip_exif(pipeline: Pipeline) -> Pipeline:
    spec = pipeline.card.input
    return replace(pipeline, card=replace(pipeline.card, input=replace(spec, exif=not spec.exif)))


def options(subject: Subject) -> Offer:
    if not subject.files:
        return [LeftOut("", "the data are pixels, not files: nothing is decoded")]
    found: list[Option | LeftOut] = []
    for name, module, about, run in LIBRARIES:
        absent = missing(module, name)
        jpeg_only = not name.startswith("opencv")
        if absent is not None:
            found.append(absent)
        elif jpeg_only and not subject.jpegs:
            found.append(LeftOut(name, "none of the pictures is a JPEG file"))
        elif name in ("pillow-draft", "opencv-half") and subject.card.input.resize is None:
            found.append(LeftOut(name, "the card resizes nothing, so no smaller size will do"))
        else:
            step = Step(name, partial(by_library, run=run, jpeg_only=jpeg_only))
            found.append(Option(name, about, partial(_set, step=step)))
    turn = "exif-ignored" if subject.card.input.exif else "exif-turned"
    if subject.turned and subject.card.input.resize is None:
        return [*found, LeftOut(turn, "turned pictures may not have the input's size")]
    if not subject.turned:
        return [*found, LeftOut(turn, "no picture has an EXIF orientation")]
    about = f"EXIF orientation {'ignored' if subject.card.input.exif else 'obeyed'}"
    return [*found, Option(turn, about, _flip_exif, mistake=True)]


PLUGIN = Noise("decode", "decode", "the library that decodes files", options)
