"""What a `Limit` measures on a node: numbers that hardware is built for, such as the size of a
kernel or the channels of a layer.

A limit names an attribute of the operator, each number of which counts, or one of QUANTITIES. Of an
attribute that is absent the standard's default counts where it has one (strides, dilations, group),
and the weight's shape says what the kernel is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from modelmill import ir
from modelmill.targets.target import OpRule

DEFAULTS = {
    "strides": 1,
    "dilations": 1,
    "group": 1,
    "pads": 0,
    "ceil_mode": 0,
    "count_include_pad": 0,
}
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def refusal(node: ir.Node, rule: OpRule) -> str | None:
    """Which limit of `rule` the node breaks, in words; None if it keeps all."""
    for limit in rule.limits:
        numbers = measure(node, limit.what)
        if numbers is None:
            return f"{limit.what} is not known before it runs, the rule limits it"
        broken = next((n for n in numbers if not limit.low <= n <= limit.high), None)
        if broken is not None:
            shown = broken if len(numbers) == 1 else list(numbers)
            said = f"{limit.what} is {shown}, the rule takes {limit.range}"
            return f"{said}: {limit.why}" if limit.why else said
    return None


def measure(node: ir.Node, what: str) -> tuple[float, ...] | None:
    """The numbers that a limit on `what` speaks of; empty where it says nothing about this node,
    None where they are not known.
    """
    if what in QUANTITIES:
        number = QUANTITIES[what](node)
        return None if number is None else (number,)
    found = ir.attributes(node).get(what)
    if found is None and what == "kernel_shape":
        weight = _weight_shape(node)
        return () if weight is None else weight[2:]
    if found is None:
        return (DEFAULTS[what],) if what in DEFAULTS else ()
    return tuple(np.ravel(found).tolist())


def _weight_shape(node: ir.Node) -> tuple[int, ...] | None:
    """Shape of a layer's constant weight."""
    if node.op_type not in LAYERS or len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    array = ir.constant(node.inputs[1])
    return None if array is None else array.shape


def _group(node: ir.Node) -> int:
    return int(ir.attributes(node).get("group", 1))


def _channels_of(value: ir.Value | None) -> int | None:
    shape = ir.shape(value) if value is not None else None
    known = shape[1] if shape is not None and len(shape) > 1 else None
    return known if isinstance(known, int) else None


def input_channels(node: ir.Node) -> int | None:
    """Channels of input 0; of a matrix product the elements of a row of it."""
    weight = _weight_shape(node)
    if weight is None:
        return _channels_of(node.inputs[0])
    if node.op_type == "Gemm":
        return weight[1] if ir.attributes(node).get("transB", 0) else weight[0]
    if node.op_type == "MatMul":
        return weight[-2] if len(weight) > 1 else weight[0]
    return weight[0] if node.op_type == "ConvTranspose" else weight[1] * _group(node)


def output_channels(node: ir.Node) -> int | None:
    """Channels of output 0; of a matrix product the elements of a row of it."""
    weight = _weight_shape(node)
    if weight is None:
        return _channels_of(node.outputs[0])
    if node.op_type == "Gemm":
        return weight[0] if ir.attributes(node).get("transB", 0) else weight[1]
    if node.op_type == "MatMul":
        return weight[-1]
    return weight[1] * _group(node) if node.op_type == "ConvTranspose" else weight[0]


def channels_per_group(node: ir.Node) -> int | None:
    """Input channels that one output of a convolution reads; 1: depthwise."""
    channels = input_channels(node)
    return None if channels is None else channels // _group(node)


def outputs_per_group(node: ir.Node) -> int | None:
    """Output channels of each group of a convolution."""
    channels = output_channels(node)
    return None if channels is None else channels // _group(node)


def weights_per_output(node: ir.Node) -> int | None:
    """Products summed for one element of the output."""
    weight = _weight_shape(node)
    if weight is None:
        return None
    return int(np.prod(weight[2:], dtype=np.int64)) * (channels_per_group(node) or 0)


def constant_inputs(node: ir.Node) -> int | None:
    """Inputs that are constants."""
    return sum(ir.constant(value) is not None for value in node.inputs)


def rank(node: ir.Node) -> int | None:
    """Dimensions of input 0."""
    shape = ir.shape(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
    return None if shape is None else len(shape)


QUANTITIES: dict[str, Callable[[ir.Node], int | None]] = {
    "input_channels": input_channels,
    "output_channels": output_channels,
    "channels_per_group": channels_per_group,
    "outputs_per_group": outputs_per_group,
    "weights_per_output": weights_per_output,
    "constant_inputs": constant_inputs,
    "rank": rank,
}
