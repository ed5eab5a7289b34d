"""A graph of a few ONNX nodes, for the tests that run an engine beside the simulation."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from modelmill import ir


def whole(nodes, shape, outputs, arrays, opset=19):
    """The graph of `nodes` with input "x" of `shape`; `outputs` and their shapes, constants."""
    value = helper.make_tensor_value_info
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [value("x", TensorProto.FLOAT, shape)],
            [value(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
            [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=9,
    )
    return ir.infer_shapes(ir.from_bytes(proto.SerializeToString()))
