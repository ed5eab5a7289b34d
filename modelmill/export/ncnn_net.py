"""An ncnn model in the making: its layers, its weights, and the two files that hold them.

The .param file is text: a magic number, the counts of layers and blobs, then a line for each layer:
type, name, how many blobs it reads and writes, their names, and its parameters `id=value` (an array
as `-233<id>=count,values`). The .bin file holds the weights of the layers one after the other;
where a weight may have several formats, four bytes before it say which.

A blob has no batch: it is one image, with one to four dimensions (c, d, h, w; fewer drop d, then c,
then h). A blob may be read once only, so one with more readers goes through a Split.
Source: ncnn, src/net.cpp, src/paramdict.cpp, src/modelbin.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MAGIC = 7767517
LONGEST_NAME = 200  # the reader has 255 characters
TAG_FLOAT32 = b"\0\0\0\0"
TAG_INT8 = (0x000D4B38).to_bytes(4, "little")

Dims = tuple[int, ...]
Parameter = int | float | Sequence[int] | Sequence[float]


@dataclass(frozen=True)
class Blob:
    """A tensor of the net: its name there and its dimensions, outermost first."""

    name: str
    dims: Dims


@dataclass(frozen=True)
class Layer:
    """One line of the .param file."""

    kind: str
    name: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    parameters: tuple[str, ...]


def raw(array: np.ndarray) -> bytes:
    """A weight that is always float32: a bias, scales."""
    return np.ascontiguousarray(array, np.dtype("<f4")).tobytes()


def tagged(array: np.ndarray) -> bytes:
    """A weight that may be float32 or int8, with the tag that says which."""
    if array.dtype == np.int8:
        return TAG_INT8 + array.tobytes() + bytes(-array.size % 4)
    return TAG_FLOAT32 + raw(array)


class Net:
    """Layers are added in the order they run; `param` and `weights` are what the files hold."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self._weights: list[bytes] = []
        self._blobs = 0
        self._names: set[str] = set()

    def add(
        self,
        kind: str,
        name: str,
        bottoms: Sequence[Blob],
        tops: Sequence[Dims],
        parameters: Mapping[int, Parameter] | None = None,
        weights: Iterable[bytes] = (),
    ) -> tuple[Blob, ...]:
        """Append a layer; the blobs it writes, of dimensions `tops`."""
        made = tuple(Blob(f"{self._blobs + i}", dims) for i, dims in enumerate(tops))
        self._blobs += len(made)
        given = tuple(_parameter(key, value) for key, value in (parameters or {}).items())
        bottom_names = tuple(blob.name for blob in bottoms)
        top_names = tuple(blob.name for blob in made)
        self.layers.append(Layer(kind, self._unique(name), bottom_names, top_names, given))
        self._weights.extend(weights)
        return made

    def weights(self) -> bytes:
        """The .bin file; never empty, as ncnn refuses to read nothing."""
        return b"".join(self._weights) or TAG_FLOAT32

    def param(self, outputs: Iterable[str]) -> tuple[str, dict[str, str]]:
        """The .param file, and {blob asked for: the blob that holds it in the file}."""
        wanted = list(dict.fromkeys(outputs))
        readers: dict[str, int] = dict.fromkeys(wanted, 1)
        for layer in self.layers:
            for bottom in layer.bottoms:
                readers[bottom] = readers.get(bottom, 0) + 1
        copies: dict[str, list[str]] = {}
        lines: list[str] = []
        blobs = 0
        for layer in self.layers:
            bottoms = [copies[b].pop() if b in copies else b for b in layer.bottoms]
            lines.append(_line(layer.kind, layer.name, bottoms, layer.tops, layer.parameters))
            blobs += len(layer.tops)
            for top in layer.tops:
                n = readers.get(top, 0)
                if n > 1:
                    copies[top] = [f"{top}_{i}" for i in reversed(range(n))]
                    lines.append(_line("Split", f"split_{top}", [top], copies[top][::-1], ()))
                    blobs += n
        held = {name: copies[name].pop() if name in copies else name for name in wanted}
        head = f"{MAGIC}\n{len(lines)} {blobs}\n"
        return head + "".join(lines), held

    def _unique(self, name: str) -> str:
        """The name without white space, short enough, and not used before."""
        stem = re.sub(r"\s+", "_", name)[:LONGEST_NAME] or "layer"
        made, count = stem, 0
        while made in self._names:
            count += 1
            made = f"{stem}.{count}"
        self._names.add(made)
        return made


def _line(
    kind: str, name: str, bottoms: Sequence[str], tops: Sequence[str], parameters: Sequence[str]
) -> str:
    counts = (str(len(bottoms)), str(len(tops)))
    return " ".join((kind, name, *counts, *bottoms, *tops, *parameters)) + "\n"


def _parameter(key: int, value: Parameter) -> str:
    if isinstance(value, int | float | np.number):
        return f"{key}={_number(value)}"
    return f"{-23300 - key}={len(value)},{','.join(_number(v) for v in value)}"


def _number(value: int | float | np.number) -> str:
    """Nine digits give every float32 back; the exponent tells the reader that it is one. Older
    versions read no more than 15 characters.
    """
    if isinstance(value, int | np.integer):
        return str(int(value))
    return f"{float(np.clip(value, -3.4e38, 3.4e38)):.8e}"
