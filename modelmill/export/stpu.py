"""Ranges for STPU in the form of Dipoorlet's and MQBench's file: {tensor: {"min", "max"}},
{node_weights: {"min", "max"}}, {node_bias: {"alpha": scale, "zero_point": 0}}, and for what a layer
writes "emin", the smallest exponent of its accumulator:

    emin = e(max(sqrt(n) * x_max * w_max, y_max)) - 10       n products in a sum
    e(v) = 127 + floor(log2 v), within 1..254

A resized tensor has emin = e(y_max) - 20.
"""

import math
from typing import Any

import numpy as np

from modelmill import ir
from modelmill.export import tensors
from modelmill.ir import Plan
from modelmill.numerics import Encoding

LAYER_BITS, RESIZE_BITS = 10, 20  # exponents kept below the largest
LAST_CODE = 127


def write(graph: ir.Graph, plan: Plan) -> dict[str, bytes]:
    """`.stpu.json` and the float model."""
    found: dict[str, dict[str, Any]] = {}
    for value in graph.graph.inputs:
        _add(found, value.name or "", tensors.written(value, plan))
    for node in ir.nodes(graph):
        for value in node.outputs:
            _add(found, value.name or "", tensors.written(value, plan))
        output = found.get(node.outputs[0].name or "")
        weight, x = tensors.weight(node, plan), tensors.read(node, plan)
        _add(found, f"{node.name}_weights", weight)
        if weight is not None and x is not None:
            if len(node.inputs) > 2:
                alpha = float(np.float32(x.scale * weight.scale))
                found[f"{node.name}_bias"] = {"alpha": alpha, "zero_point": 0}
            if output is not None:
                reach = math.sqrt(_products(node)) * _end(x) * _end(weight)
                output["emin"] = exponent(max(reach, output["max"])) - LAYER_BITS
        if node.op_type == "Resize" and output is not None:
            output["emin"] = exponent(output["max"]) - RESIZE_BITS
    return {".stpu.json": tensors.as_json(found), **tensors.float_model(graph)}


def _add(found: dict[str, dict[str, Any]], name: str, encoding: Encoding | None) -> None:
    if encoding is not None:
        found[name] = {"min": -_end(encoding), "max": _end(encoding)}


def _end(encoding: Encoding) -> float:
    return float(encoding.scale) * LAST_CODE


def _products(node: ir.Node) -> int:
    array = ir.constant(node.inputs[1])
    assert array is not None
    if array.ndim > 2:
        return int(np.prod(array.shape[1:]))
    return int(array.shape[1] if ir.attributes(node).get("transB", 0) else array.shape[0])


def exponent(v: float) -> int:
    """The exponent field of v as a float32, 0 for 0."""
    return min(max(127 + math.frexp(v)[1] - 1, 1), 254) if v > 0 else 0


PLUGIN = write
