"""Scale and offset of what Ascend's quantized layers read, in the form of Dipoorlet's file for
Atlas: {tensor: {"scale": float, "offset": int in -128..127}}.

The compiler quantizes the weights itself, per channel and symmetrically.
"""

from modelmill import ir
from modelmill.export import tensors
from modelmill.ir import Plan

LAYERS = (*tensors.LAYERS, "AveragePool")


def write(graph: ir.Graph, plan: Plan) -> dict[str, bytes]:
    """`.atlas.json` and the float model."""
    found = tensors.activations(graph, plan)
    content = {}
    for node in ir.nodes(graph):
        name = node.inputs[0].name or "" if node.inputs and node.inputs[0] is not None else ""
        if node.op_type in LAYERS and name in found:
            encoding = found[name]
            content[name] = {
                "scale": float(encoding.scale),
                "offset": int(encoding.zero_point),
            }
    return {".atlas.json": tensors.as_json(content), **tensors.float_model(graph)}


PLUGIN = write
