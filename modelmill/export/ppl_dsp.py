"""Ranges for OpenPPL's DSP engines in the form of MQBench's file: {"ppl": {tensor: {"step",
"zero_point", "min", "max", "bit", "type": "biased"}}}, weights too.
"""

from modelmill import ir
from modelmill.export import tensors
from modelmill.ir import Plan


def write(graph: ir.Graph, plan: Plan) -> dict[str, bytes]:
    """`.ppl.json` and the float model."""
    found = {**tensors.activations(graph, plan), **tensors.constants(graph, plan)}
    content = {
        name: {
            "step": float(encoding.scale),
            "zero_point": int(encoding.zero_point),
            "min": float(encoding.low),
            "max": float(encoding.high),
            "bit": encoding.spec.bits,
            "type": "biased",
        }
        for name, encoding in found.items()
    }
    return {".ppl.json": tensors.as_json({"ppl": content}), **tensors.float_model(graph)}


PLUGIN = write
