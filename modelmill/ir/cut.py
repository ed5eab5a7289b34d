"""A piece of a graph as a graph of its own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir

from modelmill.ir.graph import Graph, ModelError


def cut(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> Graph:
    """The nodes between the values `inputs` and the values `outputs`, with their constants.

    Names stay; what is cut becomes the input or the output of a graph.

    Raises:
        ModelError: a value is not there, or an output needs more than these inputs.
    """
    try:
        piece = onnx_ir.convenience.extract(graph.graph, inputs, outputs)
    except ValueError as error:
        raise ModelError(f"cannot cut the graph at {', '.join(map(repr, inputs))}: {error}") from (
            error
        )
    return onnx_ir.Model(piece, ir_version=graph.ir_version)
