"""NV12, the picture format of cameras and video decoders: RGB to it and back, by formula.

    Y  = Kr R + Kg G + Kb B          Cb = (B - Y) / (2 - 2 Kb)          Cr = (R - Y) / (2 - 2 Kr)

full range: Y and 128 + C; limited range: 16 + 219/255 Y and 128 + 224/255 C. Cb and Cr are kept
once per 2 x 2 pixels, their mean, and repeated on the way back. `integer` works as firmware does:
the matrix in 1/256, sums shifted right by 8. BT.601 and BT.709 differ in K (ITU-R BT.601-7 and
BT.709-6, item 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from modelmill.tasks.images import Picture

LUMA = {"bt601": (0.299, 0.587, 0.114), "bt709": (0.2126, 0.7152, 0.0722)}
Plane = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Standard:
    """A matrix (a name in LUMA), its range, and the arithmetic."""

    matrix: str
    full: bool = False
    integer: bool = False

    @property
    def forward(self) -> npt.NDArray[Any]:
        """(3, 3): levels of R, G, B to Y, Cb, Cr without their offsets."""
        kr, kg, kb = LUMA[self.matrix]
        luma = np.array([kr, kg, kb])
        blue = (np.array([0, 0, 1]) - luma) / (2 - 2 * kb)
        red = (np.array([1, 0, 0]) - luma) / (2 - 2 * kr)
        of_y, of_c = (1.0, 1.0) if self.full else (219 / 255, 224 / 255)
        return np.stack([of_y * luma, of_c * blue, of_c * red])

    @property
    def black(self) -> int:
        """Y of black."""
        return 0 if self.full else 16


def to_nv12(rgb: Picture, standard: Standard) -> tuple[Plane, Plane]:
    """RGB bytes (h, w, 3) -> Y (h, w) and interleaved Cb, Cr (ceil h/2, ceil w/2, 2)."""
    ycc = _product(rgb, standard.forward, standard.integer)
    h, w = rgb.shape[:2]
    chroma = np.pad(ycc[..., 1:], ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    chroma = chroma.reshape((h + 1) // 2, 2, (w + 1) // 2, 2, 2).sum(axis=(1, 3))
    mean = (chroma + 2) >> 2 if standard.integer else chroma / 4
    return _bytes(ycc[..., 0] + standard.black), _bytes(mean + 128)


def from_nv12(y: Plane, chroma: Plane, standard: Standard) -> Picture:
    """The inverse of `to_nv12`, to RGB bytes (h, w, 3)."""
    h, w = y.shape
    wide = chroma.repeat(2, axis=0).repeat(2, axis=1)[:h, :w]
    ycc = np.concatenate([y[:, :, None], wide], axis=2).astype(np.int32)
    ycc -= np.array([standard.black, 128, 128], np.int32)
    return _bytes(_product(ycc, np.linalg.inv(standard.forward), standard.integer))


def _product(pixels: npt.NDArray[Any], matrix: npt.NDArray[Any], integer: bool) -> npt.NDArray[Any]:
    """(h, w, 3) times a matrix (3, 3): float32, or int32 with the matrix in 1/256.

    By planes, which a matrix product wants; whole numbers this small are exact in float32.
    """
    planes = np.ascontiguousarray(pixels.reshape(-1, 3).T, np.float32)
    factors = np.rint(256 * matrix) if integer else matrix
    made = (factors.astype(np.float32) @ planes).T.reshape(pixels.shape)
    return (made.astype(np.int32) + 128) >> 8 if integer else made


def _bytes(levels: npt.NDArray[Any]) -> Plane:
    """Rounded half up and clipped to 0..255."""
    if levels.dtype.kind == "f":
        levels = np.floor(levels + 0.5)
    found: Plane = np.clip(levels, 0, 255).astype(np.uint8)
    return found
