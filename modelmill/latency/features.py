"""What a graph costs before anybody ran it: a row of numbers per node, what fuses with what, edges.

A node is described by what bounds its time on any engine: multiply-accumulates, elements read,
written and held as weights, the sizes that decide how well a kernel fills vector registers (how
much channels grow when rounded up to 8, 16 or 32), the caches its data spills from, and whether it
is the head of a kernel or an element-wise tail that engines compute inside it. Two forms of one
operator that no engine runs with the same kernel have labels of their own: "Conv depthwise". So
have forms of which one says nothing of the other: "Sigmoid of one place".

Nodes that engines fold away before the first run (reading constants alone, Identity, Dropout, a
BatchNormalization behind a convolution) have no row; edges run through them.

    unit      a node that costs something, one row of `x`
    kernel    a head (Conv, Gemm, Pool, ...) with the tail that follows it (bias, activation, Add)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from modelmill import ir

BYTES = 4  # of a float element: traffic is that of the float model on every platform
_CACHES = (32 * 2**10, 2**20, 32 * 2**20)  # sizes at which data spills, in bytes, as common as any
_FOLDED = frozenset({"Identity", "Dropout", "Constant", "Shape", "ConstantOfShape"})
_HEADS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_UNARY = frozenset(
    {
        *("Abs", "BatchNormalization", "Cast", "Celu", "Ceil", "Clip", "Elu", "Erf", "Exp"),
        *("Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish", "Neg"),
        *("PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Softplus"),
        *("Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu"),
    }
)
_BINARY = frozenset({"Add", "Div", "Max", "Min", "Mul", "Sub"})
_ELEMENTWISE = _UNARY | _BINARY
# An element costs what many multiplications do. Of gates, which are on one value per channel, that
# does not show, so that they do not tell what a whole map costs.
_COSTLY = frozenset(
    {
        *("Celu", "Elu", "Erf", "Exp", "Gelu", "Log", "Mish", "Pow", "Selu", "Sigmoid"),
        *("Softplus", "Swish", "Tanh"),
    }
)

COLUMNS = (
    *("macs", "in", "out", "weights", "cin", "cout", "groups", "rows", "width"),
    *("kernel_h", "kernel_w", "stride", "dilation", "inputs", "last"),
    *("cin_pad4", "cin_pad16", "cout_pad8", "cout_pad16", "cout_pad32", "rows_pad8"),
    *("spill_l1", "spill_l2", "spill_l3", "weights_l1", "weights_l2", "weights_l3"),
    *("fused", "residual", "broadcast", "first", "pointwise", "few_channels", "intensity"),
    *("behind_conv", "model_weights", "model_peak"),
)
_AT = {name: i for i, name in enumerate(COLUMNS)}
KINDS = ("conv", "pointwise", "depthwise", "gemm", "pool", "elementwise", "move")
WHOLE = (
    *("macs", "traffic", "weights", "units", "kernels", "peak", "intensity", "pixels"),
    *(f"{what} of {kind}" for kind in KINDS for what in ("macs", "traffic", "count")),
    *("channels", "padding"),
)


@dataclass(frozen=True)
class GraphFeatures:
    """A graph as numbers.

    labels     operator of each unit, with its form where that matters
    names      of the nodes behind the units
    kernels    (N,) number of the kernel that each unit belongs to, in topological order from 0
    macs       (N,) multiply-accumulates of each unit
    traffic    (N,) bytes each unit reads and writes, weights included, if nothing stays in a cache
    x          (N, F) a row per unit, see COLUMNS; sizes are log2(1 + size), float32
    edges      (2, E) from unit, to unit
    weights    elements of all float constants
    whole      (W,) numbers of the whole graph, see WHOLE, float32
    """

    labels: tuple[str, ...]
    names: tuple[str, ...]
    kernels: np.ndarray
    macs: np.ndarray
    traffic: np.ndarray
    x: np.ndarray
    edges: np.ndarray
    weights: int

    @property
    def total_macs(self) -> int:
        return int(self.macs.sum())

    @property
    def total_traffic(self) -> int:
        return int(self.traffic.sum())

    @cached_property
    def whole(self) -> np.ndarray:
        return _whole(self)


@dataclass(frozen=True)
class _Sizes:
    """One node's sizes, in elements; `rows` are positions of the output that share weights."""

    macs: int
    read: int
    written: int
    weights: int
    cin: int = 1
    cout: int = 1
    groups: int = 1
    rows: int = 1
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    dilation: int = 1


