"""Fold an affine map per channel into the linear layer before or behind it.

    affine(Conv(x, W, b))   ->  Conv(x, s W, s b + t)           also ConvTranspose and Gemm
    Conv(affine(x), W, b)   ->  Conv(x, W s, b + W t)           only without padding, or t = 0
    Gemm(affine(x), W, b)   ->  the same

An affine map is y = s x + t with one s and one t per channel: BatchNormalization
(s = gamma / sqrt(var + eps), t = beta - s mean), or Mul, Add, Sub, Div by constants. Numbers are
computed in float64 and rounded once. Before a layer that pads, a shift cannot be folded: the layer
pads with zeros, not with t.
"""

from dataclasses import dataclass

import numpy as np

from modelmill import ir

LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm"})


@dataclass(frozen=True)
class Affine:
    """y = scale x + shift per channel (axis 1); float64 arrays of shape (C,) or (1,)."""

    data: ir.Value
    scale: ir.Array
    shift: ir.Array


def fold_batchnorm(graph: ir.Graph) -> ir.Graph:
    """affine(linear(x)) -> linear(x), linear(affine(x)) -> linear(x). Equal up to rounding."""
    folded = ir.infer_shapes(graph)
    for node in ir.nodes(folded):
        affine = _affine(node)
        if affine is not None:
            _fold_backward(folded, node, affine)
    for node in ir.nodes(folded):
        source = _producer(node, 0)
        affine = _affine(source) if source is not None else None
        if affine is not None:
            _fold_forward(folded, node, affine)
    ir.prune(folded)
    return folded


def _producer(node: ir.Node, index: int) -> ir.Node | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return value.producer() if value is not None else None


# ---------------------------------------------------------------- what is affine


def _affine(node: ir.Node) -> Affine | None:
    if node.domain:
        return None
    if node.op_type == "BatchNormalization":
        return _batch_norm(node)
    if node.op_type not in ("Mul", "Add", "Sub", "Div"):
        return None
    left, right = node.inputs
    if left is None or right is None:
        return None
    data, other = (left, right) if ir.constant(left) is None else (right, left)
    number = _per_channel(other, data)
    if number is None or (other is left and node.op_type == "Div"):
        return None
    one, zero = np.ones(1), np.zeros(1)
    match node.op_type:
        case "Mul":
            return Affine(data, number, zero)
        case "Div":
            return Affine(data, 1 / number, zero) if number.all() else None
        case "Add":
            return Affine(data, one, number)
        case _:  # Sub
            return Affine(data, -one, number) if other is left else Affine(data, one, -number)


def _batch_norm(node: ir.Node) -> Affine | None:
    attributes = ir.attributes(node)
    numbers = [ir.constant(value) for value in node.inputs[1:]]
    wanted = any(value.uses() for value in node.outputs[1:])
    if attributes.get("training_mode", 0) or wanted or node.inputs[0] is None:
        return None
    known = [array.astype(np.float64) for array in numbers if array is not None]
    if len(known) != 4:
        return None
    gamma, beta, mean, variance = known
    epsilon = np.float64(np.float32(attributes.get("epsilon", 1e-5)))
    scale = gamma / np.sqrt(variance + epsilon)
    return Affine(node.inputs[0], scale, beta - mean * scale)


def _per_channel(value: ir.Value, data: ir.Value) -> ir.Array | None:
    """The constant as one number per channel of `data`, if that is all it is."""
    array, dims = ir.constant(value), ir.shape(data)
    if array is None or array.dtype.kind != "f" or dims is None or array.ndim > len(dims):
        return None
    aligned = array.reshape((1,) * (len(dims) - array.ndim) + array.shape)
    if len(dims) < 2 or aligned.size != aligned.shape[1]:
        return None
    if aligned.size > 1 and aligned.shape[1] != dims[1]:
        return None  # it would widen the data
    return aligned.ravel().astype(np.float64)


# ---------------------------------------------------------------- the two rewrites


