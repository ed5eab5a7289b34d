"""An average pool against the depthwise convolution it becomes, by ONNX's own reference."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from modelmill import ir
from modelmill.passes.pool_as_convolution import pool_as_convolution

SHAPE = (2, 3, 5, 7)


def pooled(**attributes):
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        [helper.make_node("AveragePool", ["x"], ["y"], "pool", **attributes)],
        "g",
        [value("x", TensorProto.FLOAT, SHAPE)],
        [value("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return ir.from_bytes(model.SerializeToString())


def run(graph):
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    return ReferenceEvaluator(ir.to_bytes(graph)).run(None, {"x": x})[0]


@pytest.mark.parametrize(
    "given",
    [
        {"kernel_shape": (3, 2)},
        {"kernel_shape": (2, 2), "strides": (2, 2), "auto_pad": "VALID"},
        {"kernel_shape": (3, 3), "pads": (1, 0, 1, 1), "strides": (2, 1), "count_include_pad": 1},
    ],
)
def test_a_pool_is_a_depthwise_convolution(given):
    graph = pooled(**given)
    made = pool_as_convolution(graph)
    assert [n.op_type for n in ir.nodes(made)] == ["Conv"]
    assert list(ir.outputs(made)) == ["y"]
    np.testing.assert_allclose(run(made), run(graph), rtol=1e-5, atol=1e-6)
    assert ir.fingerprint(pool_as_convolution(made)) == ir.fingerprint(made)
    assert [n.op_type for n in ir.nodes(graph)] == ["AveragePool"]  # untouched


@pytest.mark.parametrize(
    "given",
    [
        {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)},  # windows at the edge count fewer elements
        {"kernel_shape": (2, 2), "strides": (2, 2), "ceil_mode": 1},
        {"kernel_shape": (3, 3), "auto_pad": "SAME_UPPER"},
    ],
)
def test_a_pool_of_windows_of_several_sizes_stays(given):
    made = pool_as_convolution(pooled(**given))
    assert [n.op_type for n in ir.nodes(made)] == ["AveragePool"]
