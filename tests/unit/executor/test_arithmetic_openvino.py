"""The arithmetic of targets/openvino_cpu: not one code differs from what the plug-in computes."""

import importlib.util

import numpy as np
import pytest
from onnx import helper
from small_graphs import whole

from modelmill import ir
from modelmill.executor.integer import IntegerModule
from modelmill.ir import Plan, Point
from modelmill.numerics import Encoding, QuantSpec
from modelmill.targets import load_target

U8 = QuantSpec(8, signed=False, symmetric=False)
PER_CHANNEL = QuantSpec(8, signed=True, symmetric=True, axis=0, narrow=True)
SHAPES = {"w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (16, 16, 1, 1), "w4": (16, 1, 3, 3)}


def residual(random, relu):
    """conv - conv - add: two blocks, the second of a depthwise convolution in float."""
    node = helper.make_node
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [node("Conv", ["x", "w1", "b1"], ["c1"], "n1", **pads)]
    nodes += [node("Relu", ["c1"], ["r1"], "n2")] if relu else []
    first = "r1" if relu else "c1"
    nodes += [
        node("Conv", [first, "w2", "b2"], ["c2"], "n3", **pads),
        node("Add", ["c2", first], ["a1"], "n4"),
        node("Conv", ["a1", "w3", "b3"], ["c3"], "n5"),
        node("Relu", ["c3"], ["r3"], "n6"),
        node("Add", ["r3", "a1"], ["a2"], "n7"),
        node("Conv", ["a2", "w4", "b4"], ["y"], "n8", group=16, **pads),
    ]
    arrays = {n: random.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
    arrays |= {f"b{w[1]}": random.normal(size=16).astype(np.float32) for w in SHAPES}
    return whole(nodes, [8, 3, 12, 12], {"y": [8, 16, 12, 12]}, arrays), arrays, first


def encodings(random, arrays, first, relu):
    """Random scales; codes of both signs where no ReLU is before them."""
    spread = {"x": 0.02, first: 0.1, "a1": 0.8, "r3": 1.5, "a2": 2.0}
    found = {}
    for name, scale in spread.items():
        zero = 0 if name == "r3" or (relu and name == first) else int(random.integers(90, 160))
        step = np.float32(scale * random.uniform(0.5, 1))
        found[Point(name)] = Encoding(U8, step, np.int32(zero))
    for name in ("w1", "w2", "w3"):
        largest = np.abs(arrays[name]).reshape(16, -1).max(1)
        scale = (largest / 127).astype(np.float32)
        found[Point(name)] = Encoding(PER_CHANNEL, scale, np.zeros(16, np.int32))
    return Plan(found)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_every_code_is_the_simulations(tmp_path, seed, relu):
    if importlib.util.find_spec("openvino") is None:
        pytest.skip('OpenVINO is not installed: pip install "openvino>=2025.0,<2027"')
    from modelmill.runtimes import SessionOptions
    from modelmill.runtimes.openvino import PLUGIN

    random = np.random.default_rng(seed)
    graph, arrays, first = residual(random, relu)
    artifact = ir.to_qdq(graph, encodings(random, arrays, first, relu))
    holders = ir.code_values(artifact)
    path = tmp_path / "exposed.onnx"
    ir.save(ir.expose(artifact, holders.values()), path)
    session = PLUGIN.open(str(path), SessionOptions())
    arithmetic = load_target("openvino_cpu").arithmetic
    simulated = IntegerModule(*ir.from_qdq(artifact), arithmetic)
    x = random.normal(size=(8, 3, 12, 12)).astype(np.float32)
    deployed = session.run({"x": x})
    seen = {}
    simulated({"x": x}, lambda name, codes: seen.update({name: codes.numpy()}))
    assert {"x", first, "a1", "r3", "a2"} == set(seen)
    wrong = {n: int((deployed[holders[n]] != codes).sum()) for n, codes in seen.items()}
    assert not any(wrong.values()), wrong