def _weights(node: ir.Node) -> tuple[ir.Array, ir.Array | None] | None:
    """Weight and bias of a linear node as float64, if constant; the bias may be absent."""
    if node.op_type not in LINEAR or node.domain:
        return None
    weight = ir.constant(node.inputs[1])
    absent = len(node.inputs) < 3 or node.inputs[2] is None
    bias = None if absent else ir.constant(node.inputs[2])
    if weight is None or weight.dtype.kind != "f" or (bias is None and not absent):
        return None
    attributes = ir.attributes(node)
    if node.op_type == "Gemm" and (
        attributes.get("alpha", 1.0) != 1.0
        or attributes.get("beta", 1.0) != 1.0
        or attributes.get("transA", 0)
        or (bias is not None and bias.size > 1 and bias.size != bias.shape[-1])
    ):
        return None
    return weight.astype(np.float64), None if bias is None else bias.astype(np.float64).ravel()


def _output_axis(node: ir.Node) -> int:
    """The axis of the weight that counts output channels; for ConvTranspose, of each group."""
    if node.op_type == "Gemm":
        return 0 if ir.attributes(node).get("transB", 0) else 1
    return 1 if node.op_type == "ConvTranspose" else 0


def _fold_backward(graph: ir.Graph, node: ir.Node, affine: Affine) -> None:
    """affine(linear(x)) -> linear(x)."""
    linear = affine.data.producer()
    found = _weights(linear) if linear is not None and ir.used_once(affine.data) else None
    if linear is None or found is None:
        return
    weight, bias = found
    axis = _output_axis(linear)
    groups = ir.attributes(linear).get("group", 1) if linear.op_type == "ConvTranspose" else 1
    channels = weight.shape[axis] * groups
    scale = np.broadcast_to(affine.scale, (channels,))
    shift = (0.0 if bias is None else bias) * scale + affine.shift
    if groups > 1:  # the weight is (groups * in, out, ...), one row of scales per group
        rows = np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        weight = weight * rows.reshape(*rows.shape, *(1,) * (weight.ndim - 2))
    else:
        weight = weight * scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    if ir.redirect(graph, node.outputs[0], affine.data):
        _store(graph, linear, weight, shift)


def _fold_forward(graph: ir.Graph, linear: ir.Node, affine: Affine) -> None:
    """linear(affine(x)) -> linear(x)."""
    found, between = _weights(linear), linear.inputs[0]
    if found is None or between is None or not ir.used_once(between):
        return
    weight, bias = found
    if linear.op_type == "ConvTranspose" or (affine.shift.any() and _pads(linear)):
        return
    groups = ir.attributes(linear).get("group", 1)
    if linear.op_type == "Gemm" and _output_axis(linear) == 1:
        weight = weight.T
    outputs, inputs = weight.shape[0], weight.shape[1] * groups
    scale, shift = (np.broadcast_to(array, (inputs,)) for array in (affine.scale, affine.shift))
    # Row o of the weight reads the channels of its group only.
    group = np.arange(outputs) * groups // outputs
    tail = (1,) * (weight.ndim - 2)
    scale = scale.reshape(groups, -1)[group].reshape(*weight.shape[:2], *tail)
    shift = shift.reshape(groups, -1)[group].reshape(*weight.shape[:2], *tail)
    total = (weight * shift).sum(axis=tuple(range(1, weight.ndim)))
    weight = weight * scale
    if linear.op_type == "Gemm" and _output_axis(linear) == 1:
        weight = weight.T
    linear.replace_input_with(0, affine.data)
    _store(graph, linear, weight, total + (0.0 if bias is None else bias))


def _pads(linear: ir.Node) -> bool:
    attributes = ir.attributes(linear)
    automatic = attributes.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    return linear.op_type == "Conv" and (automatic or any(attributes.get("pads", ())))


def _store(graph: ir.Graph, linear: ir.Node, weight: ir.Array, bias: ir.Array) -> None:
    kind = ir.constant(linear.inputs[1])
    assert kind is not None
    absent = len(linear.inputs) < 3 or linear.inputs[2] is None
    ir.set_constant(graph, linear, 1, weight.astype(kind.dtype))
    if bias.any() or not absent:
        ir.set_constant(graph, linear, 2, bias.astype(kind.dtype), f"{linear.name}_bias")
