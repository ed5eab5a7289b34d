"""The arithmetic of targets/iree: not one code differs from what the compiled module computes."""

import importlib.util

import numpy as np
import pytest
from onnx import helper
from small_graphs import whole

from modelmill import ir
from modelmill.executor.integer import IntegerModule
from modelmill.export import integer_onnx, linalg
from modelmill.ir import Plan, Point
from modelmill.numerics import Encoding, QuantSpec
from modelmill.targets import load_target

S8 = QuantSpec(8, signed=True, symmetric=False)
PER_CHANNEL = QuantSpec(8, signed=True, symmetric=True, axis=0)
BIAS = QuantSpec(32, signed=True, symmetric=True, axis=0)


def network():
    """Every kind of step: padded and depthwise convolutions, LeakyReLU, an addition, a pool."""
    random = np.random.default_rng(0)
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], "c1", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["c1"], ["r1"], "r1"),
        node("Conv", ["r1", "w2", "b2"], ["c2"], "c2", pads=[1, 1, 1, 1], group=16),
        node("LeakyRelu", ["c2"], ["l2"], "l2", alpha=0.1),
        node("Add", ["r1", "l2"], ["a"], "a"),
        node("Relu", ["a"], ["ra"], "ra"),
        node("AveragePool", ["ra"], ["p"], "p", kernel_shape=[4, 4], strides=[4, 4]),
        node("Flatten", ["p"], ["f"], "f"),
        node("Gemm", ["f", "w3", "b3"], ["y"], "g", transB=1),
    ]
    shapes = {"w1": (16, 3, 3, 3), "w2": (16, 1, 3, 3), "w3": (10, 64)}
    arrays = {n: random.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    arrays |= {
        b: random.normal(size=len(arrays[w])).astype(np.float32) * 5
        for b, w in (("b1", "w1"), ("b2", "w2"), ("b3", "w3"))
    }
    return whole(nodes, [1, 3, 16, 16], {"y": [1, 10]}, arrays, opset=17), arrays


def encodings(arrays):
    """Scales that keep all codes busy, odd zero points, and biases in steps of s_x s_w."""
    scale = {"x": 1 / 31, "r1": 1 / 7, "l2": 0.173, "ra": 0.211, "p": 0.0931, "f": 0.0931}
    zero = {"x": -3, "r1": -128, "l2": -91, "ra": -128, "p": -128, "f": -128}
    found = {Point(n): Encoding(S8, np.float32(scale[n]), np.int32(zero[n])) for n in scale}
    for w, b, x in (("w1", "b1", "x"), ("w2", "b2", "r1"), ("w3", "b3", "f")):
        largest = np.abs(arrays[w]).reshape(len(arrays[w]), -1).max(1)
        steps = (largest / 127).astype(np.float32)
        found[Point(w)] = Encoding(PER_CHANNEL, steps, np.zeros(len(steps), np.int32))
        found[Point(b)] = Encoding(
            BIAS, steps * np.float32(scale[x]), np.zeros(len(steps), np.int32)
        )
    return Plan(found)


def test_every_code_is_the_simulations(tmp_path):
    if any(importlib.util.find_spec(n) is None for n in ("iree", "onnx")):
        pytest.skip('IREE is not installed: pip install "iree-base-compiler[onnx]" and -runtime')
    from modelmill.runtimes import SessionOptions
    from modelmill.runtimes.iree import PLUGIN

    graph, arrays = network()
    plan = encodings(arrays)
    artifact = ir.to_qdq(graph, plan)
    holders = ir.code_values(artifact)
    source, out = tmp_path / "q.onnx", tmp_path / "q.vmfb"
    ir.save(ir.expose(artifact, holders.values()), source)
    PLUGIN.convert(str(source), str(out), SessionOptions())
    session = PLUGIN.open(str(out), SessionOptions())
    simulated = IntegerModule(*ir.from_qdq(artifact), load_target("iree").arithmetic)
    x = np.random.default_rng(1).normal(size=(20, 3, 16, 16)).astype(np.float32) * 2
    deployed = session.run({"x": x})
    seen = {}
    y = simulated({"x": x}, lambda name, codes: seen.update({name: codes.numpy()}))["y"]
    assert {"x", "r1", "l2", "ra", "p"} <= set(seen)
    for name, codes in seen.items():
        found = deployed[holders[name]]
        assert found.dtype == np.int8
        assert len(np.unique(found)) > 50, f"{name} says little"
        np.testing.assert_array_equal(found, codes, err_msg=name)
    np.testing.assert_allclose(deployed["y"], y.numpy(), rtol=1e-6, atol=1e-6)
    sums = [op for op in session.executed() if "conv" in op.op or "mmt4d" in op.op]
    assert sums and all(op.integer for op in sums)


def test_unsigned_codes_come_back_unsigned():
    graph, arrays = network()
    plan = encodings(arrays)
    unsigned = {
        p: Encoding(QuantSpec(8, signed=False, symmetric=False), e.scale, e.zero_point + 128)
        for p, e in plan.encodings().items()
        if e.spec == S8
    }
    made = integer_onnx.write(graph, plan.replace(unsigned), {"codes": "r1"})
    assert ir.outputs(made)["codes"].dtype == np.uint8
    assert "QuantizeLinear" not in {n.op_type for n in ir.nodes(made)}


def test_what_is_not_8_bits_per_tensor_is_refused_by_name():
    graph, arrays = network()
    plan = encodings(arrays)
    wide = Encoding(QuantSpec(16, signed=True, symmetric=True), np.float32(1e-3), np.int32(0))
    with pytest.raises(ValueError, match="r1: activations must be 8 bits per tensor"):
        integer_onnx.write(graph, plan.replace({Point("r1"): wide}), {})


def test_convolutions_are_rewritten_and_the_rest_is_kept():
    text = (
        "  %3 = linalg.conv_2d_nchw_fchw_q {strides = dense<1> : vector<2xi64>} ins(%p, %c, "
        "%c0_i32, %c0_i32_1 : tensor<1x3x34x34xi8>, tensor<16x3x3x3xi8>, i32, i32) outs(%2 : "
        "tensor<1x16x32x32xi32>) -> tensor<1x16x32x32xi32>\n"
        "  %5 = linalg.depthwise_conv_2d_nchw_chw {strides = dense<1> : vector<2xi64>} ins(%3, %4 "
        ": tensor<1x8x6x5xf32>, tensor<8x3x3xf32>) outs(%2 : tensor<1x8x4x3xf32>) -> "
        "tensor<1x8x4x3xf32>\n  return %5\n"
    )
    made = linalg.channels_last(text)
    assert "linalg.conv_2d_nchw_fchw {strides = dense<1> : vector<2xi64>} ins(%p, %c :" in made
    assert "depthwise_conv_2d_nhwc_hwc" in made and "tensor<1x6x5x8xf32>" in made
    assert "tensor<3x3x8xf32>" in made and made.endswith("\n  return %5\n")
    assert "_q " not in made and "nchw_chw" not in made
