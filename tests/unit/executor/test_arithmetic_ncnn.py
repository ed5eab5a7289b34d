"""The simulation of ncnn's int8 layers against ncnn: every code, every real number between."""

from functools import partial

import numpy as np
import pytest
from onnx import helper
from small_graphs import whole

from modelmill import targets
from modelmill.executor.integer import IntegerModule
from modelmill.ir import Plan, Point
from modelmill.numerics import Encoding, choose_encoding
from modelmill.passes.own_reads import own_reads
from modelmill.quant.calibrate import Calibrate
from modelmill.runtimes.ncnn import PLUGIN
from modelmill.runtimes.protocol import SessionOptions

TARGET = targets.load_target("ncnn")
FLAGS = frozenset({"avx2", "fma"})


def convolution(name, x, y, weight, arrays, bias=True, **attributes):
    random = np.random.default_rng(len(arrays))
    arrays[f"{name}.w"] = random.normal(0, 0.2, weight).astype(np.float32)
    inputs = [x, f"{name}.w"]
    if bias:
        arrays[f"{name}.b"] = random.normal(0, 0.3, weight[0]).astype(np.float32)
        inputs.append(f"{name}.b")
    return helper.make_node("Conv", inputs, [y], name, **attributes)


def network():
    """Every way a product can stand: after each activation, before and beside float layers, with
    and without Winograd and bias, in channels that are packed by 16, 8, 4 and not at all.
    """
    node, arrays = helper.make_node, {}
    random = np.random.default_rng(99)
    arrays |= {"low": np.float32(-0.4), "high": np.float32(0.7)}
    arrays["gemm.w"] = random.normal(0, 0.3, (10, 30)).astype(np.float32)
    arrays["gemm.b"] = random.normal(0, 0.3, 10).astype(np.float32)
    around = {"pads": (1, 1, 1, 1)}
    nodes = [
        convolution("first", "x", "a0", (16, 3, 3, 3), arrays, strides=(2, 2), **around),
        node("Relu", ["a0"], ["a"], "relu"),
        convolution("winograd", "a", "b0", (32, 16, 3, 3), arrays, **around),
        node("LeakyRelu", ["b0"], ["b"], "leaky", alpha=0.1),
        convolution("point", "b", "c0", (12, 32, 1, 1), arrays),
        node("Clip", ["c0", "low", "high"], ["c"], "clip"),
        convolution("bare", "c", "d", (12, 12, 3, 3), arrays, bias=False, **around),
        node("Add", ["d", "c"], ["e"], "add"),
        convolution("depthwise", "e", "f", (12, 1, 3, 3), arrays, group=12, **around),
        convolution("odd", "e", "g", (30, 12, 5, 3), arrays, dilations=(1, 2)),
        node("MaxPool", ["g"], ["h"], "pool", kernel_shape=(2, 2), strides=(2, 2)),
        convolution("last", "h", "i", (30, 30, 1, 1), arrays),
        node("GlobalAveragePool", ["i"], ["j"], "mean"),
        node("Flatten", ["j"], ["k"], "flat"),
        node("Gemm", ["k", "gemm.w", "gemm.b"], ["y"], "gemm", transB=1),
    ]
    outputs = {"y": (1, 10), "f": (1, 12, 9, 9), "d": (1, 12, 9, 9)}
    return own_reads(whole(nodes, (1, 3, 18, 18), outputs, arrays))


def images(n, shape=(1, 3, 18, 18)):
    random = np.random.default_rng(7)
    return [{"x": random.normal(0, 1, shape).astype(np.float32)} for _ in range(n)]


@pytest.fixture
def converted(deployed):
    return partial(deployed, PLUGIN)


def planned(graph):
    plan = targets.plan(graph, TARGET, "w8a8", "x86_64", FLAGS).plan
    return Calibrate("minmax", weights="minmax")(graph, plan, images(4))[1]


def differences(session, codes, graph, plan, batches):
    """Codes that differ, codes compared, and the largest difference of the float outputs."""
    module = IntegerModule(graph, plan, TARGET.arithmetic)
    found = {"wrong": 0, "all": 0, "real": 0.0}
    for feeds in batches:
        engine = session.run(feeds)

        def compare(name, simulated, engine=engine):
            found["wrong"] += int((engine[codes[name]] != simulated.numpy()).sum())
            found["all"] += simulated.numel()

        for name, y in module(feeds, compare).items():
            found["real"] = max(found["real"], float(np.abs(engine[name] - y.numpy()).max()))
    return found


