"""Compute one node from constants, by ONNX's reference implementation of its operator."""

from __future__ import annotations

import onnx
import onnx_ir
from onnx.reference import ReferenceEvaluator

from modelmill.ir.graph import Array, Graph, Node, constant


def evaluate(graph: Graph, node: Node) -> list[Array] | None:
    """The outputs of a node that reads constants only; None if it cannot be computed."""
    feeds: dict[str, Array] = {}
    for value in node.inputs:
        if value is None:
            continue
        array = constant(value)
        if array is None:
            return None
        feeds[value.name or ""] = array
    if any(attr.type == onnx_ir.AttributeType.GRAPH for attr in node.attributes.values()):
        return None
    proto = onnx_ir.serde.serialize_node(node)
    undefined = onnx.TypeProto()
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [proto],
            "one_node",
            [onnx.helper.make_value_info(name, undefined) for name in feeds],
            [onnx.helper.make_value_info(name, undefined) for name in proto.output if name],
        ),
        opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in graph.opset_imports.items()],
    )
    try:
        return list(ReferenceEvaluator(model).run(None, feeds))
    except Exception:  # an operator that the reference lacks stays in the graph
        return None
