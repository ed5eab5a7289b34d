"""Quantization parameters for Rockchip's RKNN in the two forms that Dipoorlet writes.

RV1126 and its generation name what a node writes, `@node:out0`, and its weight and bias, with
range, scale and zero point; RK3568 and its generation name tensors, with their range. The tools
read YAML, of which JSON is a part. What a layer writes has the encoding behind the ReLU that is
merged into it.
"""

from typing import Any

import numpy as np

from modelmill import ir
from modelmill.export import tensors
from modelmill.ir import Plan
from modelmill.numerics import Encoding

Entry = dict[str, Any]


def write(graph: ir.Graph, plan: Plan) -> dict[str, bytes]:
    """`.rv1126.json`, `.rk3568.json` and the float model."""
    by_node = {"customized_quantize_layers": {}, "quantize_parameters": _by_node(graph, plan)}
    by_tensor = {"custom_quantize_layers": {}, "quantize_parameters": _by_tensor(graph, plan)}
    return {
        ".rv1126.json": tensors.as_json(by_node),
        ".rk3568.json": tensors.as_json(by_tensor),
        **tensors.float_model(graph),
    }


def _by_node(graph: ir.Graph, plan: Plan) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for value in graph.graph.inputs:
        encoding = tensors.written(value, plan)
        if encoding is not None:
            found[f"@{value.name}:out0"] = _affine(encoding)
    for node in ir.nodes(graph):
        weight, x = tensors.weight(node, plan), tensors.read(node, plan)
        if weight is not None:
            found[f"@{node.name}:weight"] = _affine(weight)
        if weight is not None and x is not None and len(node.inputs) > 2:
            scale = float(np.float32(x.scale * weight.scale))
            entry = {"dtype": "asymmetric_affine", "method": "layer", "qtype": "i32"}
            ranges: Entry = {"max_value": [], "min_value": [], "scale": [scale], "zero_point": [0]}
            found[f"@{node.name}:bias"] = {**entry, **ranges}
        for index, value in enumerate(node.outputs):
            encoding = tensors.written(value, plan)
            if encoding is not None:
                found[f"@{node.name}:out{index}"] = _affine(encoding)
    return found


def _affine(encoding: Encoding) -> Entry:
    return {
        "dtype": "asymmetric_affine",
        "method": "layer",
        "max_value": [float(encoding.high)],
        "min_value": [float(encoding.low)],
        "qtype": "u8",
        "scale": [float(encoding.scale)],
        "zero_point": [int(encoding.zero_point)],
    }


def _by_tensor(graph: ir.Graph, plan: Plan) -> dict[str, Entry]:
    found: dict[str, Entry] = {}

    def add(name: str, encoding: Encoding | None) -> None:
        if encoding is not None:
            found[name] = {"max": [float(encoding.high)], "min": [float(encoding.low)]}

    for value in graph.graph.inputs:
        add(value.name or "", tensors.written(value, plan))
    for node in ir.nodes(graph):
        weight = tensors.weight(node, plan)
        add(f"{node.name}_W", weight)
        bias = ir.constant(node.inputs[2]) if weight is not None and len(node.inputs) > 2 else None
        if bias is not None:
            reach = float(np.abs(bias).max())
            found[f"{node.name}_b"] = {"max": [reach], "min": [-reach]}
        for value in node.outputs:
            add(value.name or "", tensors.written(value, plan))
    return found


PLUGIN = write