def test_a_network_without_one_differing_code(converted):
    graph = network()
    plan = planned(graph)
    session, codes = converted(graph, plan)
    found = differences(session, codes, graph, plan, images(20))
    assert found["all"] == 20 * (3 * 324 + 16 * 81 + 32 * 81 + 2 * 12 * 81 + 30 * 4 + 30)
    assert found["wrong"] == 0
    assert found["real"] < 1e-5
    kinds = [op.op for op in session.executed() if op.kind == "integer"]
    assert kinds.count("Convolution") == 6 and kinds.count("InnerProduct") == 1
    floats = [op.op for op in session.executed() if op.kind == "float"]
    assert floats.count("ConvolutionDepthWise") == 1


def product(weight, scale_x, scale_w, value, channels):
    """A 3 x 3 convolution of one image that is `value` everywhere."""
    arrays = {"w": (weight * scale_w).astype(np.float32)}
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "w"], ["y"], "conv", pads=(1, 1, 1, 1)),
    ]
    shape = (1, channels, 8, 8)
    graph = whole(nodes, shape, {"y": (1, weight.shape[0], 8, 8)}, arrays)
    spec, per_channel = TARGET.schemes[0].activation, TARGET.schemes[0].weight
    scales = np.full(weight.shape[0], scale_w, np.float32)
    plan = Plan(
        {
            Point("r"): Encoding(spec, np.float32(scale_x), np.int32(0)),
            Point("w"): Encoding(per_channel, scales, np.int32(0)),
        }
    )
    return graph, plan, {"x": np.full(shape, value, np.float32)}


@pytest.mark.parametrize(("channels", "winograd"), [(12, True), (13, False), (128, False)])
def test_the_largest_sums_are_exact(converted, channels, winograd, tmp_path):
    """Winograd is left out where its sums, 576 times the true ones, could be wrong."""
    codes = np.full((16, channels, 3, 3), 127, np.int8)
    codes[1:4] *= -1
    graph, plan, feeds = product(codes, 2.0**-6, 2.0**-7, 2.0, channels)
    session, _ = converted(graph, plan)
    found = session.run(feeds)["y"]
    taps = np.array([2, 3, 3, 3, 3, 3, 3, 2])
    sums = np.multiply.outer(taps, taps) * channels * 127.0 * 127 * 2.0**-13
    np.testing.assert_array_equal(found[0, 0], sums)
    np.testing.assert_array_equal(found[0, 1], -sums)
    assert ("31=64" not in (tmp_path / "m.param").read_text()) == winograd


def test_convolutions_that_follow_each_other_hand_codes_on(converted, tmp_path):
    arrays = {}
    nodes = [
        convolution("one", "x", "a0", (8, 3, 3, 3), arrays),
        helper.make_node("Relu", ["a0"], ["a"], "relu"),
        convolution("two", "a", "b", (8, 8, 3, 3), arrays),
        convolution("three", "a", "c", (5, 8, 1, 1), arrays),
    ]
    graph = whole(nodes, (1, 3, 18, 18), {"b": (1, 8, 14, 14), "c": (1, 5, 16, 16)}, arrays)
    plan = planned(graph)
    session, codes = converted(graph, plan)
    assert "8=101" in (tmp_path / "m.param").read_text()
    found = differences(session, codes, graph, plan, images(10))
    assert found["wrong"] == 0 and found["real"] == 0
    assert [op.op for op in session.executed()].count("Quantize") == 1


def test_what_a_plan_rounds_for_everybody_is_rounded_for_float_layers_too(converted):
    nodes = [helper.make_node("Sigmoid", ["x"], ["s"], "s"), helper.make_node("Neg", ["s"], ["y"])]
    graph = whole(nodes, (1, 3, 18, 18), {"y": (1, 3, 18, 18), "s": (1, 3, 18, 18)}, {})
    encoding = choose_encoding(TARGET.schemes[0].activation, 0.0, 1.0)
    session, _ = converted(graph, Plan({Point("s"): encoding}))
    feeds = images(1)[0]
    found = session.run(feeds)
    rounded = encoding.fake(1 / (1 + np.exp(-feeds["x"])))
    assert np.mean(found["s"] != rounded) < 1e-3  # a Sigmoid next to a tie
    np.testing.assert_array_equal(found["y"], -found["s"])


