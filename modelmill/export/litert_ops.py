"""The operators of LiteRT that ONNX operators become; int8 or float as the step says.

Paddings: LiteRT knows VALID (none) and SAME (total padding so that the output is input / stride,
the smaller half first). ONNX gives numbers. Where they are not those of SAME, a PAD operator goes
in front, with no more rows and columns than the kernel reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from modelmill import ir
from modelmill.export import litert_layout as layout
from modelmill.export.litert_file import Affine
from modelmill.numerics import Encoding

if TYPE_CHECKING:
    from modelmill.export.litert import Held, Step, Writer

SAME, VALID = 0, 1
NHWC = (0, 2, 3, 1)
MOST_DIMENSIONS = 5  # of a SLICE
# Operators whose int8 kernels fix the scale of the output: (scale, zero point as int8).
FIXED_OUTPUT = {
    "Sigmoid": (1 / 256, -128),
    "Softmax": (1 / 256, -128),
    "Tanh": (1 / 128, 0),
}
# Operators that keep the encoding of their input.
KEEPING = frozenset({
    "MaxPool", "AveragePool", "Pad", "Resize", "Slice", "Gather", "Split", "Relu",
    "DepthToSpace", "SpaceToDepth",
})  # fmt: skip
INT8 = frozenset({
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "Concat", "LeakyRelu",
    "GlobalAveragePool", "ReduceMean",
})  # fmt: skip


def takes_int8(node: ir.Node, sides: Sequence[Encoding], reads: int, output: Encoding) -> bool:
    """Whether LiteRT has an int8 kernel for `node` with these encodings.

    sides: encodings of the float inputs, as far as they have one; reads: how many there are.
    """
    op = node.op_type
    if any(e.spec.bits > 8 for e in (*sides[:2], output)):
        return False
    if op in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        weight = ir.constant(node.inputs[1])
        return (
            len(sides) >= 2 and weight is not None and not np.any(sides[1].zero_point)
        ) and _plain_gemm(node)
    if len(sides) < reads:
        return False
    if op in FIXED_OUTPUT:
        scale, zero_point = FIXED_OUTPUT[op]
        shift = 0 if output.spec.signed else 128
        return bool(output.scale == np.float32(scale) and output.zero_point - shift == zero_point)
    if op in KEEPING:
        return sides[0] == output
    return op in INT8


def _plain_gemm(node: ir.Node) -> bool:
    given = ir.attributes(node)
    usual = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    return node.op_type != "Gemm" or all(given.get(name, x) == x for name, x in usual.items())


# ------------------------------------------------------------ convolutions and matrix products


def conv(w: Writer, step: Step) -> None:
    given, weight = step.attributes, _weight(step)
    if weight.ndim != 4:
        raise step.refuse("it has convolutions over two dimensions")
    x = w.side(step, 0)
    group = int(given.get("group", 1))
    strides, dilations = given.get("strides", (1, 1)), given.get("dilations", (1, 1))
    depthwise = group > 1 and weight.shape[1] == 1
    padding = _Padding(w, step, weight.shape[2:], x.view.shape[2:], step.shape[2:])
    source = padding.apply(w.ordered(x.view, NHWC))
    kernel = _kernel(w, step, (1, 2, 3, 0) if depthwise else (0, 2, 3, 1))
    bias = _bias(w, step, weight.shape[0])
    options: dict[str, int] = {
        "Padding": padding.kind,
        "StrideH": strides[0], "StrideW": strides[1],
        "DilationHFactor": dilations[0], "DilationWFactor": dilations[1],
        "FusedActivationFunction": step.activation,
    }  # fmt: skip
    if depthwise:
        options["DepthMultiplier"] = weight.shape[0] // group
    op = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    table = "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions"
    made = w.output(step, NHWC)
    w.file.operator(op, [source, kernel, bias], [made], table, **options)


def conv_transpose(w: Writer, step: Step) -> None:
    given, weight = step.attributes, _weight(step)
    if weight.ndim != 4 or int(given.get("group", 1)) != 1:
        raise step.refuse("it has transposed convolutions over two dimensions, without groups")
    if tuple(given.get("dilations", (1, 1))) != (1, 1):
        raise step.refuse("its transposed convolutions have no dilation")
    (height, width), strides = weight.shape[2:], given.get("strides", (1, 1))
    x = w.side(step, 0)
    _, _, rows, columns = x.view.shape
    pads = given.get("pads", (0, 0, 0, 0))
    full = ((rows - 1) * strides[0] + height, (columns - 1) * strides[1] + width)
    inside = (pads[0] + step.shape[2], pads[1] + step.shape[3])
    if inside[0] > full[0] or inside[1] > full[1]:
        raise step.refuse("output_padding reaches beyond what the kernel writes")
    kernel = _kernel(w, step, (1, 2, 3, 0))
    bias = _bias(w, step, weight.shape[1])
    n, channels = step.shape[0], step.shape[1]
    whole = (n, *full, channels)
    cropped = full != step.shape[2:]
    made = w.output(step, NHWC)
    target = w.new(f"{step.value}_whole", whole, step.encoding) if cropped else made
    w.file.operator(
        "TRANSPOSE_CONV",
        [w.indices(whole), kernel, w.ordered(x.view, NHWC), bias],
        [target],
        "TransposeConvOptions",
        Padding=VALID,
        StrideH=strides[0],
        StrideW=strides[1],
        FusedActivationFunction=step.activation,
    )
    if cropped:
        begin, size = (0, pads[0], pads[1], 0), (n, *step.shape[2:], channels)
        w.file.operator(
            "SLICE", [target, w.indices(begin), w.indices(size)], [made], "SliceOptions"
        )


def gemm(w: Writer, step: Step) -> None:
    given = step.attributes
    if not _plain_gemm(step.node):
        raise step.refuse("alpha, beta or transA are set; fold them into the weights")
    _fully_connected(w, step, output_first=bool(given.get("transB", 0)))


def matmul(w: Writer, step: Step) -> None:
    right = ir.constant(step.node.inputs[1])
    if right is not None and right.ndim == 2 and len(step.shape) >= 2:
        return _fully_connected(w, step, output_first=False)
    if step.encoding is not None:
        raise step.refuse("int8 products of two tensors are not written")
    plain = [range(w.side(step, i).view.dims.__len__()) for i in (0, 1)]
    sources = [w.take(step, i, plain[i]) for i in (0, 1)]
    made = w.output(step, range(len(step.shape)))
    return w.file.operator("BATCH_MATMUL", sources, [made], "BatchMatMulOptions")


def _fully_connected(w: Writer, step: Step, output_first: bool) -> None:
    """Rows by a constant matrix. The columns of the matrix follow the memory order of the rows."""
    view = w.side(step, 0).view
    outer = tuple(atom for dim in view.dims[:-1] for atom in dim)
    inner = view.dims[-1]
    lies_well = view.atoms[: len(outer)] == outer
    memory = view.atoms[len(outer) :] if lies_well else inner
    columns = np.arange(layout.length(inner)).reshape([size for _, size in inner] or [1])
    columns = columns.transpose([inner.index(atom) for atom in memory] or [0]).reshape(-1)
    source = view.tensor
    if not lies_well:
        source = w.arranged(view, outer + inner, view.shape)
    elif len(step.shape) > 2:
        source = w.arranged(view, outer + memory, view.shape)
    kernel = _kernel(w, step, (0, 1) if output_first else (1, 0), columns)
    bias = _bias(w, step, step.shape[-1])
    order = range(len(step.shape))
    made = w.output(step, order)
    w.file.operator(
        "FULLY_CONNECTED",
        [source, kernel, bias],
        [made],
        "FullyConnectedOptions",
        FusedActivationFunction=step.activation,
        KeepNumDims=len(step.shape) > 2,
    )


def _weight(step: Step) -> np.ndarray:
    array = ir.constant(step.node.inputs[1])
    if array is None:
        raise step.refuse("its weights are computed at run time")
    return array


def _kernel(w: Writer, step: Step, order: Sequence[int], columns: np.ndarray | None = None) -> int:
    """The weights with their axes in `order`; `columns` picks along the last axis."""
    array, name = _weight(step), f"{step.node.name}_weight"
    assert step.node.inputs[1] is not None
    encoding = w.plan.at(step.node.inputs[1].name or "", step.node.name or "", 1)
    quantized = None
    if isinstance(encoding, Encoding):
        codes = encoding.quantize(array)
        if step.encoding is None:
            array = encoding.dequantize(codes)
        else:
            axis = encoding.spec.axis
            place = 0 if axis is None else list(order).index(axis)
            scale = np.atleast_1d(encoding.scale)
            array, quantized = codes, Affine(scale, np.zeros(scale.size, np.int64), place)
    moved = array.transpose(order)
    return w.file.constant(name, moved if columns is None else moved[..., columns], quantized)


def _bias(w: Writer, step: Step, channels: int) -> int:
    """The bias: float, or int32 of scale s_x s_w."""
    node = step.node
    value = node.inputs[2] if len(node.inputs) > 2 else None
    array = np.zeros(channels, np.float32)
    if value is not None:
        given = ir.constant(value)
        if given is None:
            raise step.refuse("its bias is computed at run time")
        array = np.ascontiguousarray(np.broadcast_to(given.reshape(-1), (channels,)))
    encoding = None if value is None else w.plan.at(value.name or "", node.name or "", 2)
    if step.encoding is None:
        if isinstance(encoding, Encoding):
            array = encoding.fake(array)
        return w.file.constant(f"{node.name}_bias", array.astype(np.float32))
    sides = [
        w.plan.at(v.name or "", node.name or "", i)
        for i, v in enumerate(node.inputs[:2])
        if v is not None
    ]
    scales = [np.float32(side.scale) for side in sides if isinstance(side, Encoding)]
    scale = np.atleast_1d(scales[0] * scales[1]).astype(np.float32)
    codes = np.clip(np.rint(array.astype(np.float64) / scale), -(2**31), 2**31 - 1)
    facts = Affine(scale, np.zeros(scale.size, np.int64), 0)
    return w.file.constant(f"{node.name}_bias", codes.astype(np.int32), facts)


class _Padding:
    """How the window of one node is padded: `kind` of the operator, and a PAD in front of it."""

    def __init__(
        self, w: Writer, step: Step, kernel: Any, inside: tuple[int, ...], outside: Any
    ) -> None:
        given = step.attributes
        self.w, self.step = w, step
        strides = given.get("strides", (1, 1))
        dilations = given.get("dilations", (1, 1))
        first = _first_pads(step, given, kernel, inside, outside)
        self.around: list[tuple[int, int]] = []
        same = True
        for axis in (0, 1):
            reach = (outside[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1
            total = max(reach - inside[axis], 0)
            here = first[axis]
            self.around.append((here, max(reach - inside[axis] - here, 0)))
            fits = outside[axis] == -(-inside[axis] // strides[axis])
            same = same and fits and here == total // 2
        self.none = not any(any(pair) for pair in self.around)
        self.kind = VALID if self.none or not same else SAME
        self.pads = self.kind == VALID and not self.none

    def apply(self, source: int, lowest: float | None = None) -> int:
        """Pad `source` (NHWC) if the operator cannot: with the real number 0, or with `lowest`."""
        if not self.pads:
            return source
        facts = self.w.file.tensors[source]
        around = [(0, 0), *self.around, (0, 0)]
        shape = [size + sum(pair) for size, pair in zip(facts.shape, around, strict=True)]
        key = ("padded", source, tuple(around), lowest)
        if key in self.w.made:
            return self.w.made[key]
        made = self.w.file.tensor(f"{facts.name}_padded", shape, facts.dtype, facts.affine)
        inputs = [source, self.w.indices(around)]
        if lowest is None:
            self.w.file.operator("PAD", inputs, [made], "PadOptions")
        else:
            fill = np.full(1, lowest, facts.dtype)
            inputs.append(self.w.file.constant(f"{facts.name}_fill", fill, facts.affine))
            self.w.file.operator("PADV2", inputs, [made], "PadV2Options")
        self.w.made[key] = made
        return made


def _first_pads(
    step: Step, given: dict[str, Any], kernel: Any, inside: Any, outside: Any
) -> tuple[int, int]:
    """Rows above and columns to the left."""
    kind = given.get("auto_pad", "NOTSET")
    if kind == "NOTSET":
        pads = given.get("pads", (0, 0, 0, 0))
        return int(pads[0]), int(pads[1])
    if kind == "VALID":
        return 0, 0
    strides, dilations = given.get("strides", (1, 1)), given.get("dilations", (1, 1))
    found = []
    for axis in (0, 1):
        reach = (outside[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        total = max(reach - inside[axis], 0)
        found.append(total // 2 if kind == "SAME_UPPER" else total - total // 2)
    return found[0], found[1]


# ------------------------------------------------------------ pools and reductions


def max_pool(w: Writer, step: Step) -> None:
    if len(step.node.outputs) > 1 or tuple(step.attributes.get("dilations", (1, 1))) != (1, 1):
        raise step.refuse("its max pools have no dilation and no indices")
    _pool(w, step, "MAX_POOL_2D")


def average_pool(w: Writer, step: Step) -> None:
    _pool(w, step, "AVERAGE_POOL_2D")


def _pool(w: Writer, step: Step, op: str) -> None:
    given = step.attributes
    if len(step.shape) != 4:
        raise step.refuse("it pools over two dimensions")
    kernel, strides = given["kernel_shape"], given.get("strides", (1, 1))
    held = w.side(step, 0)
    padding = _Padding(w, step, kernel, held.view.shape[2:], step.shape[2:])
    source = w.ordered(held.view, NHWC)
    if op == "MAX_POOL_2D":
        lowest = None if _never_negative(step.node, held.encoding) else _lowest(held.encoding)
        source = padding.apply(source, lowest)
    elif given.get("count_include_pad", 0):
        padding.kind, padding.pads = VALID, not padding.none
        source = padding.apply(source)
    elif padding.pads:
        raise step.refuse("it averages over a padding that is not SAME and does not count")
    made = w.output(step, NHWC)
    w.file.operator(
        op,
        [source],
        [made],
        "Pool2DOptions",
        Padding=padding.kind,
        StrideH=strides[0],
        StrideW=strides[1],
        FilterHeight=kernel[0],
        FilterWidth=kernel[1],
        FusedActivationFunction=0,
    )


def _never_negative(node: ir.Node, encoding: Encoding | None) -> bool:
    """Whether padding with 0 cannot win a maximum."""
    if encoding is not None and encoding.low >= 0:
        return True
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    return producer is not None and producer.op_type in ("Relu", "Sigmoid", "Softmax")


def _lowest(encoding: Encoding | None) -> float:
    return float(np.finfo(np.float32).min) if encoding is None else -128.0


def global_average_pool(w: Writer, step: Step) -> None:
    _mean(w, step, list(range(2, len(step.shape))), keep=True)


def reduce_mean(w: Writer, step: Step) -> None:
    given = step.attributes
    axes = given.get("axes")
    if len(step.node.inputs) > 1 and step.node.inputs[1] is not None:
        axes = ir.constant(step.node.inputs[1])
    rank = len(w.side(step, 0).view.dims)
    chosen = range(rank) if axes is None or len(axes) == 0 else axes
    keep = bool(given.get("keepdims", 1))
    _mean(w, step, sorted(int(axis) % rank for axis in chosen), keep)


def _mean(w: Writer, step: Step, axes: list[int], keep: bool) -> None:
    view = w.side(step, 0).view
    order = view.order() or layout.channels_last(len(view.dims))
    source = w.ordered(view, order)
    places = [place for place, axis in enumerate(order) if axis in axes]
    left = [axis for axis in order if keep or axis not in axes]
    ranked = {axis: i for i, axis in enumerate(sorted(left))}
    made = w.output(step, [ranked[axis] for axis in left])
    inputs = [source, w.indices(places)]
    w.file.operator("MEAN", inputs, [made], "ReducerOptions", KeepDims=keep)


# ------------------------------------------------------------ element by element


def unary(op: str, table: str = "") -> Callable[[Writer, Step], None]:
    """An operator that maps each element by itself, in whatever order memory has."""

    def emit(w: Writer, step: Step) -> None:
        options = {}
        if op == "LEAKY_RELU":
            options["Alpha"] = float(step.attributes.get("alpha", 0.01))
        _unary(w, step, op, table, options)

    return emit


def _unary(
    w: Writer, step: Step, op: str, table: str = "", options: dict[str, float] | None = None
) -> None:
    held = w.side(step, 0)
    order = held.view.order() or layout.channels_last(len(held.view.dims))
    source = w.ordered(held.view, order)
    w.file.operator(op, [source], [w.output(step, order)], table, **(options or {}))


def clip(w: Writer, step: Step) -> None:
    from modelmill.export.litert import clamp_of

    clamp = clamp_of(step.node)
    if clamp is None:
        raise step.refuse("its bounds are computed at run time")
    named = {(0.0, np.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}
    if clamp in named:
        return _unary(w, step, named[clamp])
    view = w.side(step, 0).view
    order = view.order() or layout.channels_last(len(view.dims))
    source = w.ordered(view, order)
    made = w.output(step, order)
    shape = w.file.tensors[made].shape
    low = w.file.constant(f"{step.node.name}_low", np.float32(clamp[0]).reshape(1))
    high = w.file.constant(f"{step.node.name}_high", np.float32(clamp[1]).reshape(1))
    between = w.new(f"{step.value}_above", shape, None)
    w.file.operator("MAXIMUM", [source, low], [between], "MaximumMinimumOptions")
    return w.file.operator("MINIMUM", [between, high], [made], "MaximumMinimumOptions")


def binary(op: str, table: str = "") -> Callable[[Writer, Step], None]:
    """An operator on two tensors that broadcast."""

    def emit(w: Writer, step: Step) -> None:
        rank = len(step.shape)
        order = _shared_order(w, step, (0, 1))
        sources = [_operand(w, step, index, rank, order) for index in (0, 1)]
        fused = {"FusedActivationFunction": step.activation} if op in ("ADD", "SUB", "MUL") else {}
        w.file.operator(op, sources, [w.output(step, order)], table, **fused)

    return emit


def _operand(w: Writer, step: Step, index: int, rank: int, order: Sequence[int]) -> int:
    """Input `index` with as many dimensions as the output; a constant is rearranged here."""
    value = step.node.inputs[index]
    array = ir.constant(value)
    if array is None or value is None:
        view = w.side(step, index).view
        wide = layout.reshaped(view, (1,) * (rank - len(view.dims)) + view.shape)
        assert wide is not None
        return w.ordered(wide, order)
    encoding = w.plan.at(value.name or "", step.node.name or "", index)
    facts = None
    if isinstance(encoding, Encoding):
        codes = encoding.quantize(array)
        if step.encoding is None:
            array = encoding.dequantize(codes)
        else:
            from modelmill.export.litert import affine

            facts = affine(encoding)
            shift = 0 if encoding.spec.signed else 128
            array = (codes.astype(np.int32) - shift).astype(np.int8)
    wide_array = array.reshape((1,) * (rank - array.ndim) + array.shape).transpose(order)
    return w.file.constant(f"{step.node.name}_{index}", wide_array, facts)


def _shared_order(w: Writer, step: Step, indices: Sequence[int]) -> Sequence[int]:
    """The memory order of the first input that has the rank of the output."""
    for index in indices:
        value = step.node.inputs[index]
        if value is None or ir.constant(value) is not None:
            continue
        view = w.side(step, index).view
        order = view.order()
        if len(view.dims) == len(step.shape) and order is not None:
            return order
    return layout.channels_last(len(step.shape))


def prelu(w: Writer, step: Step) -> None:
    order = _shared_order(w, step, (0,))
    slope = ir.constant(step.node.inputs[1])
    if slope is None:
        raise step.refuse("its slope is computed at run time")
    rank = len(step.shape)
    wide = slope.reshape((1,) * (rank - slope.ndim) + slope.shape).transpose(order)[0]
    alpha = w.file.constant(f"{step.node.name}_slope", wide.astype(np.float32))
    w.file.operator("PRELU", [w.take(step, 0, order), alpha], [w.output(step, order)])


def softmax(w: Writer, step: Step) -> None:
    rank = len(step.shape)
    axis = int(step.attributes.get("axis", -1)) % rank
    order: Sequence[int] = w.side(step, 0).view.order() or ()
    if not order or order[-1] != axis:
        order = [*(a for a in layout.channels_last(rank) if a != axis), axis]
    made = w.output(step, order)
    source = w.take(step, 0, order)
    if step.node.op_type == "LogSoftmax":
        w.file.operator("LOG_SOFTMAX", [source], [made], "LogSoftmaxOptions")
    else:
        w.file.operator("SOFTMAX", [source], [made], "SoftmaxOptions", Beta=1.0)


# ------------------------------------------------------------ movement


def concat(w: Writer, step: Step) -> None:
    rank = len(step.shape)
    axis = int(step.attributes["axis"]) % rank
    indices = range(len(step.node.inputs))
    order = list(_shared_order(w, step, indices))
    sources = []
    for index in indices:
        held = w.side(step, index)
        if step.encoding is not None:
            held = w.encoded(held, step.encoding)
        sources.append(w.ordered(held.view, order))
    made = w.output(step, order)
    w.file.operator(
        "CONCATENATION",
        sources,
        [made],
        "ConcatenationOptions",
        Axis=order.index(axis),
        FusedActivationFunction=0,
    )


def split(w: Writer, step: Step) -> None:
    view = w.read(step.node, 0, as_held=True)
    axis = int(step.attributes.get("axis", 0)) % len(view.view.dims)
    begin = 0
    for output in step.node.outputs:
        shape = ir.static_shape(output)
        if shape is None:
            raise step.refuse(f"the shape of {output.name!r} is not known")
        starts = [begin if a == axis else 0 for a in range(len(shape))]
        _cut(w, step, output.name or "", starts, [1] * len(shape), shape)
        begin += shape[axis]


def slice_(w: Writer, step: Step) -> None:
    numbers = [
        None if len(step.node.inputs) <= i or step.node.inputs[i] is None
        else ir.constant(step.node.inputs[i])
        for i in range(1, 5)
    ]  # fmt: skip
    if numbers[0] is None:
        raise step.refuse("its bounds are computed at run time")
    inside = w.read(step.node, 0, as_held=True).view.shape
    rank = len(inside)
    axes = range(len(numbers[0])) if numbers[2] is None else [int(a) % rank for a in numbers[2]]
    begins, strides = [0] * rank, [1] * rank
    for place, axis in enumerate(axes):
        stride = 1 if numbers[3] is None else int(numbers[3][place])
        if stride < 1:
            raise step.refuse("it goes backwards")
        begin = int(numbers[0][place])
        begins[axis] = min(max(begin + inside[axis] if begin < 0 else begin, 0), inside[axis])
        strides[axis] = stride
    _cut(w, step, step.value, begins, strides, step.shape)


def _cut(
    w: Writer,
    step: Step,
    name: str,
    begins: Sequence[int],
    strides: Sequence[int],
    shape: tuple[int, ...],
) -> None:
    """Part of input 0, in ONNX axes: `shape` elements from `begins` on, every `strides`-th."""
    from modelmill.export.litert import Held

    held = w.read(step.node, 0, as_held=True)
    order = held.view.order() or layout.channels_last(len(shape))
    if any(stride > 1 for stride in strides) and _cut_whole(
        w, name, held, order, begins, strides, shape
    ):
        return
    source = w.ordered(held.view, order)
    made = w.new(name, [shape[axis] for axis in order], held.encoding)
    begin = [begins[axis] for axis in order]
    if all(stride == 1 for stride in strides):
        size = [shape[axis] for axis in order]
        w.file.operator(
            "SLICE", [source, w.indices(begin), w.indices(size)], [made], "SliceOptions"
        )
    else:
        end = [begins[axis] + (shape[axis] - 1) * strides[axis] + 1 for axis in order]
        inputs = [source, *(w.indices(n) for n in (begin, end, [strides[a] for a in order]))]
        w.file.operator("STRIDED_SLICE", inputs, [made], "StridedSliceOptions")
    w.store(name, Held(layout.fresh(made, shape, order), held.encoding))


def _cut_whole(
    w: Writer,
    name: str,
    held: Held,
    order: Sequence[int],
    begins: Sequence[int],
    strides: Sequence[int],
    shape: tuple[int, ...],
) -> bool:
    """Every n-th element as a block: a dimension of m n elements is one of m and one of n, of which
    one index is kept. XNNPACK has no steps in its slices. False where a dimension does not divide.
    """
    from modelmill.export.litert import Held

    inside, source_shape, begin, size = held.view.shape, [], [], []
    for axis in order:
        n = strides[axis]
        if n > 1 and (inside[axis] % n or begins[axis] >= n or shape[axis] != inside[axis] // n):
            return False
        if n > 1:
            source_shape += [shape[axis], n]
            begin += [0, begins[axis]]
            size += [shape[axis], 1]
        elif inside[axis] > 1:
            source_shape.append(inside[axis])
            begin.append(begins[axis])
            size.append(shape[axis])
    if len(source_shape) > MOST_DIMENSIONS:
        return False
    atoms = tuple(atom for axis in order for atom in held.view.dims[axis])
    source = w.arranged(held.view, atoms, source_shape)
    made = w.new(name, size, held.encoding)
    w.file.operator("SLICE", [source, w.indices(begin), w.indices(size)], [made], "SliceOptions")
    w.store(name, Held(layout.fresh(made, shape, order), held.encoding))
    return True


def gather(w: Writer, step: Step) -> None:
    from modelmill.export.litert import Held

    picked = ir.constant(step.node.inputs[1])
    held = w.read(step.node, 0, as_held=True)
    view = held.view
    axis = int(step.attributes.get("axis", 0)) % len(view.dims)
    if picked is None:
        raise step.refuse("its indices are computed at run time")
    if picked.ndim == 0:
        return _pick(w, step, axis, int(picked) % view.shape[axis])
    if picked.ndim != 1:
        raise step.refuse("its indices have more than one dimension")
    order = view.order() or layout.channels_last(len(view.dims))
    source = w.ordered(view, order)
    indices = w.indices(picked % view.shape[axis])
    made = w.new(step.value, [step.shape[a] for a in order], held.encoding)
    w.file.operator(
        "GATHER", [source, indices], [made], "GatherOptions", Axis=list(order).index(axis)
    )
    return w.store(step.value, Held(layout.fresh(made, step.shape, order), held.encoding))


def _pick(w: Writer, step: Step, axis: int, index: int) -> None:
    """One index of an axis: the axis is brought to the front of the memory, once for all that pick
    from it; then the pick is one block.
    """
    from modelmill.export.litert import Held

    held = w.read(step.node, 0, as_held=True)
    view, dims = held.view, held.view.dims
    rest = [a for a in range(len(dims)) if a != axis]
    order = [rest[place] for place in layout.channels_last(len(rest))]
    # A leading dimension of length 1 makes room for the axis: the rank stays that of the result.
    room = bool(order) and not dims[order[0]]
    lengths = [layout.length(dims[a]) for a in (order[1:] if room else order)]
    atoms = tuple(atom for a in (axis, *order) for atom in dims[a])
    source = w.arranged(view, atoms, [layout.length(dims[axis]), *lengths])
    size = [1, *lengths]
    made = w.new(step.value, size, held.encoding)
    begin = [index] + [0] * len(lengths)
    w.file.operator("SLICE", [source, w.indices(begin), w.indices(size)], [made], "SliceOptions")
    left = layout.View(made, atoms[len(dims[axis]) :], tuple(dims[a] for a in rest))
    w.store(step.value, Held(left, held.encoding))


def pad(w: Writer, step: Step) -> None:
    from modelmill.export.litert import Held

    mode = step.attributes.get("mode", "constant")
    pads = ir.constant(step.node.inputs[1])
    if mode not in ("constant", "reflect") or pads is None or np.any(pads < 0):
        raise step.refuse("it pads by constants and by reflection, with known numbers")
    held = w.read(step.node, 0, as_held=True)
    rank = len(step.shape)
    order = held.view.order() or layout.channels_last(rank)
    around = np.zeros((rank, 2), np.int64)
    axes: Any = range(rank)
    if len(step.node.inputs) > 3 and step.node.inputs[3] is not None:
        axes = ir.constant(step.node.inputs[3])
    for place, axis in enumerate(axes):
        around[int(axis) % rank] = pads[place], pads[place + len(axes)]
    inputs = [w.ordered(held.view, order), w.indices(around[list(order)])]
    made = w.new(step.value, [step.shape[a] for a in order], held.encoding)
    fill = ir.constant(step.node.inputs[2]) if len(step.node.inputs) > 2 else None
    if mode == "reflect":
        w.file.operator("MIRROR_PAD", inputs, [made], "MirrorPadOptions", Mode=0)
    elif fill is None or not np.any(fill):
        w.file.operator("PAD", inputs, [made], "PadOptions")
    elif held.encoding is None:
        number = w.file.constant(f"{step.node.name}_fill", np.float32(fill).reshape(1))
        w.file.operator("PADV2", [*inputs, number], [made], "PadV2Options")
    else:
        raise step.refuse("codes are padded with the real number 0 alone")
    w.store(step.value, Held(layout.fresh(made, step.shape, order), held.encoding))


def resize(w: Writer, step: Step) -> None:
    given = step.attributes
    mode = given.get("mode", "nearest")
    held = w.side(step, 0)
    inside = held.view.shape
    if len(step.shape) != 4 or inside[:2] != step.shape[:2] or mode not in ("nearest", "linear"):
        raise step.refuse("it resizes rows and columns of images, nearest or linear")
    flavours = {(False, False): 0, (False, True): 1, (True, False): 2}
    fitting = [
        flags
        for flags, flavour in flavours.items()
        if all(
            _resizes_alike(mode, given, flavour, inside[axis], step.shape[axis]) for axis in (2, 3)
        )
    ]
    if not fitting:
        raise step.refuse(
            f"mode {mode} with coordinates {given.get('coordinate_transformation_mode')!r} and "
            f"rounding {given.get('nearest_mode')!r} has no counterpart for these sizes"
        )
    op, table = (
        ("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions")
        if mode == "nearest"
        else ("RESIZE_BILINEAR", "ResizeBilinearOptions")
    )
    source = w.ordered(held.view, NHWC)
    made = w.output(step, NHWC)
    align, half = fitting[0]
    inputs = [source, w.indices(step.shape[2:])]
    w.file.operator(op, inputs, [made], table, AlignCorners=align, HalfPixelCenters=half)


def _resizes_alike(
    mode: str, given: dict[str, Any], flavour: int, inside: int, outside: int
) -> bool:
    """Whether ONNX and LiteRT read the same places of a row: as numbers, not by name."""
    x = np.arange(outside, dtype=np.float64)
    ratio = inside / outside
    kind = given.get("coordinate_transformation_mode", "half_pixel")
    stretch = (inside - 1) / (outside - 1) if outside > 1 else 0.0
    onnx = {
        "half_pixel": (x + 0.5) * ratio - 0.5,
        "pytorch_half_pixel": (x + 0.5) * ratio - 0.5 if outside > 1 else x * 0,
        "asymmetric": x * ratio,
        "align_corners": x * stretch,
    }.get(kind)
    if onnx is None:
        return False
    if mode == "linear":
        theirs = [x * ratio, (x + 0.5) * ratio - 0.5, x * stretch][flavour]
        return bool(np.allclose(np.clip(onnx, 0, inside - 1), np.clip(theirs, 0, inside - 1)))
    rounding = {
        "round_prefer_floor": np.ceil(onnx - 0.5),
        "round_prefer_ceil": np.floor(onnx + 0.5),
        "floor": np.floor(onnx),
        "ceil": np.ceil(onnx),
    }[given.get("nearest_mode", "round_prefer_floor")]
    theirs = [np.floor(x * ratio), np.floor((x + 0.5) * ratio), np.floor(x * stretch + 0.5)][
        flavour
    ]
    return bool(np.array_equal(np.clip(rounding, 0, inside - 1), np.clip(theirs, 0, inside - 1)))


OPS: dict[str, Callable[[Writer, Step], None]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "ReduceMean": reduce_mean,
    "Relu": unary("RELU"),
    "LeakyRelu": unary("LEAKY_RELU", "LeakyReluOptions"),
    "Sigmoid": unary("LOGISTIC"),
    "Tanh": unary("TANH"),
    "HardSwish": unary("HARD_SWISH", "HardSwishOptions"),
    "Exp": unary("EXP", "ExpOptions"),
    "Sqrt": unary("SQRT"),
    "Abs": unary("ABS", "AbsOptions"),
    "Neg": unary("NEG", "NegOptions"),
    "Clip": clip,
    "PRelu": prelu,
    "Add": binary("ADD", "AddOptions"),
    "Sub": binary("SUB", "SubOptions"),
    "Mul": binary("MUL", "MulOptions"),
    "Div": binary("DIV", "DivOptions"),
    "Max": binary("MAXIMUM", "MaximumMinimumOptions"),
    "Min": binary("MINIMUM", "MaximumMinimumOptions"),
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "Pad": pad,
    "Resize": resize,
}
