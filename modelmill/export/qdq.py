"""QDQ ONNX: the whole plan in one file of the ONNX standard (TensorRT's explicit quantization, QNN,
and every engine that reads ONNX).
"""

from modelmill import ir
from modelmill.ir import Plan


def write(graph: ir.Graph, plan: Plan) -> dict[str, bytes]:
    """`.qdq.onnx`."""
    return {".qdq.onnx": ir.to_bytes(ir.to_qdq(graph, plan))}


PLUGIN = write
