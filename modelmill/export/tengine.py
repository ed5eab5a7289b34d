"""Tengine's scale file, as its quantization tool reads it and MQBench and PPQ write it: a line
`tensor scale zero_point` for each activation. What a convolution writes has the line of the ReLU or
ReLU6 that the converter merges into it.
"""

from modelmill import ir
from modelmill.export import tensors
from modelmill.ir import Plan


def write(graph: ir.Graph, plan: Plan) -> dict[str, bytes]:
    """`.scale` and the float model."""
    found = tensors.activations(graph, plan)
    for node in ir.nodes(graph):
        name = node.outputs[0].name or ""
        encoding = tensors.written(node.outputs[0], plan)
        if node.op_type == "Conv" and encoding is not None:
            found[name] = encoding
    lines = [f"{name} {float(e.scale)!r} {int(e.zero_point)}" for name, e in found.items()]
    return {".scale": ("\n".join(lines) + "\n").encode(), **tensors.float_model(graph)}


PLUGIN = write