def features(graph: ir.Graph) -> GraphFeatures:
    """The features of a graph whose shapes are all numbers.

    Raises:
        ValueError: an open dimension; the text says where, and how to fix it.
    """
    graph = _with_shapes(graph)
    builder = _Builder()
    for value in graph.graph.inputs:
        _static(value)
    for node in graph.graph:
        builder.add(node)
    return builder.build()


def _with_shapes(graph: ir.Graph) -> ir.Graph:
    known = all(v.shape is not None for node in graph.graph for v in node.outputs if v.name)
    return graph if known else ir.infer_shapes(graph)


def _static(value: ir.Value) -> tuple[int, ...]:
    found = ir.static_shape(value)
    if found is None:
        dims = ", ".join("?" if d is None else str(d) for d in ir.shape(value) or ("?",))
        raise ValueError(
            f"{value.name!r} has the shape ({dims}); latency depends on every dimension: fix them, "
            "for example with python -m onnxruntime.tools.make_dynamic_shape_fixed --input_name "
            "NAME --input_shape 1,3,224,224 MODEL.onnx FIXED.onnx"
        )
    return found


class _Builder:
    """Collects units in topological order."""

    def __init__(self) -> None:
        self.units: list[tuple[str, str, _Sizes]] = []  # label, node, sizes
        self.kernels: list[int] = []
        self.heads: list[str] = []  # label of the head of each kernel
        self.flags: list[tuple[bool, bool, bool, bool, int, int]] = []
        self.edges: list[tuple[int, int]] = []
        self.made: dict[ir.Value, int | None] = {}  # value -> unit; None: known before the run
        self.shapes: dict[ir.Value, tuple[int, ...]] = {}

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        if value not in self.shapes:
            self.shapes[value] = _static(value)
        return self.shapes[value]

    def add(self, node: ir.Node) -> None:
        runtime = [v for v in node.inputs if v is not None and not self._is_constant(v)]
        if not runtime or node.op_type in ("Shape", "ConstantOfShape", "Constant"):
            for value in node.outputs:
                self.made[value] = None
            return
        source = self.made.get(runtime[0], -1)
        if self._vanishes(node, runtime, source):
            self.made[node.outputs[0]] = source
            return
        self._unit(node, runtime)

    def _is_constant(self, value: ir.Value) -> bool:
        return value.is_initializer() or self.made.get(value, -1) is None

    def _vanishes(self, node: ir.Node, runtime: Sequence[ir.Value], source: int | None) -> bool:
        if node.op_type in _FOLDED:
            return True
        if node.op_type != "BatchNormalization" or source is None or source < 0:
            return False
        return self.units[source][0].startswith("Conv") and ir.used_once(runtime[0])

    def _unit(self, node: ir.Node, runtime: Sequence[ir.Value]) -> None:
        attributes = ir.attributes(node)
        sizes = _sizes(node, runtime, attributes, self.shape)
        label = _label(node.op_type, sizes, runtime)
        number = len(self.units)
        sources = [source for v in runtime if (source := self.made.get(v, -1)) is not None]
        elements = [math.prod(self.shape(v)) for v in runtime]
        kernel = self._joined(node, runtime, sources, elements, sizes.written)
        head = kernel is None
        if kernel is None:
            kernel = len(self.heads)
            self.heads.append(label)
        several = len(runtime) > 1 and node.op_type in _BINARY
        self.kernels.append(kernel)
        self.flags.append(
            (
                not head,
                several and min(elements) == max(elements),
                several and min(elements) < max(elements),
                -1 in sources,
                len(runtime),
                (self.shape(node.outputs[0]) or (1,))[-1],
            )
        )
        self.units.append((label, node.name or "", sizes))
        self.edges += [(source, number) for source in dict.fromkeys(sources) if source >= 0]
        for value in node.outputs:
            self.made[value] = number

    def _joined(
        self,
        node: ir.Node,
        runtime: Sequence[ir.Value],
        sources: Sequence[int],
        elements: Sequence[int],
        written: int,
    ) -> int | None:
        """The kernel whose tail this element-wise node is, None where it begins one of its own."""
        if node.op_type not in _ELEMENTWISE or min(sources, default=-1) < 0:
            return None
        kernels = {self.kernels[source] for source in sources}
        latest = max(sources)
        kernel = self.kernels[latest]
        if self.heads[kernel].split()[0] not in _HEADS or self.units[latest][2].written != written:
            return None
        if len(kernels) == 1:
            return kernel
        equal = min(elements) == max(elements)  # a residual sum; a gate of one value per channel
        once = ir.used_once(runtime[sources.index(latest)])  # reads another kernel's result
        return kernel if node.op_type == "Add" and equal and once else None

    def build(self) -> GraphFeatures:
        if not self.units:
            raise ValueError("the graph computes nothing: every output is known before it runs")
        sizes = [s for _, _, s in self.units]
        numbers = np.array(
            [(s.macs, s.read, s.written, s.weights) for s in sizes], dtype=np.float64
        )
        macs, weights = numbers[:, 0], numbers[:, 3]
        traffic = BYTES * numbers[:, 1:].sum(axis=1)
        labels = tuple(label for label, _, _ in self.units)
        x = _rows(sizes, np.array(self.flags, dtype=np.float64), numbers)
        convolution = [self.heads[k].startswith("Conv") for k in self.kernels]
        x[:, _AT["behind_conv"]] = np.array(convolution) * x[:, _AT["fused"]]
        edges = np.array(self.edges, dtype=np.int64).reshape(-1, 2).T
        names = tuple(name for _, name, _ in self.units)
        kernels = np.array(self.kernels, dtype=np.int64)
        return GraphFeatures(
            labels, names, kernels, macs, traffic, x.astype(np.float32), edges, int(weights.sum())
        )


