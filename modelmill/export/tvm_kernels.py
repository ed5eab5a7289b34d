"""Loop nests in TVM's TIR for what a vision network spends its time on, for tensors whose channels
lie last.

A convolution is direct: a block of neighbouring output pixels times a few vectors of output
channels is held in registers; for every tap and group of input channels one load of weights serves
all pixels of the block, and one broadcast of a pixel serves all vectors.

    codes   acc += dot(4 x u8, 4 x s8)     x86 with VNNI (vpdpbusd), exact in int32
            acc += dot(2 x s16, 2 x s16)   other x86 (pmaddwd), exact too, as bytes are widened
            acc += s32 * s32               elsewhere
    floats  acc += f32 * f32, fused where the CPU can

Zero points: sum (x - z) w = sum x w - z sum w, where the border is filled with z; the second sum is
the accumulator's first value. What follows the sums is done in registers and in float32, one
rounding for each operation that the graph has: an `arithmetic.fence` behind each product keeps LLVM
from fusing it with a sum, so that the codes are those of the simulation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from modelmill.export.tvm_views import Run

Expr = Any  # of TVM
Dot = Literal["vnni", "madd", "multiply"]
MAX_BLOCKS = 14  # pixels that share one load of weights


@dataclass(frozen=True)
class Cpu:
    """What the kernels may use: 32-bit numbers in a vector, vector registers, `dot`, how 8-bit
    products are summed, and whether there are fused multiply-adds of floats.
    """

    lanes: int
    registers: int
    dot: Dot
    fused: bool


@dataclass(frozen=True)
class Port:
    """A tensor that a kernel reads or writes: its type and, of codes, what they mean."""

    dtype: str = "float32"
    scale: float = 1.0
    zero: int = 0
    low: int = 0
    high: int = 0

    @property
    def codes(self) -> bool:
        return self.dtype != "float32"


@dataclass(frozen=True)
class Step:
    """One operation on a result while it is in registers: "Relu", "LeakyRelu" (slope), "Clip" (low,
    high), or "Add" and "Mul" with another tensor of the output's shape, behind `port`.
    """

    op: str
    numbers: tuple[float, ...] = ()
    port: Port | None = None


@dataclass(frozen=True)
class Window:
    """Geometry: sizes of the input and the output, taps, and what lies around the picture."""

    n: int
    h: int
    w: int
    c: int
    oh: int
    ow: int
    oc: int
    taps: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    start: tuple[int, int] = (0, 0)  # rows above and columns to the left of the picture
    groups: int = 1


@dataclass(frozen=True)
class Part:
    """Channels that a "copy" kernel takes from one input of the size (rows, columns, channels).

    moved: rows and columns are looked up, in two more inputs.
    """

    port: Port
    size: tuple[int, int, int]
    runs: tuple[Run, ...]
    moved: bool


@dataclass(frozen=True)
class Kernel:
    """One kernel: `kind` is "convolution", "depthwise", "maximum", "average", "pointwise" or
    "copy", whose inputs are its `parts`.

    planar: the input has its channels first (a picture as it is fed).
    wide: weights that do not fit in int8, so the products are those of 16-bit numbers.
    """

    kind: str
    window: Window
    x: Port
    y: Port
    steps: tuple[Step, ...] = ()
    planar: bool = False
    wide: bool = False
    parts: tuple[Part, ...] = ()


@dataclass
class _Nest:
    """What the parts of one kernel share while it is written: T is TVM's script builder."""

    T: Any
    kernel: Kernel
    cpu: Cpu
    arguments: dict[str, Any] = field(default_factory=dict)

    # ------------------------------------------------------------ vectors

    def load(self, buffer: Any, lanes: int, *at: Expr) -> Expr:
        return buffer[(*at[:-1], self.T.ramp(at[-1], 1, lanes))] if lanes > 1 else buffer[at]

    def store(self, buffer: Any, value: Expr, lanes: int, *at: Expr) -> None:
        last = self.T.ramp(at[-1], 1, lanes) if lanes > 1 else at[-1]
        self.T.buffer_store(buffer, value, [*at[:-1], last])

    def kind(self, dtype: str, lanes: int) -> str:
        return dtype if lanes == 1 else f"{dtype}x{lanes}"

    def cast(self, value: Expr, dtype: str, lanes: int) -> Expr:
        return self.T.cast(value, self.kind(dtype, lanes))

    def all(self, value: float, lanes: int, dtype: str = "float32") -> Expr:
        one = getattr(self.T, dtype)(value)
        return self.T.broadcast(one, lanes) if lanes > 1 else one

    def fence(self, value: Expr, lanes: int) -> Expr:
        kind = self.kind("float32", lanes)
        return self.T.call_llvm_pure_intrin(kind, "llvm.arithmetic.fence", value)

    def fused(self, x: Expr, w: Expr, total: Expr, lanes: int) -> Expr:
        """The sum of x w and total, rounded once."""
        if not self.cpu.fused:
            return self.fence(x * w, lanes) + total
        return self.T.call_llvm_pure_intrin(self.kind("float32", lanes), "llvm.fma", x, w, total)

    # ------------------------------------------------------------ numbers in and out

    def real(self, value: Expr, port: Port, lanes: int) -> Expr:
        """The real numbers of what a port holds."""
        if not port.codes:
            return value
        centred = self.cast(value, "int32", lanes) - self.all(port.zero, lanes, "int32")
        scaled = self.cast(centred, "float32", lanes) * self.all(port.scale, lanes)
        return self.fence(scaled, lanes)

    def step(self, r: Expr, step: Step, other: Expr | None, lanes: int) -> Expr:
        T, numbers = self.T, [self.all(v, lanes) for v in step.numbers]
        if step.op == "Relu":
            return T.max(r, self.all(0.0, lanes))
        if step.op == "LeakyRelu":
            low = self.fence(r * numbers[0], lanes)
            return T.Select(r > self.all(0.0, lanes), r, low)
        if step.op == "Clip":
            return T.min(T.max(r, numbers[0]), numbers[1])
        assert step.port is not None and other is not None
        other = self.real(other, step.port, lanes)
        return r + other if step.op == "Add" else self.fence(r * other, lanes)

    def finish(self, r: Expr, lanes: int, *at: Expr) -> Expr:
        """What is stored at `at` for the real numbers `r` of a kernel: its steps, then the output's
        codes.
        """
        others = iter([a for name, a in self.arguments.items() if name.startswith("other")])
        for step in self.kernel.steps:
            other = self.load(next(others), lanes, *at) if step.port is not None else None
            r = self.step(r, step, other, lanes)
        y = self.kernel.y
        if not y.codes:
            return r
        return self.encode(r * self.all(float(np.float32(1) / np.float32(y.scale)), lanes), lanes)

    def encode(self, steps: Expr, lanes: int) -> Expr:
        """Codes of float32 multiples of the output's scale: half goes to the even neighbour."""
        T, y = self.T, self.kernel.y
        q = T.nearbyint(steps) + self.all(y.zero, lanes)
        q = T.min(T.max(q, self.all(y.low, lanes)), self.all(y.high, lanes))
        return self.cast(self.cast(q, "int32", lanes), y.dtype, lanes)


