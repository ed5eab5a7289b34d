"""From a picture's bytes to a network's input, exactly as the card says.

Decode (Pillow) -> RGB bytes -> grey if asked -> resize and crop on bytes, by the library and filter
the card names -> colour order -> (byte * scale - mean) / std in float32 -> layout. Resizing is done
on bytes because that is what both libraries do to pictures; a resize in float gives other numbers.
Sides in proportion are rounded half to even; a crop or a letterbox that cannot be centred has its
extra pixel at the bottom and right. torchvision truncates the longer side and rounds the corner: a
different pixel grid, which costs or gives a small mobile network a point on a few hundred pictures.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from modelmill.tasks.card import Card, Input, Size

Picture = npt.NDArray[np.uint8]  # (height, width, 3), RGB
Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[Any]  # levels 0 to 255, bytes unless a resize left fractions

_PILLOW = {method.name.lower(): method for method in Image.Resampling}
_OPENCV = {
    "nearest": "INTER_NEAREST",
    "linear": "INTER_LINEAR",
    "area": "INTER_AREA",
    "cubic": "INTER_CUBIC",
    "lanczos": "INTER_LANCZOS4",
}
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


class DataError(ValueError):
    """Data that cannot be used; the text names the file or the item."""


def decode(data: bytes, name: str, exif: bool = False) -> Picture:
    """The picture in `data` as RGB bytes (height, width, 3); the first frame if there are several.

    Palettes are looked up, grey is repeated, transparency is dropped (not blended), CMYK is
    converted, of 16 bits the high byte is kept. `exif` turns the picture upright by its EXIF
    orientation; without it the tag is ignored.

    Raises:
        DataError: empty, not a picture, truncated, or of a kind with no fixed meaning in bytes;
            names `name`.
    """
    if not data:
        raise DataError(f"{name}: the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image) if exif else image)
    except UnidentifiedImageError:
        raise DataError(f"{name}: not a picture that Pillow can read") from None
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise DataError(f"{name}: broken picture ({type(error).__name__}: {error})") from None


def to_rgb(image: Image.Image) -> Picture:
    """RGB bytes (height, width, 3) of a Pillow image of any mode.

    Raises:
        DataError: floating-point pixels, or 32-bit integers whose range is not known.
    """
    if image.mode == "RGB":
        return np.asarray(image)
    # Pillow's own conversion clips 16 bits at 255, which turns most of the picture white.
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise DataError(f"pixels of mode {image.mode!r} have no fixed range; save as 8 or 16 bits")
    if "transparency" in image.info and image.mode == "P":
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in the network's input, (y, x) in pixels.

    input = picture * scale + offset. `resized` is the picture's size after the resize; a negative
    offset is a crop, a positive one a border.
    """

    scale: tuple[float, float]
    offset: tuple[int, int]
    resized: Size

    def to_picture(self, boxes_xyxy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Boxes (n, 4) from pixels of the network's input to pixels of the picture."""
        offset = np.array([self.offset[1], self.offset[0]] * 2, np.float64)
        scale = np.array([self.scale[1], self.scale[0]] * 2, np.float64)
        return (boxes_xyxy - offset) / scale


def place(spec: Input, size: Size) -> Placement:
    """Where a picture of `size` (height, width) comes to lie in the network's input."""
    h, w = size
    rows, columns = spec.size
    if spec.resize is None:
        resized = size
    elif spec.resize.mode == "stretch":
        to = spec.resize.to
        resized = (to, to) if isinstance(to, int) else to or spec.size
    elif spec.resize.mode == "shorter-side":
        short = spec.resize.to
        assert isinstance(short, int)
        resized = (short, round(short * w / h)) if h <= w else (round(short * h / w), short)
    else:
        ratio = min(rows / h, columns / w)
        resized = (max(1, round(h * ratio)), max(1, round(w * ratio)))
    return Placement(
        scale=(resized[0] / h, resized[1] / w),
        offset=(_corner(rows, resized[0]), _corner(columns, resized[1])),
        resized=resized,
    )


def _corner(inner: int, outer: int) -> int:
    """Offset that centres a side `outer` in a side `inner`; the odd pixel lies bottom right."""
    return -((outer - inner) // 2) if outer > inner else (inner - outer) // 2


def resize(image: Picture, size: Size, method: str) -> Picture:
    """Resize bytes (h, w, 3) or (h, w) to `size` by `method`, e.g. pillow-bilinear, opencv-area.

    Raises:
        ValueError: an OpenCV method without OpenCV (the message has the pip line).
    """
    library, _, kernel = method.partition("-")
    h, w = size
    if library == "pillow":
        return np.asarray(Image.fromarray(image).resize((w, h), _PILLOW[kernel]))
    cv2 = opencv()
    out: Picture = cv2.resize(
        np.ascontiguousarray(image), (w, h), interpolation=getattr(cv2, _OPENCV[kernel])
    )
    return out


def opencv() -> Any:
    """The module cv2, imported at first use.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ValueError(
            f"the card resizes with OpenCV, which is not installed ({error}): pip install "
            "'modelmill[detection]'"
        ) from None
    return cv2


@dataclass(frozen=True)
class Prepare:
    """Pictures to network input: call it with one picture, or `batch` with many."""

    input: Input

    def __call__(self, image: Picture) -> Floats:
        """One RGB picture (h, w, 3) uint8 -> float32 (c, H, W), or (H, W, c) if NHWC."""
        one: Floats = self.batch([image])[0]
        return one

    def batch(self, images: Sequence[Picture] | Picture) -> Floats:
        """RGB pictures uint8 -> float32 (n, c, H, W) or (n, H, W, c).

        A list of (h, w, 3) of any sizes, or one array (n, h, w, 3).

        Raises:
            DataError: not uint8 RGB, or of the wrong size where the card names no resize.
        """
        return scaled(np.stack([self._fit(image) for image in images]), self.input)

    def _fit(self, image: Picture) -> Picture:
        """One picture grey if asked, resized, cropped or bordered: (H, W, channels) uint8."""
        spec = self.input
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(
                f"a picture must be uint8 of shape (height, width, 3), not {image.dtype} "
                f"{image.shape}"
            )
        if spec.color == "GRAY":
            image = grey(image, by_opencv(spec))
        size = (image.shape[0], image.shape[1])
        if spec.resize is None:
            _check_size(size, spec.size)
        else:
            placement = place(spec, size)
            resized = resize(image, placement.resized, spec.resize.method)
            image = placed(resized, placement, spec)
        return image if image.ndim == 3 else image[:, :, None]


def prepare(card: Card) -> Prepare:
    """The function from pictures to what the card's network takes."""
    if by_opencv(card.input):
        opencv()  # missing OpenCV is said now, not after the first batch
    return Prepare(card.input)


def by_opencv(spec: Input) -> bool:
    """Whether the card names OpenCV, which then also makes the grey."""
    return spec.resize is not None and spec.resize.method.startswith("opencv")


def _check_size(size: Size, wanted: Size) -> None:
    if size != wanted:
        raise DataError(
            f"the picture is {size[0]}x{size[1]} (height x width), the network takes "
            f"{wanted[0]}x{wanted[1]} and the card has input.resize null; resize the data, or say "
            "in the card how to"
        )


def placed(resized: Pixels, placement: Placement, spec: Input) -> Pixels:
    """A resized picture (h, w) or (h, w, c) cropped or bordered to the input's size; the card must
    name a resize, whose `fill` is the border.
    """
    assert spec.resize is not None
    (rows, columns), (top, left) = spec.size, placement.offset
    cropped = resized[max(-top, 0) :, max(-left, 0) :][:rows, :columns]
    if cropped.shape[:2] == spec.size:
        return cropped
    out = np.full((rows, columns, *resized.shape[2:]), spec.resize.fill, resized.dtype)
    top, left = max(top, 0), max(left, 0)
    out[top : top + cropped.shape[0], left : left + cropped.shape[1]] = cropped
    return out


def scaled(pixels: npt.NDArray[Any], spec: Input) -> Floats:
    """Levels 0 to 255 (n, H, W, c) in RGB or grey -> float32 in the input's colour order and
    layout: (level * scale - mean) / std.
    """
    if spec.color == "BGR":
        pixels = pixels[..., ::-1]
    if spec.layout == "NCHW":
        pixels = pixels.transpose(0, 3, 1, 2)
    shape = (-1, 1, 1) if spec.layout == "NCHW" else (-1,)
    # Copied once, then arithmetic in place: 5 times faster than on a strided view.
    x = np.empty(pixels.shape, np.float32)
    x[...] = pixels
    x *= np.float32(spec.scale)
    x -= np.array(spec.mean, np.float32).reshape(shape)
    x /= np.array(spec.std, np.float32).reshape(shape)
    return x


def grey(image: Picture, opencvs: bool) -> Picture:
    """Luma of ITU-R BT.601 as the named library rounds it; the two differ by at most one level."""
    if opencvs:
        cv2 = opencv()
        luma: Picture = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
        return luma
    return np.asarray(Image.fromarray(image).convert("L"))
