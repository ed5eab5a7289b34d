"""The operators of LiteRT that elementwise and moving operators become; int8 or float as the step
says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modelmill import ir
from modelmill.export import litert_layout as layout
from modelmill.export.litert_layers import LAYERS, NHWC
from modelmill.export.litert_writer import Emit, Held, Step, Writer, affine, clamp_of, stored
from modelmill.numerics import Encoding

MOST_DIMENSIONS = 5  # of a SLICE

# ------------------------------------------------------------ element by element


def unary(op: str, table: str = "") -> Emit:
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


def binary(op: str, table: str = "") -> Emit:
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
    if isinstance(encoding, Encoding) and step.encoding is None:
        array = encoding.fake(array)
    elif isinstance(encoding, Encoding):
        array, facts = stored(encoding, array), affine(encoding)
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


OPS: dict[str, Emit] = {
    **LAYERS,
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