# ---------------------------------------------------------------- one node


def _label(op: str, sizes: _Sizes, runtime: Sequence[ir.Value]) -> str:
    if op == "Conv" and sizes.groups > 1:
        return "Conv depthwise" if sizes.cin == sizes.groups else "Conv grouped"
    if op == "Conv" and sizes.kernel == (1, 1):
        return "Conv pointwise"
    if op == "MatMul" and len(runtime) > 1:
        return "MatMul of activations"
    if op in _COSTLY and sizes.rows == 1:
        return f"{op} of one place"
    return op


def _sizes(
    node: ir.Node,
    runtime: Sequence[ir.Value],
    attributes: Mapping[str, Any],
    shape: Callable[[ir.Value], tuple[int, ...]],
) -> _Sizes:
    """Sizes of a node; macs as `ir.statistics` counts them, pools and the like count none."""
    op = node.op_type
    output = shape(node.outputs[0])
    read = sum(math.prod(shape(v)) for v in runtime)
    written = sum(math.prod(shape(v)) for v in node.outputs if v.name)
    held = [v for v in node.inputs[1:] if v is not None and _held(v)]
    weights = sum(math.prod(shape(v)) for v in held)
    x = shape(runtime[0])
    if op in ("Conv", "ConvTranspose") and node.inputs[1] is not None:
        w = shape(node.inputs[1])
        groups = int(attributes.get("group", 1))
        cin, cout = (w[1] * groups, w[0]) if op == "Conv" else (w[0], w[1] * groups)
        places = math.prod(output) if op == "Conv" else math.prod(x)
        macs = places * math.prod(w[1:])
        kernel = (w[2], w[3] if len(w) > 3 else 1)
        rows = output[0] * math.prod(output[2:])
        return _Sizes(
            *(macs, read, written, weights, cin, cout, groups, rows, kernel),
            stride=_first(attributes, "strides"),
            dilation=_first(attributes, "dilations"),
        )
    if op in ("Gemm", "MatMul"):
        a = shape(node.inputs[0]) if node.inputs[0] is not None else x
        inner = a[0] if attributes.get("transA", 0) else a[-1]
        moving = len(runtime) > 1
        groups = math.prod(output[:-2]) if moving else 1
        rows = math.prod(output[:-1]) // max(groups, 1)
        macs = math.prod(output) * inner
        return _Sizes(macs, read, written, weights, inner * groups, output[-1], groups, rows)
    image = len(output) == 4
    channels = output[1] if image else output[-1] if output else 1
    cin = x[1] if len(x) == 4 else x[-1] if x else 1
    rows = math.prod(output) // max(channels, 1)
    kernel = tuple(attributes.get("kernel_shape", (1, 1)))
    pair = (int(kernel[0]), int(kernel[-1]))
    stride = _first(attributes, "strides")
    return _Sizes(0, read, written, weights, cin, channels, 1, rows, pair, stride)


