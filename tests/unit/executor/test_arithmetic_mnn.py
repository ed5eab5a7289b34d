"""The simulation of MNN's operators on codes against MNN: every code, every real number between."""

import numpy as np
import pytest
import small_graphs
from onnx import helper

from modelmill import targets
from modelmill.executor.integer import IntegerModule
from modelmill.ir import Plan, Point
from modelmill.numerics import Encoding
from modelmill.quant.calibrate import Calibrate
from modelmill.runtimes.mnn import PLUGIN

TARGET = targets.load_target("mnn")
SHAPE = (2, 3, 10, 10)
node = helper.make_node


def whole(nodes, outputs, arrays, shape=SHAPE):
    return small_graphs.whole(nodes, shape, outputs, arrays)


def conv(name, x, y, weight, arrays, **attributes):
    random = np.random.default_rng(len(arrays))
    arrays[f"{name}.w"] = random.normal(0, 0.2, weight).astype(np.float32)
    arrays[f"{name}.b"] = random.normal(0, 0.3, weight[0]).astype(np.float32)
    return node("Conv", [x, f"{name}.w", f"{name}.b"], [y], name, **attributes)


AROUND = {"pads": (1, 1, 1, 1)}


def residual():
    """Sums with and without ReLU, averages, movement, matrix products."""
    random = np.random.default_rng(3)
    arrays = {
        "starts": np.array([0, 0]), "ends": np.array([99, 99]), "axes": np.array([2, 3]),
        "steps": np.array([2, 2]), "pads": np.array([0, 4, 0, 0, 0, 4, 0, 0]),
        "shape": np.array([2, 16]),
        "g.w": random.normal(0, 0.3, (10, 16)).astype(np.float32),
        "g.b": random.normal(0, 0.3, 10).astype(np.float32),
        "h.w": random.normal(0, 0.3, (10, 4)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        conv("first", "x", "a0", (8, 3, 3, 3), arrays, **AROUND),
        node("Relu", ["a0"], ["a"], "relu"),
        conv("second", "a", "b", (8, 8, 3, 2), arrays, pads=(1, 1, 1, 0), dilations=(1, 1)),
        node("Add", ["b", "a"], ["c0"], "add"),
        node("Relu", ["c0"], ["c"], "rectified"),
        node("Sub", ["c", "b"], ["d"], "sub"),
        node("Slice", ["d", "starts", "ends", "axes", "steps"], ["e"], "slice"),
        node("Pad", ["e", "pads"], ["f"], "pad"),
        conv("strided", "c", "g", (16, 8, 3, 3), arrays, strides=(2, 2), **AROUND),
        node("Mul", ["f", "g"], ["h"], "mul"),
        node("AveragePool", ["h"], ["i"], "pool", kernel_shape=(5, 5)),
        node("Reshape", ["i", "shape"], ["j"], "flat"),
        node("Gemm", ["j", "g.w", "g.b"], ["k0"], "gemm", transB=1),
        node("Relu", ["k0"], ["k"], "last"),
        node("MatMul", ["k", "h.w"], ["y"], "product"),
    ]
    return whole(nodes, {"y": (2, 4)}, arrays)


def mobile():
    """Depthwise layers, clips, leaky and other float activations, channels shuffled and joined."""
    arrays = {
        "zero": np.float32(0), "six": np.float32(0.8), "low": np.float32(-0.3),
        "groups": np.array([2, 2, 12, 10, 10]), "joined": np.array([2, 24, 10, 10]),
    }  # fmt: skip
    nodes = [
        conv("first", "x", "a0", (24, 3, 3, 3), arrays, **AROUND),
        node("Clip", ["a0", "zero", "six"], ["a"], "clip"),
        conv("depth", "a", "b0", (24, 1, 5, 5), arrays, group=24, pads=(2, 2, 2, 2)),
        node("LeakyRelu", ["b0"], ["b"], "leaky", alpha=0.1),
        conv("point", "b", "c0", (12, 24, 1, 1), arrays),
        node("Clip", ["c0", "low", "six"], ["c"], "other"),
        conv("beside", "b", "d0", (12, 24, 1, 1), arrays),
        node("Relu", ["d0"], ["d"], "relu"),
        node("Concat", ["c", "d"], ["e"], "join", axis=1),
        node("Reshape", ["e", "groups"], ["f"], "apart"),
        node("Transpose", ["f"], ["g"], "turn", perm=(0, 2, 1, 3, 4)),
        node("Reshape", ["g", "joined"], ["h"], "together"),
        conv("again", "h", "i", (24, 1, 3, 3), arrays, group=24, strides=(2, 2), **AROUND),
        node("AveragePool", ["i"], ["j"], "pool", kernel_shape=(3, 3), strides=(2, 2), **AROUND),
        conv("last", "j", "y", (20, 24, 1, 1), arrays),
    ]
    return whole(nodes, {"y": (2, 20, 3, 3), "d": (2, 12, 10, 10)}, arrays)


def islands():
    """What MNN would run on codes by itself and the plan leaves in float, between layers."""
    arrays = {
        "scales": np.array([1, 1, 2, 2], np.float32),
        "k": np.linspace(-1, 1, 8, dtype=np.float32).reshape(1, 8, 1, 1),
    }
    counted = {"kernel_shape": (3, 3), "strides": (2, 2), "count_include_pad": 1, **AROUND}
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
    nodes = [
        conv("first", "x", "a", (8, 3, 3, 3), arrays, **AROUND),
        node("MaxPool", ["a"], ["b"], "pool", kernel_shape=(2, 2), strides=(2, 2)),
        conv("second", "b", "c", (8, 8, 3, 3), arrays, **AROUND),
        node("Resize", ["c", "", "scales"], ["d"], "resize", nearest_mode="floor", **nearest),
        conv("third", "d", "e", (8, 8, 3, 3), arrays, **AROUND),
        node("Softmax", ["e"], ["f"], "softmax", axis=1),
        conv("fourth", "f", "g", (8, 8, 1, 1), arrays),
        node("Add", ["g", "k"], ["h"], "constant"),
        conv("fifth", "h", "i", (8, 8, 1, 1), arrays),
        node("AveragePool", ["i"], ["j"], "counted", **counted),
        node("Concat", ["b", "j"], ["l"], "join", axis=1),
        conv("grouped", "l", "m", (8, 8, 1, 1), arrays, group=2),
        node("Abs", ["m"], ["n"], "abs"),
        conv("last", "m", "o", (8, 8, 1, 1), arrays),
        node("Sigmoid", ["o"], ["p"], "sigmoid"),
        node("Neg", ["p"], ["q"], "neg"),
        conv("end", "p", "y", (4, 8, 1, 1), arrays),
    ]
    shape = (2, 8, 5, 5)
    return whole(nodes, {"y": (2, 4, 5, 5), "n": shape, "q": shape}, arrays)


def images(n, seed=7, shape=SHAPE):
    random = np.random.default_rng(seed)
    return [{"x": random.normal(0, 1, shape).astype(np.float32)} for _ in range(n)]


def planned(graph):
    plan = targets.plan(graph, TARGET, "w8a8", "x86_64", frozenset()).plan
    return Calibrate("minmax", weights="minmax")(graph, plan, images(4))[1]


@pytest.fixture
def converted(deployed):
    def convert(graph, plan, on_codes=TARGET.on_codes):
        return deployed(PLUGIN, graph, plan, on_codes)

    return convert


def differences(session, codes, graph, plan, batches):
    """Names of values with another code, codes compared, largest difference of float outputs."""
    module = IntegerModule(graph, plan, TARGET.arithmetic)
    wrong, compared, real = set(), 0, 0.0
    for feeds in batches:
        engine = session.run(feeds)
        seen = {}
        outputs = module(feeds, lambda name, made, seen=seen: seen.update({name: made.numpy()}))
        for name, simulated in seen.items():
            deployed = engine[codes[name]]
            assert deployed.dtype == np.int8 and deployed.shape == simulated.shape
            compared += simulated.size
            wrong |= {name} if np.any(deployed != simulated) else set()
        for name, y in outputs.items():
            real = max(real, float(np.abs(engine[name] - y.numpy()).max()))
    return wrong, compared, real


@pytest.mark.parametrize(
    ("network", "layers", "on_codes"),
    [(residual, 5, {"BinaryOp": 3, "Pooling": 1}), (mobile, 6, {"Pooling": 1}), (islands, 7, {})],
)
def test_a_network_without_one_differing_code(converted, network, layers, on_codes):
    graph = network()
    plan = planned(graph)
    session, codes = converted(graph, plan)
    wrong, compared, real = differences(session, codes, graph, plan, images(12))
    assert not wrong and compared > 20_000
    assert real < 1e-6  # of a float operator behind codes
    ops = session.executed()
    kinds = [op.op for op in ops if op.kind == "integer"]
    assert len([op for op in kinds if op.startswith(("Conv", "Fully"))]) == layers
    assert {op: kinds.count(op) for op in on_codes} == on_codes
    assert all(op.us >= 0 for op in ops)


def test_any_batch_gives_the_same_codes(converted):
    graph = islands()
    session, codes = converted(graph, planned(graph))
    feeds = images(1)[0]
    both = session.run(feeds)
    for i in range(2):
        one = session.run({"x": feeds["x"][i : i + 1]})
        for name in codes.values():
            np.testing.assert_array_equal(one[name][0], both[name][i])


@pytest.mark.parametrize("depthwise", [False, True])
def test_the_largest_sums_are_exact(converted, depthwise):
    """Pairs of products are not added in 16 bits: 255 * 127 * 2 would not fit."""
    channels = 64
    shape, w_shape = (1, channels, 6, 6), (channels, 1 if depthwise else channels, 3, 3)
    weight = np.full(w_shape, 127 / 128, np.float32)
    weight[1::2] *= -1
    attributes = {"group": channels if depthwise else 1}
    nodes = [node("Conv", ["x", "w"], ["y"], "conv", **attributes)]
    graph = whole(nodes, {"y": (1, channels, 4, 4)}, {"w": weight}, shape)
    spec, per_channel = TARGET.schemes[0].activation, TARGET.schemes[0].weight
    sums = 9 * (1 if depthwise else channels) * 255 * 127 / 128
    plan = Plan(
        {
            Point("x"): Encoding(spec, np.float32(1), np.int32(-128)),
            Point("w"): Encoding(per_channel, np.full(channels, 2.0**-7), np.zeros(channels)),
            Point("y"): Encoding(spec, np.float32(sums / 127), np.int32(0)),
        }
    )
    session, codes = converted(graph, plan)
    wrong, _, _ = differences(session, codes, graph, plan, [{"x": np.full(shape, 255, np.float32)}])
    assert not wrong
    found = session.run({"x": np.full(shape, 255, np.float32)})[codes["y"]]
    assert set(np.unique(found[:, ::2])) == {127} and set(np.unique(found[:, 1::2])) == {-127}


def test_a_mebibyte_of_weights_arrives_whole(converted):
    """From ONNX in one step the converter would write garbage for it."""
    random = np.random.default_rng(0)
    arrays = {"w": random.normal(0, 0.05, (300, 1000)).astype(np.float32)}
    nodes = [node("MatMul", ["x", "w"], ["y"], "product")]
    graph = whole(nodes, {"y": (2, 1000)}, arrays, (2, 300))
    plan = targets.plan(graph, TARGET, "w8a8", "x86_64", frozenset()).plan
    batches = images(2, shape=(2, 300))
    plan = Calibrate("minmax", weights="minmax")(graph, plan, batches)[1]
    session, codes = converted(graph, plan)
    assert not differences(session, codes, graph, plan, batches)[0]


def test_unsigned_codes_come_back_as_they_were_planned(converted):
    graph = residual()
    unsigned = targets.load_target("openvino_cpu").schemes[0].activation
    plan = planned(graph)
    moved = {
        point: Encoding(unsigned, e.scale, e.zero_point + 128)
        for point, e in plan.encodings().items()
        if not e.scale.ndim
    }
    signed, codes = converted(graph, plan)
    feeds = images(1)[0]
    before = signed.run(feeds)
    session, codes = converted(graph, plan.replace(moved))
    found = session.run(feeds)
    for name in codes.values():
        assert found[name].dtype == np.uint8
        np.testing.assert_array_equal(found[name].astype(int) - 128, before[name])


def test_what_mnn_cannot_hold_is_refused(converted):
    graph = whole([node("Sigmoid", ["x"], ["y"], "s")], {"y": SHAPE}, {})
    spec = TARGET.schemes[0].activation
    lonely = Plan({Point("y"): Encoding(spec, np.float32(0.01), np.int32(-128))})
    with pytest.raises(ValueError, match="a layer on codes"):
        converted(graph, lonely)
    arrays = {}
    graph = whole([conv("c", "x", "y", (4, 3, 1, 1), arrays)], {"y": (2, 4, 10, 10)}, arrays)
    plan = planned(graph)
    floats = plan.without({Point("y")})
    with pytest.raises(ValueError, match=r"'c'.*write codes"):
        converted(graph, floats)
