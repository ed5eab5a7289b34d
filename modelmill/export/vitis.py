"""Scales, powers of two, for the DPU of Vitis AI in the form of MQBench's file, which its converter
to xmodel reads: {"vitis": {tensor: {"scale": float}}}, weights and biases too.
"""

from modelmill import ir
from modelmill.export import tensors
from modelmill.ir import Plan


def write(graph: ir.Graph, plan: Plan) -> dict[str, bytes]:
    """`.vitis.json` and the float model."""
    found = {**tensors.activations(graph, plan), **tensors.constants(graph, plan)}
    scales = {name: {"scale": float(encoding.scale)} for name, encoding in found.items()}
    return {".vitis.json": tensors.as_json({"vitis": scales}), **tensors.float_model(graph)}


PLUGIN = write
