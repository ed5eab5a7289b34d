"""Conv(x, w) -> Conv(x, w, 0): every layer with a constant weight gets a bias of its own.

The zero changes no output and costs nothing in an accumulator; quantization steps then have a place
to put a correction, and targets that want an int32 bias find one. Applies to Conv, ConvTranspose
and Gemm.
"""

from __future__ import annotations

import numpy as np

from modelmill import ir


def explicit_bias(graph: ir.Graph) -> ir.Graph:
    """A clone in which no Conv, ConvTranspose or Gemm with a constant weight lacks a bias."""
    made = ir.clone(graph)
    for node in ir.nodes(made):
        if (
            node.op_type not in ("Conv", "ConvTranspose", "Gemm")
            or ir.constant(node.inputs[1]) is None
        ):
            continue
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            continue
        weight = ir.constant(node.inputs[1])
        assert weight is not None
        attributes = ir.attributes(node)
        if node.op_type == "Gemm":
            channels = weight.shape[0 if attributes.get("transB", 0) else 1]
        elif node.op_type == "Conv":
            channels = weight.shape[0]
        else:
            channels = weight.shape[1] * int(attributes.get("group", 1))
        ir.set_constant(made, node, 2, np.zeros(channels, weight.dtype), f"{node.name}_bias")
    return made