@pytest.mark.parametrize("rows", [1, 4, 7])
@pytest.mark.parametrize("outputs", [16, 10])
def test_matrix_products_round_twice(converted, rows, outputs):
    random = np.random.default_rng(rows)
    arrays = {
        "w": random.normal(0, 0.3, (33, outputs)).astype(np.float32),
        "v": random.normal(0, 0.3, (outputs, 33)).astype(np.float32),
        "b": random.normal(0, 0.3, outputs).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "matmul"),
        helper.make_node("Gemm", ["x", "v", "b"], ["g0"], "gemm", transB=1),
        helper.make_node("LeakyRelu", ["g0"], ["g"], "leaky", alpha=0.1),
    ]
    shapes = {"m": (rows, outputs), "g": (rows, outputs)}
    graph = whole(nodes, (rows, 33), shapes, arrays)
    plan = targets.plan(graph, TARGET, "w8a8", "x86_64", FLAGS).plan
    plan = Calibrate("minmax")(graph, plan, images(4, (rows, 33)))[1]
    session, codes = converted(graph, plan)
    assert sum(op.integer for op in session.executed()) == 2
    found = differences(session, codes, graph, plan, images(10, (rows, 33)))
    assert found == {"wrong": 0, "all": 10 * rows * 33, "real": 0.0}


def test_damaged_files_are_refused(converted, tmp_path):
    graph = network()
    converted(graph, planned(graph))
    for suffix in (".bin", ".param", ".json"):
        path = tmp_path / f"m{suffix}"
        content = path.read_bytes()
        for bad in (
            content[:-5],
            content[: len(content) // 2] + b"7" + content[len(content) // 2 :],
            b"",
        ):
            path.write_bytes(bad)
            with pytest.raises(ValueError, match=r"damaged|changed"):
                PLUGIN.open(str(tmp_path / "m.param"), SessionOptions())
        path.write_bytes(content)
    PLUGIN.open(str(tmp_path / "m.param"), SessionOptions()).close()


@pytest.mark.parametrize(
    ("spec", "zero", "says"),
    [
        (targets.load_target("ort_cpu").schemes[0].activation, 3, "no zero point"),
        (targets.load_target("ort_cpu").schemes[0].weight, 0, "one scale"),
    ],
)
def test_a_plan_of_another_engine_is_refused(converted, spec, zero, says):
    graph, plan, _ = product(np.ones((16, 8, 3, 3)), 0.1, 0.1, 1.0, 8)
    scale = np.full(8, 0.1, np.float32) if spec.axis is not None else np.float32(0.1)
    with pytest.raises(ValueError, match=says):
        converted(graph, plan.replace({Point("r"): Encoding(spec, scale, np.int32(zero))}))


def test_scales_within_a_group_must_be_one(converted):
    """ncnn stores one weight scale for each group."""
    arrays = {}
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        convolution("grouped", "r", "y", (6, 2, 1, 1), arrays, group=3),
    ]
    graph = whole(nodes, (1, 6, 4, 4), {"y": (1, 6, 4, 4)}, arrays)
    spec, per_channel = TARGET.schemes[0].activation, TARGET.schemes[0].weight
    scales = np.array([1, 1, 2, 2, 3, 3], np.float32) / 200
    plan = Plan(
        {
            Point("r"): Encoding(spec, np.float32(0.02), np.int32(0)),
            Point("grouped.w"): Encoding(per_channel, scales, np.int32(0)),
        }
    )
    session, codes = converted(graph, plan)
    found = differences(session, codes, graph, plan, images(3, (1, 6, 4, 4)))
    assert found["wrong"] == 0 and found["real"] < 1e-5
    other = Encoding(per_channel, scales[::-1] * np.linspace(1, 2, 6), np.int32(0))
    with pytest.raises(ValueError, match=r"cannot run Conv 'grouped'.*one weight scale"):
        converted(graph, plan.replace({Point("grouped.w"): other}))
