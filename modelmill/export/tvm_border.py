"""The picture that a window slides over: with its border, its channels last and in the type in
which the taps read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelmill.export.tvm_nest import Expr, Nest

LOWEST = -3.4028234663852886e38  # of float32


@dataclass(frozen=True)
class Picture:
    """`depth` channels for each group; made here, each row is one run of pixels and channels."""

    buffer: Any
    depth: int
    channels: int
    made: bool

    def place(self, n: Expr, row: Expr, column: Expr, channel: Expr) -> tuple[Expr, ...]:
        if not self.made:
            return n, row, column, channel
        return n, row, column * self.channels + channel


def with_border(nest: Nest, group: int, dtype: str) -> Picture:
    """The input itself where it needs neither a border nor another type; else a copy, with the
    channels of each group filled up to a multiple of `group`.
    """
    T, kernel, v = nest.T, nest.kernel, nest.kernel.window
    inside = v.c // v.groups
    depth = up(inside, group)
    rows = (v.oh - 1) * v.strides[0] + (v.taps[0] - 1) * v.dilations[0] + 1
    columns = (v.ow - 1) * v.strides[1] + (v.taps[1] - 1) * v.dilations[1] + 1
    border = v.start != (0, 0) or rows > v.h or columns > v.w
    if not border and depth == inside and dtype == kernel.x.dtype and not kernel.planar:
        return Picture(nest.arguments["x"], depth, v.c, made=False)
    fill: float = kernel.x.zero
    if kernel.kind == "maximum":
        fill = kernel.x.low if kernel.x.codes else LOWEST
    channels = v.groups * depth
    buffer = T.alloc_buffer((v.n, rows, columns * channels), dtype)
    picture = Picture(buffer, depth, channels, made=True)
    top, left = v.start
    bottom, right = min(v.h, rows - top), min(v.w, columns - left)  # of the input, in these rows
    empty = getattr(T, dtype)(fill)
    with T.parallel(0, v.n * rows) as i:
        n, row = i // rows, i % rows
        with T.If(T.And(row >= top, row < top + bottom)):
            with T.Then():
                for begin, end in ((0, left), (left + right, columns)):
                    if end > begin:
                        with T.serial(begin * channels, end * channels) as at:
                            T.buffer_store(buffer, empty, [n, row, at])
                _fill_row(nest, picture, (n, row), right, empty)
            with T.Else(), T.serial(0, columns * channels) as at:
                T.buffer_store(buffer, empty, [n, row, at])
    return picture


def _fill_row(nest: Nest, picture: Picture, at: tuple[Expr, Expr], width: int, empty: Expr) -> None:
    T, kernel, v, lanes = nest.T, nest.kernel, nest.kernel.window, nest.cpu.lanes
    done = 0
    if kernel.planar and picture.channels == 4 and str(picture.buffer.dtype) == "uint8":
        with T.serial(0, width // lanes) as i:
            _interleave(nest, picture, (*at, i * lanes))
        done = width // lanes * lanes
    if done == width:
        return
    inside = v.c // v.groups
    with T.serial(done, width) as column:
        for g in range(v.groups):
            first = picture.place(*at, v.start[1] + column, g * picture.depth)
            with T.serial(0, inside) as c:
                row, channel = at[1] - v.start[0], g * inside + c
                where = (channel, row, column) if kernel.planar else (row, column, channel)
                value = T.cast(nest.arguments["x"][(at[0], *where)], picture.buffer.dtype)
                T.buffer_store(picture.buffer, value, [*first[:-1], first[-1] + c])
            if picture.depth > inside:
                with T.serial(inside, picture.depth) as c:
                    T.buffer_store(picture.buffer, empty, [*first[:-1], first[-1] + c])


def _interleave(nest: Nest, picture: Picture, at: tuple[Expr, Expr, Expr]) -> None:
    """Neighbouring pixels of up to four planes of bytes as one vector of 32-bit pixels."""
    T, v, lanes = nest.T, nest.kernel.window, nest.cpu.lanes
    n, row, column = at
    pixels = nest.all(0, lanes, "int32")
    for c in range(v.c):
        plane = nest.load(nest.arguments["x"], lanes, n, c, row - v.start[0], column)
        wide = nest.cast(plane, "int32", lanes)
        pixels = (
            pixels + wide * nest.all(256**c, lanes, "int32")
            if c < 3
            else (pixels + T.shift_left(wide, nest.all(24, lanes, "int32")))
        )
    place = picture.place(n, row, v.start[1] + column, 0)
    value = T.reinterpret(f"uint8x{4 * lanes}", pixels)
    nest.store(picture.buffer, value, 4 * lanes, *place)


def up(number: int, multiple: int) -> int:
    """`number`, rounded up to a multiple."""
    return -(-number // multiple) * multiple
