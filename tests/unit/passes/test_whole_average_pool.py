"""An average over the whole picture against its rewritten form, by ONNX's own reference."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from modelmill import ir
from modelmill.passes.whole_average_pool import whole_average_pool

SHAPE = (2, 3, 5, 7)


def pooled(**attributes):
    value = helper.make_tensor_value_info
    node = helper.make_node("AveragePool", ["x"], ["y"], "pool", **attributes)
    made = helper.make_graph(
        [node],
        "g",
        [value("x", TensorProto.FLOAT, SHAPE)],
        [value("y", TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 19)]
    return ir.from_bytes(
        helper.make_model(made, opset_imports=opsets, ir_version=9).SerializeToString()
    )


def run(graph):
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    return ReferenceEvaluator(ir.to_bytes(graph)).run(None, {"x": x})[0]


@pytest.mark.parametrize("more", [{}, {"auto_pad": "VALID"}, {"pads": (0, 0, 0, 0)}])
def test_a_window_as_large_as_the_picture_is_a_global_average(more):
    graph = pooled(kernel_shape=(5, 7), **more)
    made = whole_average_pool(graph)
    assert [n.op_type for n in ir.nodes(made)] == ["GlobalAveragePool"]
    assert list(ir.outputs(made)) == ["y"]
    np.testing.assert_allclose(run(made), run(graph), rtol=1e-6)


@pytest.mark.parametrize(
    "other",
    [{"kernel_shape": (5, 5)}, {"kernel_shape": (5, 7), "pads": (1, 0, 1, 0)}],
)
def test_any_other_pool_stays(other):
    made = whole_average_pool(pooled(**other))
    assert [n.op_type for n in ir.nodes(made)] == ["AveragePool"]
