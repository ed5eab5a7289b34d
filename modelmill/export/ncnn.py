"""Write an ncnn model from a graph and its plan, without ncnn's converters.

The plan goes into the file as it is: a convolution or matrix product whose input and weight have
encodings gets their scales and codes and runs on int8, everything else runs in float. No number is
chosen here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelmill import ir
from modelmill.export import ncnn_layers, ncnn_products
from modelmill.export.ncnn_scope import Scope, blob_dims, refuse
from modelmill.ir import Plan

OPERATORS = {
    **ncnn_layers.LAYERS,
    "Conv": ncnn_products.conv,
    "ConvTranspose": ncnn_products.conv_transpose,
    "Gemm": ncnn_products.gemm,
    "MatMul": ncnn_products.matmul,
}


@dataclass(frozen=True)
class NcnnModel:
    """The files of a model.

    param: the text of the .param file. weights: the .bin file. tensors: what an adapter must know:
    for "inputs" and "outputs" a list of {name, blob, shape}, the ONNX shape, and of inputs {dims},
    the blob's, of outputs {codes}, whether the blob holds int8 codes.
    """

    param: str
    weights: bytes
    tensors: dict[str, list[dict[str, Any]]]


def write(graph: ir.Graph, plan: Plan, codes: Mapping[str, str] | None = None) -> NcnnModel:
    """The ncnn model of a float `graph` whose `plan` has encodings.

    Args:
        graph: one image a time, all shapes known (`ir.with_batch(graph, 1)`).
        plan: signed activations without zero point in -127..127, int8 weights.
        codes: further outputs: {name: the value of the graph whose codes it gives}.

    Raises:
        ValueError: an operator or a format that ncnn does not have; names the node.
    """
    scope = Scope(graph, plan)
    inputs = []
    for value in graph.graph.inputs:
        shape = ir.static_shape(value)
        if shape is None or ir.dtype(value) != np.float32:
            raise ValueError(
                f"ncnn takes float32 tensors of known shape; the input {value.name!r} is "
                f"{ir.dtype(value)} of shape {ir.shape(value)}"
            )
        (blob,) = scope.net.add("Input", value.name or "", [], [blob_dims(value.name, shape)])
        scope.put(value, blob)
        facts = {"name": value.name, "blob": blob.name, "shape": list(shape)}
        inputs.append({**facts, "dims": list(blob.dims)})
    for node in ir.nodes(graph):
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            raise refuse(node, "modelmill cannot write this operator for ncnn")
        if id(node) not in scope.done:
            OPERATORS[node.op_type](scope, node)
    return _finished(scope, graph, inputs, codes or {})


def _finished(
    scope: Scope, graph: ir.Graph, inputs: list[dict[str, Any]], codes: Mapping[str, str]
) -> NcnnModel:
    """The files, with the blobs of the outputs."""
    values = ir.values(graph)
    wanted = [(v.name or "", v, scope.output(v), False) for v in graph.graph.outputs]
    wanted += [(name, values[v], scope.held_codes(v), True) for name, v in codes.items()]
    text, held = scope.net.param([blob.name for _, _, blob, _ in wanted])
    outputs: list[dict[str, Any]] = []
    for name, value, blob, is_codes in wanted:
        shape = ir.static_shape(value)
        if shape is None:
            raise ValueError(f"ncnn: the shape of the output {name!r} is not known")
        found = {"name": name, "blob": held[blob.name], "shape": list(shape), "codes": is_codes}
        outputs.append(found)
    return NcnnModel(text, scope.net.weights(), {"inputs": inputs, "outputs": outputs})
