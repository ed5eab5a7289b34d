"""Clip values for NNIE's mapper in the form of MQBench's file: {"nnie": {"gfpq_param_dict": {node:
[clip value of each input]}}}.

A clip value is the largest number of a tensor's logarithmic codes, 2^(k / 16) with an integer k, as
the mapper's table has them. Convolutions in groups, which would want a list for each group, and
layers that the mapper quantizes as the one before are left out.
"""

from modelmill import ir
from modelmill.export import tensors
from modelmill.ir import Plan

FOLLOWING = (
    *("Flatten", "Relu", "PRelu", "LeakyRelu", "Sigmoid", "Tanh", "Reshape", "Softmax", "Clip"),
    *("GlobalAveragePool", "Mul"),
)


def write(graph: ir.Graph, plan: Plan) -> dict[str, bytes]:
    """`.gfpq.json` and the float model."""
    found = tensors.activations(graph, plan)
    content: dict[str, list[float]] = {}
    for node in ir.nodes(graph):
        names = [value.name or "" for value in node.inputs if value is not None]
        clips = [float(found[name].high) for name in names if name in found]
        grouped = node.op_type == "Conv" and ir.attributes(node).get("group", 1) != 1
        if clips and not grouped and node.op_type not in FOLLOWING:
            content[node.name or ""] = clips
    file = tensors.as_json({"nnie": {"gfpq_param_dict": content}})
    return {".gfpq.json": file, **tensors.float_model(graph)}


PLUGIN = write
