"""The operators of LiteRT that layers and pools become; int8 or float as the step says.

Paddings: LiteRT knows VALID (none) and SAME (total padding so that the output is input / stride,
the smaller half first). ONNX gives numbers. Where they are not those of SAME, a PAD operator goes
in front, with no more rows and columns than the kernel reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modelmill import ir
from modelmill.export import litert_layout as layout
from modelmill.export.litert_file import Affine
from modelmill.export.litert_writer import Emit, Step, Writer, plain_gemm
from modelmill.numerics import Encoding

SAME, VALID = 0, 1
NHWC = (0, 2, 3, 1)

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
    if not plain_gemm(step.node):
        raise step.refuse("alpha, beta or transA are set; fold them into the weights")
    _fully_connected(w, step, output_first=bool(given.get("transB", 0)))


def matmul(w: Writer, step: Step) -> None:
    right = ir.constant(step.node.inputs[1])
    if right is not None and right.ndim == 2 and len(step.shape) >= 2:
        return _fully_connected(w, step, output_first=False)
    if step.encoding is not None:
        raise step.refuse("int8 products of two tensors are not written")
    sources = [w.take(step, i, range(len(w.side(step, i).view.dims))) for i in (0, 1)]
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
        first = _first_pads(given, kernel, inside, outside)
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


def _first_pads(given: dict[str, Any], kernel: Any, inside: Any, outside: Any) -> tuple[int, int]:
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


LAYERS: dict[str, Emit] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "ReduceMean": reduce_mean,
}
