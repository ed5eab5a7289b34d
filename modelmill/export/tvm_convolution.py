"""Convolutions in TVM's TIR, for pictures whose channels lie last.

They are direct: a block of neighbouring output pixels times a few vectors of output channels is
held in registers; for every tap and group of input channels one load of weights serves all pixels
of the block, and one broadcast of a pixel serves all vectors.

    codes   acc += dot(4 x u8, 4 x s8)     x86 with VNNI (vpdpbusd), exact in int32
            acc += dot(2 x s16, 2 x s16)   other x86 (pmaddwd), exact too, as bytes are widened
            acc += s32 * s32               elsewhere
    floats  acc = fma(f32, f32, acc)

Zero points: sum (x - z) w = sum x w - z sum w, where the border is filled with z; the second sum is
added to the accumulator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from modelmill.export.tvm_border import Picture, up, with_border
from modelmill.export.tvm_nest import Cpu, Expr, Kernel, Nest

MAX_BLOCKS = 14  # pixels that share one load of weights


def dot(kernel: Kernel, cpu: Cpu) -> str:
    """How products are summed: a key of GROUP, HELD and WEIGHTS."""
    if not kernel.x.codes:
        return "float"
    narrow = kernel.x.dtype == "uint8" and not kernel.wide
    return "madd" if cpu.dot == "vnni" and not narrow else cpu.dot


GROUP = {"vnni": 4, "madd": 2, "multiply": 1, "float": 1}  # input channels summed at once
HELD = {"vnni": "uint8", "madd": "int16", "multiply": "int16", "float": "float32"}
WEIGHTS = {"vnni": "int8", "madd": "int16", "multiply": "int16", "float": "float32"}


def weights_dtype(kernel: Kernel, cpu: Cpu) -> str:
    """Type in which the kernel reads its weights."""
    if kernel.kind == "depthwise":
        return "int32" if kernel.x.codes else "float32"
    return WEIGHTS[dot(kernel, cpu)]


def weights_size(kernel: Kernel, cpu: Cpu) -> int:
    """Number of weights as the kernel reads them, filled up to whole groups and vectors."""
    v = kernel.window
    if kernel.kind == "depthwise":
        return v.taps[0] * v.taps[1] * v.c
    g, vectors = GROUP[dot(kernel, cpu)], vectors_of(v.oc // v.groups, cpu.lanes)
    depth = up(v.c // v.groups, g)
    return v.groups * v.taps[0] * v.taps[1] * depth * sum(lanes for lanes, _ in vectors)


def vectors_of(channels: int, lanes: int) -> list[tuple[int, int]]:
    """(lanes, channels held) of the vectors that cover `channels`: only the last may be partial."""
    found = [(lanes, lanes)] * (channels // lanes)
    rest = channels % lanes
    if rest:
        found.append((next(k for k in (4, 8, 16) if k >= rest), rest))
    return found


def blocks_of(kernel: Kernel, cpu: Cpu) -> list[list[tuple[int, int]]]:
    """The vectors of one group of output channels, gathered into blocks that share their loads."""
    vectors = vectors_of(kernel.window.oc // kernel.window.groups, cpu.lanes)
    size = 2 if kernel.window.ow > 1 else 4
    return [vectors[i : i + size] for i in range(0, len(vectors), size)]


def pack(kernel: Kernel, cpu: Cpu, w_OIHW: np.ndarray) -> np.ndarray:
    """Weights in the order in which a convolution reads them: group, block, tap, input channels,
    vector, lane.
    """
    g, v = GROUP[dot(kernel, cpu)], kernel.window
    dtype = weights_dtype(kernel, cpu)
    if kernel.kind == "depthwise":
        return np.ascontiguousarray(w_OIHW[:, 0].transpose(1, 2, 0)).astype(dtype).reshape(-1)
    parts, per_group = [], v.oc // v.groups
    depth = up(w_OIHW.shape[1], g)
    padded = np.zeros((v.oc, depth, *w_OIHW.shape[2:]), w_OIHW.dtype)
    padded[:, : w_OIHW.shape[1]] = w_OIHW
    for group in range(v.groups):
        first = group * per_group
        for block in blocks_of(kernel, cpu):
            mine = []
            for lanes, held in block:
                w = np.zeros((lanes, *padded.shape[1:]), padded.dtype)
                w[:held] = padded[first : first + held]
                w = w.reshape(lanes, depth // g, g, *w.shape[2:])
                mine.append(w.transpose(3, 4, 1, 0, 2).reshape(*w.shape[3:], depth // g, -1))
                first += held
            parts.append(np.concatenate(mine, axis=-1).reshape(-1))
    return np.concatenate(parts).astype(dtype)


def convolution(nest: Nest) -> None:
    """The loops of a convolution of one group or several, not depthwise."""
    T, kernel, cpu, v = nest.T, nest.kernel, nest.cpu, nest.kernel.window
    picture = with_border(nest, GROUP[dot(kernel, cpu)], HELD[dot(kernel, cpu)])
    depth = picture.depth
    blocks = blocks_of(kernel, cpu)
    widest = max(len(block) for block in blocks)
    most = min((cpu.registers - widest - 2) // widest, MAX_BLOCKS)
    pixels = tile(v.ow, most)
    per_group = sum(lanes for lanes, _ in blocks[0])
    full = [b for b in blocks if b == blocks[0]]
    tap_size = v.taps[0] * v.taps[1] * depth
    group_size = tap_size * sum(lanes for block in blocks for lanes, _ in block)

    def of_block(n: Expr, oh: Expr, ow: Expr, group: Expr, count: int) -> None:
        def body(block: list[tuple[int, int]], number: Expr, base: Expr) -> None:
            at = Place(n, oh, ow, count, group, number * per_group)
            _convolution_block(nest, picture, block, at, base)

        weights = group * group_size
        if len(full) == 1:
            body(blocks[0], 0, weights)
        else:
            with T.serial(0, len(full)) as number:
                body(blocks[0], number, weights + number * (tap_size * per_group))
        for number in range(len(full), len(blocks)):
            body(blocks[number], number, weights + number * (tap_size * per_group))

    tiles, rest = v.ow // pixels, v.ow % pixels
    with T.parallel(0, v.n * v.oh * tiles) as i, T.serial(0, v.groups) as group:
        row = i // tiles
        of_block(row // v.oh, row % v.oh, i % tiles * pixels, group, pixels)
    if rest:
        with T.parallel(0, v.n * v.oh) as row, T.serial(0, v.groups) as group:
            of_block(row // v.oh, row % v.oh, tiles * pixels, group, rest)


@dataclass(frozen=True)
class Place:
    """Where a block of results lies: image, row, first column, columns, group, first channel of the
    group.
    """

    n: Expr
    oh: Expr
    ow: Expr
    pixels: int
    group: Expr
    channel: Expr


def _convolution_block(
    nest: Nest, picture: Picture, block: list[tuple[int, int]], at: Place, base: Expr
) -> None:
    T, kernel, v = nest.T, nest.kernel, nest.kernel.window
    how, depth = dot(kernel, nest.cpu), picture.depth
    g, sums = GROUP[how], "float32" if how == "float" else "int32"
    offsets = [sum(lanes for lanes, _ in block[:j]) for j in range(len(block) + 1)]
    width = offsets[-1]
    first = at.group * (v.oc // v.groups) + at.channel
    acc = T.alloc_buffer((at.pixels * width,), sums, scope="local")
    for j, (lanes, _) in enumerate(block):
        for t in range(at.pixels):
            nest.store(acc, nest.all(0, lanes, sums), lanes, t * width + offsets[j])
    with T.serial(0, v.taps[0]) as kh, T.serial(0, v.taps[1]) as kw, T.serial(0, depth // g) as k:
        row = at.oh * v.strides[0] + kh * v.dilations[0]
        column = at.ow * v.strides[1] + kw * v.dilations[1]
        w_at = base + ((kh * v.taps[1] + kw) * (depth // g) + k) * (width * g)
        weights = [
            nest.load(nest.arguments["w"], lanes * g, w_at + offsets[j] * g)
            for j, (lanes, _) in enumerate(block)
        ]
        for t in range(at.pixels):
            place = (at.n, row, column + t * v.strides[1], at.group * depth + k * g)
            x = nest.load(picture.buffer, g, *picture.place(*place))
            for j, (lanes, _) in enumerate(block):
                i = t * width + offsets[j]
                total = _multiply_add(nest, how, nest.load(acc, lanes, i), x, weights[j], lanes)
                nest.store(acc, total, lanes, i)
    for j, (lanes, count) in enumerate(block):
        _write(nest, acc, (width, offsets[j]), (lanes, count), at, first + offsets[j])


def _multiply_add(nest: Nest, how: str, acc: Expr, x: Expr, w: Expr, lanes: int) -> Expr:
    T = nest.T
    if how == "float":
        return nest.fused(T.broadcast(x, lanes), w, acc, lanes)
    if how == "multiply":
        wide = nest.cast(T.broadcast(x, lanes), "int32", lanes)
        return acc + wide * nest.cast(w, "int32", lanes)
    spread, bits = T.broadcast(T.reinterpret("int32", x), lanes), 32 * lanes
    kind = f"int32x{lanes}"
    if how == "vnni":
        name = f"llvm.x86.avx512.vpdpbusd.{bits}"
        spread = T.reinterpret(f"uint8x{4 * lanes}", spread)
        return T.call_llvm_pure_intrin(kind, name, acc, spread, w)
    name = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}[lanes]
    spread = T.reinterpret(f"int16x{2 * lanes}", spread)
    return acc + T.call_llvm_pure_intrin(kind, f"llvm.x86.{name}", spread, w)


def _write(
    nest: Nest,
    acc: Any,
    place: tuple[int, int],
    vector: tuple[int, int],
    at: Place,
    channel: Expr,
) -> None:
    """Results of one vector of channels for all pixels of a block; a partial vector goes element by
    element.
    """
    (width, offset), (lanes, count) = place, vector
    pieces = [(0, lanes)] if count == lanes else [(k, 1) for k in range(count)]
    for t in range(at.pixels):
        for k, size in pieces:
            total = nest.load(acc, size, t * width + offset + k)
            where = (at.n, at.oh, at.ow + t, channel + k)
            r = with_bias(nest, total, size, channel + k)
            nest.store(nest.arguments["y"], nest.finish(r, size, *where), size, *where)


def with_bias(nest: Nest, total: Expr, lanes: int, channel: Expr) -> Expr:
    """The float32 result of the sums `total`: zero points, scale and bias of `lanes` channels."""
    bias = nest.load(nest.arguments["bias"], lanes, channel)
    if not nest.kernel.x.codes:
        return total + bias
    total = total + nest.load(nest.arguments["first"], lanes, channel)
    scale = nest.load(nest.arguments["scale"], lanes, channel)
    return nest.fence(nest.cast(total, "float32", lanes) * scale, lanes) + bias


def tile(extent: int, most: int) -> int:
    """How many neighbours to take at once: a divisor of the extent if one is near `most`, else what
    leaves the fewest pieces.
    """
    if extent <= most:
        return extent
    divisor = max(d for d in range(1, most + 1) if extent % d == 0)
    return divisor if 2 * divisor > most else -(-extent // -(-extent // most))
