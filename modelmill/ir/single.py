"""A model of one node, for converters that take whole models."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir

from modelmill.ir.graph import (
    Array,
    Graph,
    ModelError,
    Node,
    Value,
    constant,
    dtype,
    static_shape,
)


def single(
    graph: Graph,
    node: Node,
    kinds: Mapping[int, np.dtype[np.generic]] | None = None,
    given: Mapping[int, Array] | None = None,
) -> onnx.ModelProto:
    """The model that computes `node` alone: its constants inside, its other inputs fed.

    Args:
        graph: where the node stands; shapes inferred.
        node: its run-time inputs must have known shapes.
        kinds: other element types of inputs, by index; every output then has that of input 0.
        given: constants in place of inputs, by index.

    Raises:
        ModelError: the shape or type of an input is not known.
    """
    kinds, given = kinds or {}, given or {}
    proto = onnx_ir.serde.serialize_node(node)
    fed, stored = [], []
    for index, value in enumerate(node.inputs):
        name = f"input_{index}" if value is not None or index in given else ""
        if index >= len(proto.input):
            proto.input.append(name)
        proto.input[index] = name
        array = given.get(index, constant(value))
        if array is not None:
            stored.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        elif value is not None:
            fed.append(_info(name, value, kinds.get(index)))
    outputs = []
    for index, value in enumerate(node.outputs):
        if value.name:
            proto.output[index] = f"output_{index}"
            outputs.append(_info(f"output_{index}", value, kinds.get(0)))
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in graph.opset_imports.items()]
    made = onnx.helper.make_graph([proto], "one_node", fed, outputs, stored)
    return onnx.helper.make_model(made, opset_imports=opsets, ir_version=10)


def _info(name: str, value: Value, kind: np.dtype[np.generic] | None) -> onnx.ValueInfoProto:
    shape, found = static_shape(value), dtype(value)
    if shape is None or found is None:
        raise ModelError(f"the shape or element type of {value.name!r} is not known")
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind or found))
    return onnx.helper.make_tensor_value_info(name, element, shape)