def build(kernel: Kernel, cpu: Cpu) -> Any:
    """The TIR function of a kernel: inputs as `operands` lists them, then the output."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script import builder

    T, window = builder, kernel.window
    nest = _Nest(T, kernel, cpu)
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
        found["w"] = ((_weights_size(kernel, cpu),), _weights_dtype(kernel, cpu))
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


# ---------------------------------------------------------------- convolution


def _dot(kernel: Kernel, cpu: Cpu) -> str:
    if not kernel.x.codes:
        return "float"
    narrow = kernel.x.dtype == "uint8" and not kernel.wide
    return "madd" if cpu.dot == "vnni" and not narrow else cpu.dot


GROUP = {"vnni": 4, "madd": 2, "multiply": 1, "float": 1}  # input channels summed at once
HELD = {"vnni": "uint8", "madd": "int16", "multiply": "int16", "float": "float32"}
WEIGHTS = {"vnni": "int8", "madd": "int16", "multiply": "int16", "float": "float32"}


def _weights_dtype(kernel: Kernel, cpu: Cpu) -> str:
    if kernel.kind == "depthwise":
        return "int32" if kernel.x.codes else "float32"
    return WEIGHTS[_dot(kernel, cpu)]


def _weights_size(kernel: Kernel, cpu: Cpu) -> int:
    v = kernel.window
    if kernel.kind == "depthwise":
        return v.taps[0] * v.taps[1] * v.c
    g, vectors = GROUP[_dot(kernel, cpu)], vectors_of(v.oc // v.groups, cpu.lanes)
    depth = _up(v.c // v.groups, g)
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
    g, v = GROUP[_dot(kernel, cpu)], kernel.window
    dtype = _weights_dtype(kernel, cpu)
    if kernel.kind == "depthwise":
        return np.ascontiguousarray(w_OIHW[:, 0].transpose(1, 2, 0)).astype(dtype).reshape(-1)
    parts, per_group = [], v.oc // v.groups
    depth = _up(w_OIHW.shape[1], g)
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


def _convolution(nest: _Nest) -> None:
    T, kernel, cpu, v = nest.T, nest.kernel, nest.cpu, nest.kernel.window
    held, depth = _held(nest, GROUP[_dot(kernel, cpu)], HELD[_dot(kernel, cpu)])
    blocks = blocks_of(kernel, cpu)
    widest = max(len(block) for block in blocks)
    most = min((cpu.registers - widest - 2) // widest, MAX_BLOCKS)
    pixels = _tile(v.ow, most)
    per_group = sum(lanes for lanes, _ in blocks[0])
    full = [b for b in blocks if b == blocks[0]]
    tap_size = v.taps[0] * v.taps[1] * depth
    group_size = tap_size * sum(lanes for block in blocks for lanes, _ in block)

    def of_block(n: Expr, oh: Expr, ow: Expr, group: Expr, count: int) -> None:
        def body(block: list[tuple[int, int]], number: Expr, base: Expr) -> None:
            at = _Place(n, oh, ow, count, group, number * per_group)
            _convolution_block(nest, held, depth, block, at, base)

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
class _Place:
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
    nest: _Nest, held: Any, depth: int, block: list[tuple[int, int]], at: _Place, base: Expr
) -> None:
    T, kernel, v = nest.T, nest.kernel, nest.kernel.window
    how = _dot(kernel, nest.cpu)
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
            x = nest.load(held, g, *place)
            for j, (lanes, _) in enumerate(block):
                i = t * width + offsets[j]
                total = _multiply_add(nest, how, nest.load(acc, lanes, i), x, weights[j], lanes)
                nest.store(acc, total, lanes, i)
    for j, (lanes, count) in enumerate(block):
        _write(nest, acc, (width, offsets[j]), (lanes, count), at, first + offsets[j])


def _multiply_add(nest: _Nest, how: str, acc: Expr, x: Expr, w: Expr, lanes: int) -> Expr:
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
    nest: _Nest,
    acc: Any,
    place: tuple[int, int],
    vector: tuple[int, int],
    at: _Place,
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
            r = _with_bias(nest, total, size, channel + k)
            nest.store(nest.arguments["y"], nest.finish(r, size, *where), size, *where)


def _with_bias(nest: _Nest, total: Expr, lanes: int, channel: Expr) -> Expr:
    bias = nest.load(nest.arguments["bias"], lanes, channel)
    if not nest.kernel.x.codes:
        return total + bias
    total = total + nest.load(nest.arguments["first"], lanes, channel)
    scale = nest.load(nest.arguments["scale"], lanes, channel)
    return nest.fence(nest.cast(total, "float32", lanes) * scale, lanes) + bias


def _held(nest: _Nest, group: int, dtype: str) -> tuple[Any, int]:
    """The input with its border, as the taps read it, and the channels of a group in it: the input
    itself where it needs neither border nor another type.
    """
    T, kernel, v = nest.T, nest.kernel, nest.kernel.window
    inside = v.c // v.groups
    depth = _up(inside, group)
    rows = (v.oh - 1) * v.strides[0] + (v.taps[0] - 1) * v.dilations[0] + 1
    columns = (v.ow - 1) * v.strides[1] + (v.taps[1] - 1) * v.dilations[1] + 1
    border = v.start != (0, 0) or rows > v.h or columns > v.w
    x = nest.arguments["x"]
    if not border and depth == inside and dtype == kernel.x.dtype and not kernel.planar:
        return x, depth
    fill: float = kernel.x.zero
    if kernel.kind == "maximum":
        fill = kernel.x.low if kernel.x.codes else -3.4028234663852886e38
    made = T.alloc_buffer((v.n, rows, columns, v.groups * depth), dtype)
    top, left = v.start
    bottom, right = min(v.h, rows - top), min(v.w, columns - left)  # of the picture, in its rows
    empty = getattr(T, dtype)(fill)
    with T.parallel(0, v.n * rows) as i:
        n, row = i // rows, i % rows
        with T.If(T.And(row >= top, row < top + bottom)):
            with T.Then():
                for begin, end in ((0, left), (left + right, columns)):
                    if end > begin:
                        with T.serial(begin, end) as column, T.serial(0, v.groups * depth) as c:
                            T.buffer_store(made, empty, [n, row, column, c])
                with T.serial(0, right) as column:
                    for g in range(v.groups):
                        _fill_pixel(nest, made, (n, row, column), (g, depth, empty))
            with T.Else(), T.serial(0, columns) as column, T.serial(0, v.groups * depth) as c:
                T.buffer_store(made, empty, [n, row, column, c])
    return made, depth


def _fill_pixel(
    nest: _Nest, made: Any, at: tuple[Expr, Expr, Expr], group: tuple[int, int, Expr]
) -> None:
    T, kernel, v = nest.T, nest.kernel, nest.kernel.window
    (n, row, column), (g, depth, empty) = at, group
    x, inside = nest.arguments["x"], v.c // v.groups
    top, left = v.start
    with T.serial(0, inside) as c:
        channel = g * inside + c
        picture = (row - top, column)
        place = (n, channel, *picture) if kernel.planar else (n, *picture, channel)
        value = T.cast(x[place], made.dtype)
        T.buffer_store(made, value, [n, row, left + column, g * depth + c])
    if depth > inside:
        with T.serial(inside, depth) as c:
            T.buffer_store(made, empty, [n, row, left + column, g * depth + c])


# ---------------------------------------------------------------- channel by channel


def _by_channel(nest: _Nest) -> None:
    """Depthwise convolutions and pools: each channel for itself, a vector of them at a time."""
    T, kernel, cpu, v = nest.T, nest.kernel, nest.cpu, nest.kernel.window
    held, _ = _held(nest, 1, kernel.x.dtype)
    pixels = _tile(v.ow, 8 if cpu.registers > 16 else 4)
    vectors = vectors_of(v.c, cpu.lanes)
    full = v.c // cpu.lanes
    tiles, rest = v.ow // pixels, v.ow % pixels

    def of_row(n: Expr, oh: Expr, ow: Expr, count: int) -> None:
        if full:
            with T.serial(0, full) as number:
                at = _Place(n, oh, ow, count, 0, number * cpu.lanes)
                _by_channel_block(nest, held, cpu.lanes, at)
        if len(vectors) > full:
            left, channel = vectors[-1][1], full * cpu.lanes
            while left:
                size = next(k for k in (8, 4, 2, 1) if k <= left)
                _by_channel_block(nest, held, size, _Place(n, oh, ow, count, 0, channel))
                left, channel = left - size, channel + size

    with T.parallel(0, v.n * v.oh * tiles) as i:
        row = i // tiles
        of_row(row // v.oh, row % v.oh, i % tiles * pixels, pixels)
    if rest:
        with T.parallel(0, v.n * v.oh) as row:
            of_row(row // v.oh, row % v.oh, tiles * pixels, rest)


def _by_channel_block(nest: _Nest, held: Any, lanes: int, at: _Place) -> None:
    T, kernel, v = nest.T, nest.kernel, nest.kernel.window
    sums = "int32" if kernel.x.codes and kernel.kind != "maximum" else kernel.x.dtype
    acc = T.alloc_buffer((at.pixels * lanes,), sums, scope="local")
    start = (kernel.x.low if kernel.x.codes else -3.4028234663852886e38) * (
        kernel.kind == "maximum"
    )
    for t in range(at.pixels):
        nest.store(acc, nest.all(start, lanes, sums), lanes, t * lanes)

    def tap(kh: Expr, kw: Expr) -> None:
        row = at.oh * v.strides[0] + kh * v.dilations[0]
        column = at.ow * v.strides[1] + kw * v.dilations[1]
        w_at = (kh * v.taps[1] + kw) * v.c + at.channel
        w = nest.load(nest.arguments["w"], lanes, w_at) if kernel.kind == "depthwise" else None
        for t in range(at.pixels):
            x = nest.load(held, lanes, at.n, row, column + t * v.strides[1], at.channel)
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


def _channel_result(nest: _Nest, total: Expr, lanes: int, at: tuple[Expr, ...]) -> Expr:
    kernel, v = nest.kernel, nest.kernel.window
    if kernel.kind == "maximum":
        return (
            total
            if kernel.x == kernel.y
            else nest.finish(nest.real(total, kernel.x, lanes), lanes, *at)
        )
    if kernel.kind == "depthwise":
        return nest.finish(_with_bias(nest, total, lanes, at[-1]), lanes, *at)
    factor = nest.arguments["factor"][at[1], at[2]]
    factor = nest.T.broadcast(factor, lanes) if lanes > 1 else factor
    if not kernel.x.codes:
        return nest.finish(total * factor, lanes, *at)
    total = total - nest.all(kernel.x.zero * v.taps[0] * v.taps[1], lanes, "int32")
    return nest.encode(nest.cast(total, "float32", lanes) * factor, lanes)


# ---------------------------------------------------------------- element by element


def _pointwise(nest: _Nest) -> None:
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


def _copy(nest: _Nest) -> None:
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
    nest: _Nest, port: Port, source: tuple[Any, tuple[Expr, ...]], run: Run, at: tuple[Expr, ...]
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
    "convolution": _convolution,
    "depthwise": _by_channel,
    "maximum": _by_channel,
    "average": _by_channel,
    "pointwise": _pointwise,
    "copy": _copy,
}


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _tile(extent: int, most: int) -> int:
    """How many neighbours to take at once: a divisor of the extent if one is near `most`, else what
    leaves the fewest pieces.
    """
    if extent <= most:
        return extent
    divisor = max(d for d in range(1, most + 1) if extent % d == 0)
    return divisor if 2 * divisor > most else -(-extent // -(-extent // most))
