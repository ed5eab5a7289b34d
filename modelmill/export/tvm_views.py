"""Movement as index maps: which element of a source each element of a tensor is.

A chain of Reshape, Transpose, Gather, Slice, Split, Pad and the like is followed on the numbers
0, 1, 2, ... of the source's elements (-1 where padding is put in). If the outcome of a picture
N C H W only selects channels, rows and columns,

    out[n, c, h, w] = source[n, channels[c], rows[h], columns[w]]

then a chain such as ShuffleNet's channel shuffle is one copy of channels for each pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modelmill import ir

Index = np.ndarray  # int32, of the tensor's shape
LARGEST = 2**24  # elements that are followed
MOST_RUNS = 64
SAME_ORDER = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
MOVES = frozenset([*SAME_ORDER, "Transpose", "Gather", "Slice", "Split", "Pad", "Resize"])


@dataclass(frozen=True)
class View:
    """A tensor as elements of the value `source`, which its reader takes in the form `form` (an
    Encoding, or None for real numbers).
    """

    source: str
    form: object
    index: Index


@dataclass(frozen=True)
class Run:
    """`count` channels from `out` on, from `start`, `start + step`, ...; -1: padding."""

    out: int
    start: int
    step: int
    count: int


@dataclass(frozen=True)
class Selection:
    """Channels, rows and columns of a picture; None where rows and columns stay as they are."""

    runs: tuple[Run, ...]
    rows: tuple[int, ...] | None
    columns: tuple[int, ...] | None


def moved(node: ir.Node, index: Index) -> list[Index] | None:
    """The maps of a node's outputs from that of its first input; None if it is not a movement."""
    shapes = [ir.static_shape(v) for v in node.outputs]
    if any(s is None for s in shapes):
        return None
    shape = shapes[0] or ()
    others = [ir.constant(v) for v in node.inputs[1:]]
    if any(v is not None and c is None for v, c in zip(node.inputs[1:], others, strict=True)):
        return None
    found = _moved(node, index, shape, others)
    if node.op_type == "Split":
        axis = int(ir.attributes(node).get("axis", 0))
        ends = np.cumsum([(s or ())[axis] for s in shapes])
        return list(np.split(index, ends[:-1], axis))
    return None if found is None or found.shape != shape else [found]


def _moved(
    node: ir.Node, index: Index, shape: tuple[int, ...], others: list[np.ndarray | None]
) -> Index | None:
    attributes, op = ir.attributes(node), node.op_type
    if op in SAME_ORDER:
        return index.reshape(shape)
    if op == "Transpose":
        return index.transpose(attributes.get("perm", tuple(range(index.ndim))[::-1]))
    if op == "Gather" and others[0] is not None:
        return np.take(index, others[0], int(attributes.get("axis", 0)))
    if op == "Slice" and all(o is not None for o in others[:2]):
        return _sliced(index, [o for o in others if o is not None])
    if op == "Pad" and others and others[0] is not None:
        return _padded(index, attributes, others)
    if op == "Resize":
        return _resized(index, shape, attributes)
    return None


def _sliced(index: Index, others: list[np.ndarray]) -> Index | None:
    starts, ends = others[0].tolist(), others[1].tolist()
    axes = others[2].tolist() if len(others) > 2 else list(range(len(starts)))
    steps = others[3].tolist() if len(others) > 3 else [1] * len(starts)
    if min(steps, default=1) < 1:
        return None
    cut = [slice(None)] * index.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        cut[axis] = slice(start, end, step)
    return index[tuple(cut)]


def _padded(
    index: Index, attributes: dict[str, object], others: list[np.ndarray | None]
) -> Index | None:
    pads = others[0]
    fill = others[1] if len(others) > 1 else None
    axes = others[2] if len(others) > 2 else None
    plain = attributes.get("mode", "constant") == "constant" and axes is None
    if pads is None or not plain or pads.min() < 0 or (fill is not None and np.any(fill)):
        return None
    half = pads.size // 2
    return np.pad(index, list(zip(pads[:half], pads[half:], strict=True)), constant_values=-1)


def _resized(index: Index, shape: tuple[int, ...], attributes: dict[str, object]) -> Index | None:
    """Nearest neighbours for whole factors, where all the ways to find them agree."""
    ways = {
        ("asymmetric", "floor"),
        ("half_pixel", "round_prefer_floor"),
        ("half_pixel", "round_prefer_ceil"),
        ("pytorch_half_pixel", "round_prefer_floor"),
    }
    way = (
        str(attributes.get("coordinate_transformation_mode", "half_pixel")),
        str(attributes.get("nearest_mode", "round_prefer_floor")),
    )
    if attributes.get("mode", "nearest") != "nearest" or way not in ways:
        return None
    if len(shape) != index.ndim or any(a % b for a, b in zip(shape, index.shape, strict=True)):
        return None
    for axis, (a, b) in enumerate(zip(shape, index.shape, strict=True)):
        index = np.repeat(index, a // b, axis)
    return index


def selection(index: Index, source: tuple[int, ...]) -> Selection | None:
    """The picture `index` as a selection from a picture of the shape `source`, if it is one."""
    if index.ndim != 4 or len(source) != 4 or index.shape[0] != source[0]:
        return None
    c, h, w = source[1:]
    first = index[0]
    filled = np.flatnonzero((first >= 0).all((1, 2)))
    if not filled.size:
        return None
    picture = first[filled[0]] % (h * w)
    rows, columns = picture[:, 0] // w, picture[0] % w
    channels = np.where(first[:, 0, 0] < 0, -1, first[:, 0, 0] // (h * w))
    made = channels[:, None, None] * (h * w) + rows[:, None] * w + columns
    made = np.where(channels[:, None, None] < 0, -1, made)
    whole = made[None] + (np.arange(source[0]) * (c * h * w))[:, None, None, None]
    if not np.array_equal(np.where(made[None] < 0, -1, whole), index):
        return None
    runs = _runs(channels.tolist())
    still = np.array_equal(rows, np.arange(h)) and np.array_equal(columns, np.arange(w))
    if len(runs) > MOST_RUNS:
        return None
    taken = None if still else (tuple(rows.tolist()), tuple(columns.tolist()))
    return Selection(runs, *(taken or (None, None)))


def _runs(channels: list[int]) -> tuple[Run, ...]:
    found, at = [], 0
    while at < len(channels):
        start, end = channels[at], at + 1
        step = channels[end] - start if end < len(channels) else 1
        if start < 0:
            step = 0
        while end < len(channels) and channels[end] == start + (end - at) * step:
            end += 1
        if step < 0 or (step == 0 and start >= 0):
            step, end = 1, at + 1
        found.append(Run(at, start, step, end - at))
        at = end
    return tuple(found)
