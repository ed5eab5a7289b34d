"""What the loop nests for TVM are made of: the facts of a kernel, and vectors of numbers in TIR.

What follows the sums of a kernel is done in registers and in float32, one rounding for each
operation that the graph has: an `arithmetic.fence` behind each product keeps LLVM from fusing it
with a sum, so that the codes are those of the simulation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from modelmill.export.tvm_views import Run

Expr = Any  # of TVM
Dot = Literal["vnni", "madd", "multiply"]


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
class Nest:
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
