"""Ranges for TI's TIDL in the two forms of Dipoorlet's files: JSON {"blob_range": {tensor: [min,
max]}}, and text, a line `tensor min max` for each. Activations only; a range is that of the codes,
so the power of two follows from it.
"""

from modelmill import ir
from modelmill.export import tensors
from modelmill.ir import Plan


def write(graph: ir.Graph, plan: Plan) -> dict[str, bytes]:
    """`.ti.json`, `.ti.txt` and the float model."""
    found = tensors.activations(graph, plan)
    ranges = {name: [float(e.low), float(e.high)] for name, e in found.items()}
    lines = [f"{name} {low!r} {high!r}" for name, (low, high) in ranges.items()]
    return {
        ".ti.json": tensors.as_json({"blob_range": ranges}),
        ".ti.txt": ("\n".join(lines) + "\n").encode(),
        **tensors.float_model(graph),
    }


PLUGIN = write
