"""Ranges for Cambricon's MagicMind in the form of Dipoorlet's file: {"blob_range": {tensor:
{"min": float, "max": float}}}, activations only.
"""

from modelmill import ir
from modelmill.export import tensors
from modelmill.ir import Plan


def write(graph: ir.Graph, plan: Plan) -> dict[str, bytes]:
    """`.magicmind.json` and the float model."""
    found = tensors.activations(graph, plan)
    ranges = {n: {"min": float(e.low), "max": float(e.high)} for n, e in found.items()}
    return {
        ".magicmind.json": tensors.as_json({"blob_range": ranges}),
        **tensors.float_model(graph),
    }


PLUGIN = write
