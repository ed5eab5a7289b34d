"""Scales, powers of two, for NXP's i.MX in the form of Dipoorlet's file: {"blob_range": {tensor:
scale, or one for each output channel of a weight}}.
"""

from modelmill import ir
from modelmill.export import tensors
from modelmill.ir import Plan


def write(graph: ir.Graph, plan: Plan) -> dict[str, bytes]:
    """`.imx.json` and the float model."""
    found = {**tensors.activations(graph, plan), **tensors.constants(graph, plan)}
    scales = {name: tensors.numbers(encoding.scale) for name, encoding in found.items()}
    return {".imx.json": tensors.as_json({"blob_range": scales}), **tensors.float_model(graph)}


PLUGIN = write
