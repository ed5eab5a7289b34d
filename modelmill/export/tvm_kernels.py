"""Every kernel of our own for TVM by its kind, and what it takes; those that are no convolution."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelmill.export.tvm_border import LOWEST, Picture, with_border
from modelmill.export.tvm_convolution import (
    Place,
    convolution,
    tile,
    vectors_of,
    weights_dtype,
    weights_size,
    with_bias,
)
from modelmill.export.tvm_nest import Cpu, Expr, Kernel, Nest, Port
from modelmill.export.tvm_views import Run


def build(kernel: Kernel, cpu: Cpu) -> Any:
    """The TIR function of a kernel: inputs as `operands` lists them, then the output."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script import builder

    T, window = builder, kernel.window
    nest = Nest(T, kernel, cpu)
    pointwise = kernel.kind == "pointwise"
    with IRBuilder() as made, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        for name, (shape, dtype) in operands(kernel, cpu).items():
            nest.arguments[name] = T.arg(name, T.buffer(shape, dtype))
        written = (window.n, window.oh, window.ow, window.oc)
        shape = (int(np.prod(written)),) if pointwise else written
        nest.arguments["y"] = T.arg("y", T.buffer(shape, kernel.y.dtype))
        with T.sblock("root"):  # TVM looks for it, to tell a reshape from other functions
            BODIES[kernel.kind](nest)
    return made.get()


