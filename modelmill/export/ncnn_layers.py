"""How each ONNX operator is written as layers of ncnn, all in float: convolutions and matrix
products are in `ncnn_products`.

A function takes the scope and the node, reads the blobs of the node's inputs and puts those of its
outputs. What a layer cannot express raises an error that names the node. The meaning of a layer's
numbered parameters is that of its `load_param`.
Source: ncnn, src/layer/*.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations

import numpy as np

from modelmill import ir
from modelmill.export.ncnn_net import Blob, Dims, Parameter, raw
from modelmill.export.ncnn_scope import Scope, dims_of, kept_axes, refuse
from modelmill.export.ncnn_windows import MAX_POOL, global_pool, pool, resize

Write = Callable[[Scope, ir.Node], None]
BINARY = {"Add": 0, "Sub": 1, "Mul": 2, "Div": 3, "Max": 4, "Min": 5, "Pow": 6}
REVERSED = {"Sub": 7, "Div": 8, "Pow": 9}  # constant - x and so on
UNARY = {
    "Abs": 0, "Neg": 1, "Floor": 2, "Ceil": 3, "Sqrt": 5, "Exp": 7, "Log": 8, "Sin": 9, "Cos": 10,
    "Tan": 11, "Asin": 12, "Acos": 13, "Atan": 14, "Reciprocal": 15, "Round": 18,
}  # fmt: skip
SQUARE, SQRT = 4, 5
REDUCE = {
    "ReduceSum": 0, "ReduceSumSquare": 2, "ReduceMean": 3, "ReduceMax": 4, "ReduceMin": 5,
    "ReduceProd": 6, "ReduceL1": 7, "ReduceL2": 8, "ReduceLogSum": 9, "ReduceLogSumExp": 10,
}  # fmt: skip
# Permute numbers the orders of the output's dimensions, given innermost first: (w, h, d, c) is 0.
ORDERS = {
    2: ("wh", "hw"),
    3: ("whc", "hwc", "wch", "cwh", "hcw", "chw"),
    4: (
        "whdc", "hwdc", "wdhc", "dwhc", "hdwc", "dhwc", "whcd", "hwcd", "wchd", "cwhd", "hcwd",
        "chwd", "wdch", "dwch", "wcdh", "cwdh", "dcwh", "cdwh", "hdcw", "dhcw", "hcdw", "chdw",
        "dchw", "cdhw",
    ),
}  # fmt: skip
assert all(len(ORDERS[n]) == len(list(permutations(range(n)))) for n in ORDERS)

# ---------------------------------------------------------------- single elements


def elementwise(kind: str, parameters: Mapping[int, Parameter] | None = None) -> Write:
    """An operator on single elements that is one layer with fixed parameters."""

    def write(s: Scope, node: ir.Node) -> None:
        x = s.loose(node)
        s.put(node.outputs[0], s.layer(node, kind, [x], x.dims, parameters))

    return write


def with_attributes(kind: str, **defaults: float) -> Write:
    """The same where the parameters 0, 1, ... are attributes, given with their defaults."""

    def write(s: Scope, node: ir.Node) -> None:
        attributes = ir.attributes(node)
        numbers = (float(attributes.get(name, value)) for name, value in defaults.items())
        elementwise(kind, dict(enumerate(numbers)))(s, node)

    return write


def alias(s: Scope, node: ir.Node) -> None:
    """The same elements, perhaps with another shape."""
    s.put(node.outputs[0], s.loose(node))


def clip(s: Scope, node: ir.Node) -> None:
    low, high = clip_bounds(s, node)
    elementwise("Clip", {0: low, 1: high})(s, node)


def clip_bounds(s: Scope, node: ir.Node) -> tuple[float, float]:
    """The two numbers between which Clip holds its input; attributes in old operator sets."""
    attributes, found = ir.attributes(node), []
    for index, name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
        given = index < len(node.inputs) and node.inputs[index] is not None
        array = s.constant(node, index)
        if given and array is None:
            raise refuse(node, f"{name} must be a constant")
        found.append(float(attributes.get(name, default) if array is None else array.reshape(())))
    return found[0], found[1]


def gelu(s: Scope, node: ir.Node) -> None:
    fast = ir.attributes(node).get("approximate", "none") == "tanh"
    elementwise("GELU", {0: int(fast)})(s, node)


def cast(s: Scope, node: ir.Node) -> None:
    source, made = node.inputs[0], node.outputs[0]
    kinds = {ir.dtype(v) for v in (source, made) if v is not None}
    if kinds != {np.dtype(np.float32)}:
        raise refuse(node, "its tensors are float32; another element type is not supported")
    alias(s, node)


def prelu(s: Scope, node: ir.Node) -> None:
    slope = s.constant(node, 1)
    shape = s.in_shape(node)
    if slope is None or slope.size not in (1, shape[1] if len(shape) > 1 else 1):
        raise refuse(node, "the slope must be constant, one number or one per channel")
    x = s.read(node)
    parameters = {0: slope.size}
    s.put(node.outputs[0], s.layer(node, "PReLU", [x], x.dims, parameters, [raw(slope)]))


def softsign(s: Scope, node: ir.Node) -> None:
    x = s.loose(node)
    size = s.layer(node, "UnaryOp", [x], x.dims, {0: UNARY["Abs"]})
    one_more = s.layer(node, "BinaryOp", [size], x.dims, {0: BINARY["Add"], 1: 1, 2: 1.0})
    s.put(node.outputs[0], s.layer(node, "BinaryOp", [x, one_more], x.dims, {0: BINARY["Div"]}))


# ---------------------------------------------------------------- two tensors


def binary(s: Scope, node: ir.Node) -> None:
    """Add, Sub, Mul, Div, Pow of two; Max, Min, Sum, Mean of any number."""
    operation = {"Sum": "Add", "Mean": "Add"}.get(node.op_type, node.op_type)
    if operation == "Pow" and _power(s, node):
        return
    if len(node.inputs) == 1:
        alias(s, node)
        return
    held: Blob | int = 0  # an index of an input until there is a result
    for index in range(1, len(node.inputs)):
        held = _combine(s, node, operation, held, index)
    assert isinstance(held, Blob)
    if node.op_type == "Mean":
        parameters = {0: BINARY["Mul"], 1: 1, 2: 1 / len(node.inputs)}
        held = s.layer(node, "BinaryOp", [held], held.dims, parameters)
    s.put(node.outputs[0], held)


def _combine(s: Scope, node: ir.Node, operation: str, left: Blob | int, right: int) -> Blob:
    code = BINARY[operation]
    for index, other, reverse in ((right, left, False), (left, right, True)):
        array = s.constant(node, index) if isinstance(index, int) else None
        if array is not None and array.size == 1:
            if reverse:
                code = REVERSED.get(operation, code)
            x = other if isinstance(other, Blob) else s.loose(node, other)
            _same_size(s, node, x)
            parameters: dict[int, Parameter] = {0: code, 1: 1, 2: float(array.reshape(()))}
            return s.layer(node, "BinaryOp", [x], x.dims, parameters)
    sides = [_aligned(s, node, left), _aligned(s, node, right)]
    dims = tuple(max(pair) for pair in zip(sides[0].dims, sides[1].dims, strict=True))
    return s.layer(node, "BinaryOp", sides, dims, {0: code})


def _same_size(s: Scope, node: ir.Node, x: Blob) -> None:
    if math.prod(x.dims) != math.prod(s.out_shape(node)):
        raise refuse(node, "a single number is spread over a shape; write the tensor out")


def _aligned(s: Scope, node: ir.Node, side: Blob | int) -> Blob:
    """An operand with as many dimensions as the result."""
    if isinstance(side, Blob):
        return side
    out, shape = s.out_shape(node), s.in_shape(node, side)
    padded = (1,) * (len(out) - len(shape)) + shape
    dims = tuple(padded[axis] for axis in kept_axes(node, out)) or (1,)
    array = s.constant(node, side)
    if array is not None:
        value = node.inputs[side]
        return s.memory(array, dims, value.name or "" if value is not None else "")
    return s.read(node, side, dims)


def _power(s: Scope, node: ir.Node) -> bool:
    """x^2, x^0.5 and x^n with a whole n, which the general layer (an exponential) has not for
    negative x.
    """
    exponent = s.constant(node, 1)
    if exponent is None or exponent.size != 1:
        return False
    n = float(exponent.reshape(()))
    x = s.loose(node)
    if n in (2, 0.5):
        parameters = {0: SQUARE if n == 2 else SQRT}
        made = s.layer(node, "UnaryOp", [x], x.dims, parameters)
    elif n in (1, 3, 4):
        made = x
        for _ in range(int(n) - 1):
            made = s.layer(node, "BinaryOp", [made, x], x.dims, {0: BINARY["Mul"]})
    else:
        return False
    s.put(node.outputs[0], made)
    return True


# ---------------------------------------------------------------- movement


def transpose(s: Scope, node: ir.Node) -> None:
    """Axes of one element go, axes that stay neighbours become one; what is left is permuted."""
    shape = s.in_shape(node)
    perm = ir.attributes(node).get("perm") or tuple(reversed(range(len(shape))))
    order = [axis for axis in perm if shape[axis] != 1]
    runs: list[list[int]] = []
    for axis in order:
        follows = runs and not any(shape[a] != 1 for a in range(runs[-1][-1] + 1, axis))
        if follows and axis > runs[-1][-1]:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    if len(runs) <= 1:
        alias(s, node)
        return
    sources = sorted(runs)
    if len(sources) > 4:
        raise refuse(node, "it permutes more than four dimensions")
    dims = tuple(math.prod(shape[a] for a in run) for run in sources)
    s.put(node.outputs[0], _permuted(s, node, dims, [sources.index(run) for run in runs]))


def _permuted(s: Scope, node: ir.Node, dims: Dims, order: Sequence[int]) -> Blob:
    """Input 0 as `dims`, with its dimensions in another order."""
    held = s.loose(node)
    out = tuple(dims[i] for i in order)
    swaps_two = order[:2] == [1, 0] and (len(dims) == 2 or (len(dims) == 3 and order[2] == 2))
    if swaps_two and len(held.dims) == 3 and held.dims[0] == dims[0] * dims[1]:
        return s.layer(node, "ShuffleChannel", [held], held.dims, {0: dims[0]})
    letters = {2: "hw", 3: "chw", 4: "cdhw"}[len(dims)]  # outermost first
    wanted = "".join(letters[i] for i in reversed(order))
    parameters = {0: ORDERS[len(dims)].index(wanted)}
    return s.layer(node, "Permute", [s.view(held, dims)], out, parameters)


def concat(s: Scope, node: ir.Node) -> None:
    axis, out = int(ir.attributes(node)["axis"]), s.out_shape(node)
    axis %= len(out)
    outer, inner = math.prod(out[:axis]), math.prod(out[axis + 1 :])
    kept = kept_axes(node, out)
    if axis in kept:  # as it is: ncnn has the axis
        parts = [
            s.read(node, i, tuple(s.in_shape(node, i)[a] for a in kept))
            for i in range(len(node.inputs))
        ]
        dims, place = dims_of(node, out), kept.index(axis)
    else:
        parts = [
            s.read(node, i, (outer, s.in_shape(node, i)[axis], inner))
            for i in range(len(node.inputs))
        ]
        dims, place = (outer, out[axis], inner), 1
    s.put(node.outputs[0], s.layer(node, "Concat", parts, dims, {0: place}))


def split(s: Scope, node: ir.Node) -> None:
    attributes, shape = ir.attributes(node), s.in_shape(node)
    axis = int(attributes.get("axis", 0)) % len(shape)
    sizes = [s.out_shape(node, i)[axis] for i in range(len(node.outputs))]
    if len(sizes) == 1:
        alias(s, node)
        return
    kept = kept_axes(node, shape)
    x = s.read(node)
    place = kept.index(axis)
    tops = [(*x.dims[:place], size, *x.dims[place + 1 :]) for size in sizes]
    made = s.net.add("Slice", node.name or "", [x], tops, {0: sizes, 1: place})
    for value, blob in zip(node.outputs, made, strict=True):
        s.put(value, blob)


def slice_(s: Scope, node: ir.Node) -> None:
    """Crop, then every n-th element by a 1 x 1 pool of stride n."""
    shape, blob = s.in_shape(node), s.read(node)
    kept = kept_axes(node, shape)
    for axis, (start, end, step) in _slices(s, node, shape).items():
        if axis not in kept:
            if (start, end) != (0, 1):
                raise refuse(node, "its result is empty")
            continue
        blob = _cut(s, node, blob, kept.index(axis), range(start, end, step))
    s.put(node.outputs[0], blob)


def _slices(s: Scope, node: ir.Node, shape: tuple[int, ...]) -> dict[int, tuple[int, int, int]]:
    """{axis: start, end, step}, from the front and within the axis."""
    attributes = ir.attributes(node)
    given: list[Sequence[int] | None] = [
        attributes.get("starts"), attributes.get("ends"), attributes.get("axes"), None,
    ]  # fmt: skip
    for index in range(1, len(node.inputs)):
        if node.inputs[index] is not None:
            array = s.constant(node, index)
            if array is None:
                raise refuse(node, "starts, ends, axes and steps must be constants")
            given[index - 1] = [int(i) for i in array.reshape(-1)]
    starts, ends, axes, steps = given
    assert starts is not None and ends is not None
    found = {}
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (axes[i] if axes is not None else i) % len(shape)
        step = steps[i] if steps is not None else 1
        if step < 1:
            raise refuse(node, "it runs backwards")
        found[axis] = (*slice(start, end).indices(shape[axis])[:2], step)
    return found


def _cut(s: Scope, node: ir.Node, blob: Blob, place: int, taken: range) -> Blob:
    """The elements `taken` along one dimension."""
    if len(taken) == 0:
        raise refuse(node, "its result is empty")
    first, last = taken[0], taken[-1] + 1
    dims = (*blob.dims[:place], last - first, *blob.dims[place + 1 :])
    if dims != blob.dims:
        parameters: dict[int, Parameter] = {9: [first], 10: [last], 11: [place]}
        blob = s.layer(node, "Crop", [blob], dims, parameters)
    if taken.step == 1 or len(taken) == 1:
        return blob
    outer, inner = math.prod(dims[:place]), math.prod(dims[place + 1 :])
    view = s.view(blob, (outer, last - first, inner))
    strided = {0: MAX_POOL, 1: 1, 11: 1, 2: 1, 12: taken.step, 5: 1}
    made = s.layer(node, "Pooling", [view], (outer, len(taken), inner), strided)
    return s.view(made, (*dims[:place], len(taken), *dims[place + 1 :]))


def gather(s: Scope, node: ir.Node) -> None:
    """Constant indices: one cut where they are evenly spaced, else one for each index."""
    shape, indices = s.in_shape(node), s.constant(node, 1)
    axis = int(ir.attributes(node).get("axis", 0)) % len(shape)
    if indices is None:
        raise refuse(node, "its indices must be constants")
    wanted = [int(i) % shape[axis] for i in indices.reshape(-1)]
    kept = kept_axes(node, shape)
    if axis not in kept:
        if len(wanted) != 1:
            raise refuse(node, "it repeats an axis of one element")
        alias(s, node)
        return
    place, held = kept.index(axis), s.loose(node)
    if place == 0 and len(wanted) == 1 and held.dims[0] % shape[axis] == 0:
        # a run of outermost elements, whatever the dimensions: half of the channels, say
        run = held.dims[0] // shape[axis]
        first = wanted[0] * run
        s.put(node.outputs[0], _cut(s, node, held, 0, range(first, first + run)))
        return
    x = s.read(node)
    step = wanted[1] - wanted[0] if len(wanted) > 1 else 1
    even = range(wanted[0], wanted[-1] + 1, step) if step > 0 else range(0)
    if list(even) == wanted:
        s.put(node.outputs[0], _cut(s, node, x, place, even))
        return
    parts = [_cut(s, node, x, place, range(i, i + 1)) for i in wanted]
    dims = (*x.dims[:place], len(parts), *x.dims[place + 1 :])
    s.put(node.outputs[0], s.layer(node, "Concat", parts, dims, {0: place}))


def pad(s: Scope, node: ir.Node) -> None:
    attributes, shape = ir.attributes(node), s.in_shape(node)
    pads = attributes.get("pads") if s.constant(node, 1) is None else s.constant(node, 1)
    mode = attributes.get("mode", "constant")
    fill = s.constant(node, 2)
    if pads is None or (fill is None and len(node.inputs) > 2 and node.inputs[2] is not None):
        raise refuse(node, "pads and the number to fill with must be constants")
    modes = {"constant": 0, "edge": 1, "reflect": 2}
    axes = s.constant(node, 3)
    order = range(len(shape)) if axes is None else [int(a) % len(shape) for a in axes]
    numbers = [int(p) for p in np.asarray(pads).reshape(-1)]
    around = {axis: (numbers[i], numbers[i + len(order)]) for i, axis in enumerate(order)}
    around = {axis: pair for axis, pair in around.items() if pair != (0, 0)}
    if mode not in modes or any(p < 0 for pair in around.values() for p in pair):
        raise refuse(node, f"mode {mode!r} or a negative pad")
    kept, x = kept_axes(node, shape), s.read(node)
    places = {kept.index(a) if a in kept else -1: pair for a, pair in around.items()}
    ids = {1: {0: (2, 3)}, 2: {0: (0, 1), 1: (2, 3)}, 3: {0: (7, 8), 1: (0, 1), 2: (2, 3)}}
    named = ids.get(len(x.dims), {1: (7, 8), 2: (0, 1), 3: (2, 3)})
    if not places.keys() <= named.keys():
        raise refuse(node, f"ncnn does not pad dimension {min(places)} of {x.dims}")
    value = float(attributes.get("value", 0.0) if fill is None else fill.reshape(()))
    parameters: dict[int, Parameter] = {4: modes[mode], 5: value}
    for place, pair in places.items():
        parameters |= dict(zip(named[place], pair, strict=True))
    dims = tuple(n + sum(places.get(i, (0, 0))) for i, n in enumerate(x.dims))
    s.put(node.outputs[0], s.layer(node, "Padding", [x], dims, parameters))


def tile(s: Scope, node: ir.Node) -> None:
    """Tile and Expand: a whole number of copies along each axis."""
    shape, out = s.in_shape(node), s.out_shape(node)
    padded = (1,) * (len(out) - len(shape)) + shape
    kept = kept_axes(node, out)
    x = s.read(node, 0, tuple(padded[a] for a in kept) or (1,))
    for place, axis in enumerate(kept):
        if out[axis] != padded[axis]:
            copies = out[axis] // padded[axis]
            dims = (*x.dims[:place], out[axis], *x.dims[place + 1 :])
            x = s.layer(node, "Tile", [x], dims, {0: place, 1: copies})
    s.put(node.outputs[0], x)


def depth_to_space(s: Scope, node: ir.Node) -> None:
    attributes = ir.attributes(node)
    mode = int(attributes.get("mode", "DCR") == "DCR")
    x, out = s.read(node), s.out_shape(node)
    parameters = {0: int(attributes["blocksize"]), 1: mode}
    s.put(node.outputs[0], s.layer(node, "PixelShuffle", [x], out[1:], parameters))


def space_to_depth(s: Scope, node: ir.Node) -> None:
    x, out = s.read(node), s.out_shape(node)
    parameters = {0: int(ir.attributes(node)["blocksize"]), 1: 1}
    s.put(node.outputs[0], s.layer(node, "Reorg", [x], out[1:], parameters))


# ---------------------------------------------------------------- along axes


def softmax(s: Scope, node: ir.Node) -> None:
    x = s.read(node)
    shape = s.in_shape(node)
    kept = kept_axes(node, shape)
    axis = int(ir.attributes(node).get("axis", -1)) % len(shape)
    if axis not in kept:
        raise refuse(node, "its axis has one element")
    made = s.layer(node, "Softmax", [x], x.dims, {0: kept.index(axis), 1: 1})
    if node.op_type == "LogSoftmax":
        made = s.layer(node, "UnaryOp", [made], x.dims, {0: UNARY["Log"]})
    s.put(node.outputs[0], made)


def reduce(s: Scope, node: ir.Node) -> None:
    shape, attributes = s.in_shape(node), ir.attributes(node)
    axes = s.constant(node, 1)
    given = attributes.get("axes") if axes is None else [int(a) for a in axes]
    if given is None and attributes.get("noop_with_empty_axes", 0):
        alias(s, node)
        return
    chosen = {int(a) % len(shape) for a in given or range(len(shape))}
    kept, x = kept_axes(node, shape), s.read(node)
    places = [kept.index(a) for a in sorted(chosen) if a in kept]
    if not places and node.op_type in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"):
        alias(s, node)
        return
    places = places or [0]
    dims = tuple(1 if i in places else n for i, n in enumerate(x.dims))
    parameters: dict[int, Parameter] = {0: REDUCE[node.op_type], 1: 0, 3: places, 4: 1, 5: 1}
    s.put(node.outputs[0], s.layer(node, "Reduction", [x], dims, parameters))


# ---------------------------------------------------------------- normalization


def batch_norm(s: Scope, node: ir.Node) -> None:
    arrays = [s.constant(node, i) for i in range(1, 5)]
    if any(a is None for a in arrays):
        raise refuse(node, "its four parameters must be constants")
    scale, shift, mean, variance = (raw(a) for a in arrays if a is not None)
    eps = float(ir.attributes(node).get("epsilon", 1e-5))
    x, channels = s.read(node), s.in_shape(node)[1]
    parameters: dict[int, Parameter] = {0: channels, 1: eps}
    weights = [scale, mean, variance, shift]
    s.put(node.outputs[0], s.layer(node, "BatchNorm", [x], x.dims, parameters, weights))


def instance_norm(s: Scope, node: ir.Node) -> None:
    scale, shift = s.constant(node, 1), s.constant(node, 2)
    shape = s.in_shape(node)
    if scale is None or shift is None:
        raise refuse(node, "scale and bias must be constants")
    x = s.read(node, 0, (shape[1], math.prod(shape[2:-1]), shape[-1]))
    eps = float(ir.attributes(node).get("epsilon", 1e-5))
    parameters: dict[int, Parameter] = {0: shape[1], 1: eps, 2: 1}
    weights = [raw(scale), raw(shift)]
    s.put(node.outputs[0], s.layer(node, "InstanceNorm", [x], x.dims, parameters, weights))


def layer_norm(s: Scope, node: ir.Node) -> None:
    attributes, shape = ir.attributes(node), s.in_shape(node)
    axis = int(attributes.get("axis", -1)) % len(shape)
    size = math.prod(shape[axis:])
    scale, shift = s.constant(node, 1), s.constant(node, 2)
    no_shift = len(node.inputs) < 3 or node.inputs[2] is None
    if scale is None or (shift is None and not no_shift) or scale.size != size:
        raise refuse(node, "scale and bias must be constants over all normalized axes")
    shift = np.zeros(size) if shift is None else shift
    x = s.read(node, 0, (math.prod(shape[:axis]), size))
    parameters: dict[int, Parameter] = {0: size, 1: float(attributes.get("epsilon", 1e-5)), 2: 1}
    weights = [raw(scale), raw(shift)]
    s.put(node.outputs[0], s.layer(node, "LayerNorm", [x], x.dims, parameters, weights))


def lrn(s: Scope, node: ir.Node) -> None:
    attributes, x = ir.attributes(node), s.read(node)
    parameters: dict[int, Parameter] = {
        0: 0,
        1: int(attributes["size"]),
        2: float(attributes.get("alpha", 1e-4)),
        3: float(attributes.get("beta", 0.75)),
        4: float(attributes.get("bias", 1.0)),
    }
    s.put(node.outputs[0], s.layer(node, "LRN", [x], x.dims, parameters))


LAYERS: dict[str, Write] = {
    **{op: elementwise("UnaryOp", {0: code}) for op, code in UNARY.items()},
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean"), binary),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"), alias),
    **dict.fromkeys(REDUCE, reduce),
    **dict.fromkeys(("MaxPool", "AveragePool"), pool),
    **dict.fromkeys(("GlobalMaxPool", "GlobalAveragePool"), global_pool),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    **dict.fromkeys(("Softmax", "LogSoftmax"), softmax),
    **dict.fromkeys(("Tile", "Expand"), tile),
    "Relu": elementwise("ReLU"),
    "LeakyRelu": with_attributes("ReLU", alpha=0.01),
    "Sigmoid": elementwise("Sigmoid"),
    "Tanh": elementwise("TanH"),
    "Erf": elementwise("Erf"),
    "Mish": elementwise("Mish"),
    "Softplus": elementwise("Softplus"),
    "HardSwish": elementwise("HardSwish", {0: 1 / 6, 1: 0.5}),
    "HardSigmoid": with_attributes("HardSigmoid", alpha=0.2, beta=0.5),
    "Elu": with_attributes("ELU", alpha=1.0),
    "Celu": with_attributes("CELU", alpha=1.0),
    "Selu": with_attributes("SELU", alpha=1.6732632423543772, gamma=1.0507009873554805),
    "Gelu": gelu,
    "Softsign": softsign,
    "Clip": clip,
    "Cast": cast,
    "PRelu": prelu,
    "Transpose": transpose,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "Pad": pad,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "LRN": lrn,
}