def _held(value: ir.Value) -> bool:
    if not value.is_initializer():
        return False
    kind = ir.dtype(value)
    return kind is not None and kind.kind == "f"


def _first(attributes: Mapping[str, Any], name: str) -> int:
    found = attributes.get(name)
    return int(found[0]) if found else 1


def _rows(sizes: Sequence[_Sizes], flags: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The matrix (units, COLUMNS) in float64."""
    macs, read, written, weights = numbers.T
    table = np.array(
        [
            (s.cin, s.cout, s.groups, s.rows, *s.kernel, s.stride, s.dilation, flag[5])
            for s, flag in zip(sizes, flags, strict=True)
        ],
        dtype=np.float64,
    )
    cin, cout, groups, rows, high, wide, stride, dilation, last = table.T
    own = np.maximum(cin / groups, 1)
    each = np.maximum(np.where(groups == cin, cout, cout / groups), 1)
    working = BYTES * (read + written + weights)
    pointwise = (macs > 0) & (high * wide == 1) & (groups == 1)
    logs = np.log2(
        1 + np.stack([*numbers.T, own, cout, groups, rows, last, high, wide, stride, dilation])
    )
    padded = [_padding(own, 4), _padding(own, 16)]
    padded += [_padding(each, 8), _padding(each, 16), _padding(each, 32), _padding(rows, 8)]
    spills = [_spill(working, size) for size in _CACHES]
    spills += [_spill(BYTES * weights, size) for size in _CACHES]
    fused, residual, broadcast, first, count, _ = flags.T
    intensity = np.log2(1 + macs / np.maximum(working, 1))
    n = np.ones(len(sizes))
    whole = [n * math.log2(1 + weights.sum()), n * math.log2(1 + (read + written).max())]
    tail = [fused, residual, broadcast, first, pointwise, own <= 4, intensity, 0 * n, *whole]
    return np.stack([*logs, count, np.log2(1 + own * high * wide), *padded, *spills, *tail], axis=1)


def _padding(n: np.ndarray, to: int) -> np.ndarray:
    """log2 of what rounding up to a multiple adds."""
    return np.asarray(np.log2(np.ceil(n / to) * to / n))


def _spill(size: np.ndarray, cache: int) -> np.ndarray:
    """How often `size` bytes fill a cache, log2, 0 below half of it."""
    return np.asarray(np.maximum(0, np.log2(np.maximum(size, 1) / cache) + 1))


# ---------------------------------------------------------------- the whole graph


def kind(label: str) -> str:
    """The coarse kind of a unit, one of KINDS."""
    op, _, form = label.partition(" ")
    if op in ("Conv", "ConvTranspose"):
        return form if form in ("depthwise", "pointwise") else "conv"
    if op in ("Gemm", "MatMul"):
        return "gemm"
    if "Pool" in op or op.startswith("Reduce"):
        return "pool"
    return "elementwise" if op in _ELEMENTWISE else "move"


def _whole(found: GraphFeatures) -> np.ndarray:
    x, macs, traffic = found.x, found.macs, found.traffic
    total, moved = max(found.total_macs, 1), max(found.total_traffic, 1)
    parts = []
    kinds = np.array([KINDS.index(kind(label)) for label in found.labels])
    for number in range(len(KINDS)):
        mine = kinds == number
        parts += [macs[mine].sum() / total, traffic[mine].sum() / moved, math.log2(1 + mine.sum())]
    kernels = int(found.kernels.max()) + 1
    peak, weights = x[0, _AT["model_peak"]], math.log2(1 + found.weights)
    share = macs / total
    numbers = (
        *(math.log2(1 + total), math.log2(1 + moved), weights),
        *(math.log2(1 + len(x)), math.log2(1 + kernels), peak, math.log2(1 + total / moved)),
        float(x[:, _AT["rows"]].max()),
        *parts,
        float(share @ x[:, _AT["cout"]]),
        float(share @ (x[:, _AT["cout_pad16"]] + x[:, _AT["cin_pad16"]])),
    )
    return np.array(numbers, dtype=np.float32)