def operands(kernel: Kernel, cpu: Cpu) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each input of a kernel."""
    v = kernel.window
    shape: tuple[int, ...] = (v.n, v.c, v.h, v.w) if kernel.planar else (v.n, v.h, v.w, v.c)
    out: tuple[int, ...] = (v.n, v.oh, v.ow, v.oc)
    if kernel.kind == "pointwise":
        shape = out = (int(np.prod(out)),)
    if kernel.kind == "copy":
        return _parts_operands(kernel)
    found = {"x": (shape, kernel.x.dtype)}
    if kernel.kind in ("convolution", "depthwise"):
        found["w"] = ((weights_size(kernel, cpu),), weights_dtype(kernel, cpu))
        if kernel.x.codes:
            found["first"] = ((v.oc,), "int32")
            found["scale"] = ((v.oc,), "float32")
        found["bias"] = ((v.oc,), "float32")
    if kernel.kind == "average":
        found["factor"] = ((v.oh, v.ow), "float32")
    ports = [step.port for step in kernel.steps if step.port is not None]
    found |= {f"other{i}": (out, port.dtype) for i, port in enumerate(ports)}
    return found


def _parts_operands(kernel: Kernel) -> dict[str, tuple[tuple[int, ...], str]]:
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for i, part in enumerate(kernel.parts):
        found[f"x{i}"] = ((kernel.window.n, *part.size), part.port.dtype)
        if part.moved:
            found[f"rows{i}"] = ((kernel.window.oh,), "int32")
            found[f"columns{i}"] = ((kernel.window.ow,), "int32")
    return found


# ---------------------------------------------------------------- channel by channel


def _by_channel(nest: Nest) -> None:
    """Depthwise convolutions and pools: each channel for itself, a vector of them at a time."""
    T, kernel, cpu, v = nest.T, nest.kernel, nest.cpu, nest.kernel.window
    picture = with_border(nest, 1, kernel.x.dtype)
    pixels = tile(v.ow, 8 if cpu.registers > 16 else 4)
    vectors = vectors_of(v.c, cpu.lanes)
    full = v.c // cpu.lanes
    tiles, rest = v.ow // pixels, v.ow % pixels

    def of_row(n: Expr, oh: Expr, ow: Expr, count: int) -> None:
        if full:
            with T.serial(0, full) as number:
                at = Place(n, oh, ow, count, 0, number * cpu.lanes)
                _by_channel_block(nest, picture, cpu.lanes, at)
        if len(vectors) > full:
            left, channel = vectors[-1][1], full * cpu.lanes
            while left:
                size = next(k for k in (8, 4, 2, 1) if k <= left)
                _by_channel_block(nest, picture, size, Place(n, oh, ow, count, 0, channel))
                left, channel = left - size, channel + size

    with T.parallel(0, v.n * v.oh * tiles) as i:
        row = i // tiles
        of_row(row // v.oh, row % v.oh, i % tiles * pixels, pixels)
    if rest:
        with T.parallel(0, v.n * v.oh) as row:
            of_row(row // v.oh, row % v.oh, tiles * pixels, rest)


def _by_channel_block(nest: Nest, picture: Picture, lanes: int, at: Place) -> None:
    T, kernel, v = nest.T, nest.kernel, nest.kernel.window
    sums = "int32" if kernel.x.codes and kernel.kind != "maximum" else kernel.x.dtype
    acc = T.alloc_buffer((at.pixels * lanes,), sums, scope="local")
    start = (kernel.x.low if kernel.x.codes else LOWEST) * (kernel.kind == "maximum")
    for t in range(at.pixels):
        nest.store(acc, nest.all(start, lanes, sums), lanes, t * lanes)

    def tap(kh: Expr, kw: Expr) -> None:
        row = at.oh * v.strides[0] + kh * v.dilations[0]
        column = at.ow * v.strides[1] + kw * v.dilations[1]
        w_at = (kh * v.taps[1] + kw) * v.c + at.channel
        w = nest.load(nest.arguments["w"], lanes, w_at) if kernel.kind == "depthwise" else None
        for t in range(at.pixels):
            place = picture.place(at.n, row, column + t * v.strides[1], at.channel)
            x = nest.load(picture.buffer, lanes, *place)
            total = nest.load(acc, lanes, t * lanes)
            if kernel.kind == "maximum":
                total = T.max(total, x)
            else:
                x = nest.cast(x, sums, lanes)
                if w is None or sums == "int32":
                    total = total + (x if w is None else x * w)
                else:
                    total = nest.fused(x, w, total, lanes)
            nest.store(acc, total, lanes, t * lanes)

    with T.serial(0, v.taps[0]) as kh:
        if v.taps[1] <= 7:
            for kw in range(v.taps[1]):
                tap(kh, kw)
        else:
            with T.serial(0, v.taps[1]) as kw:
                tap(kh, kw)
    for t in range(at.pixels):
        total, where = nest.load(acc, lanes, t * lanes), (at.n, at.oh, at.ow + t, at.channel)
        value = _channel_result(nest, total, lanes, where)
        nest.store(nest.arguments["y"], value, lanes, *where)


def _channel_result(nest: Nest, total: Expr, lanes: int, at: tuple[Expr, ...]) -> Expr:
    kernel, v = nest.kernel, nest.kernel.window
    if kernel.kind == "maximum":
        return (
            total
            if kernel.x == kernel.y
            else nest.finish(nest.real(total, kernel.x, lanes), lanes, *at)
        )
    if kernel.kind == "depthwise":
        return nest.finish(with_bias(nest, total, lanes, at[-1]), lanes, *at)
    factor = nest.arguments["factor"][at[1], at[2]]
    factor = nest.T.broadcast(factor, lanes) if lanes > 1 else factor
    if not kernel.x.codes:
        return nest.finish(total * factor, lanes, *at)
    total = total - nest.all(kernel.x.zero * v.taps[0] * v.taps[1], lanes, "int32")
    return nest.encode(nest.cast(total, "float32", lanes) * factor, lanes)


# ---------------------------------------------------------------- element by element


def _pointwise(nest: Nest) -> None:
    T, kernel, v, lanes = nest.T, nest.kernel, nest.kernel.window, nest.cpu.lanes
    size = v.n * v.oh * v.ow * v.oc
    x, y = nest.arguments["x"], nest.arguments["y"]

    def piece(lanes: int, at: Expr) -> None:
        r = nest.real(nest.load(x, lanes, at), kernel.x, lanes)
        nest.store(y, nest.finish(r, lanes, at), lanes, at)

    chunk = lanes * 64  # elements for one thread at a time
    if size >= chunk:
        with T.parallel(0, size // chunk) as i, T.serial(0, chunk // lanes) as j:
            piece(lanes, i * chunk + j * lanes)
    done = size // chunk * chunk
    if size - done >= lanes:
        with T.serial(0, (size - done) // lanes) as j:
            piece(lanes, done + j * lanes)
    for at in range(size // lanes * lanes, size):
        piece(1, at)


# ---------------------------------------------------------------- copies of channels


def _copy(nest: Nest) -> None:
    """Concatenation, selection of channels, rows and columns, and padding of channels, pixel by
    pixel; inputs with other codes than the output's are quantized again.
    """
    T, kernel, v = nest.T, nest.kernel, nest.kernel.window
    empty = getattr(T, kernel.y.dtype)(kernel.y.zero if kernel.y.codes else 0)
    with T.parallel(0, v.n * v.oh) as i, T.serial(0, v.ow) as ow:
        n, oh = i // v.oh, i % v.oh
        done = 0
        for number, part in enumerate(kernel.parts):
            x, row, column = nest.arguments[f"x{number}"], oh, ow
            if part.moved:
                row = nest.arguments[f"rows{number}"][oh]
                column = nest.arguments[f"columns{number}"][ow]
            for run in part.runs:
                at = (n, oh, ow, done + run.out)
                if run.start < 0:
                    with T.serial(0, run.count) as c:
                        T.buffer_store(nest.arguments["y"], empty, [*at[:3], at[3] + c])
                else:
                    _copy_run(nest, part.port, (x, (n, row, column)), run, at)
            done += sum(run.count for run in part.runs)


def _copy_run(
    nest: Nest, port: Port, source: tuple[Any, tuple[Expr, ...]], run: Run, at: tuple[Expr, ...]
) -> None:
    T, y, (x, place) = nest.T, nest.arguments["y"], source

    def piece(lanes: int, c: Expr) -> None:
        value = nest.load(x, lanes, *place, run.start + c * run.step)
        if port != nest.kernel.y:
            value = nest.finish(nest.real(value, port, lanes), lanes, *at[:3], at[3] + c)
        nest.store(y, value, lanes, *at[:3], at[3] + c)

    if run.step != 1:
        with T.serial(0, run.count) as c:
            piece(1, c)
        return
    same = port == nest.kernel.y and nest.kernel.y.codes
    widest, c = nest.cpu.lanes * (4 if same else 1), 0
    if run.count >= widest:
        with T.serial(0, run.count // widest) as i:
            piece(widest, i * widest)
        c = run.count // widest * widest
    while c < run.count:
        size = next(k for k in (64, 32, 16, 8, 4, 2, 1) if k <= min(widest, run.count - c))
        piece(size, c)
        c += size


BODIES = {
    "convolution": convolution,
    "depthwise": _by_channel,
    "maximum": _by_channel,
    "average": _by_channel,
    "pointwise": _pointwise,
    "copy": _copy,
}
