"""The LiteRT file writer against ONNX Runtime: every operator in float, and int8 files against the
integer simulation, on the interpreter itself.
"""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelmill import ir, passes
from modelmill.executor.integer import IntegerModule
from modelmill.export import litert, vela
from modelmill.ir import Plan, Point
from modelmill.numerics import Encoding, QuantSpec
from modelmill.passes.whole_average_pool import whole_average_pool
from modelmill.quant.calibrate import Calibrate
from modelmill.runtimes import SessionOptions
from modelmill.runtimes.litert import PLUGIN as LITERT
from modelmill.targets import load_target, plan

if LITERT.missing():
    pytest.skip(str(LITERT.missing()), allow_module_level=True)

DATA = Path(
    os.environ.get("MODELMILL_DATA", Path(__file__).parents[3].resolve().parent / "shared" / "data")
)
S8 = QuantSpec(8, signed=True, symmetric=False)
U8 = QuantSpec(8, signed=False, symmetric=False)
WEIGHT = QuantSpec(8, signed=True, symmetric=True, axis=0, narrow=True)
X = (1, 8, 6, 10)


def weights(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def graph(nodes, constants=None, shape=X, opset=19):
    """Nodes (op, inputs, outputs, attributes) from x to y."""
    value = helper.make_tensor_value_info
    made = helper.make_model(
        helper.make_graph(
            [helper.make_node(op, i, o, f"{op}_{n}", **a) for n, (op, i, o, a) in enumerate(nodes)],
            "g",
            [value("x", TensorProto.FLOAT, shape)],
            [value("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=9,
    )
    return onnx.shape_inference.infer_shapes(made, data_prop=True)


def one(op, constants=None, shape=X, **attributes):
    names = list(constants or {})
    return graph([(op, ["x", *names], ["y"], attributes)], constants, shape)


def conv(*shape, **attributes):
    return one("Conv", {"w": weights(*shape), "b": weights(shape[0], seed=1)}, **attributes)


def ints(*numbers):
    return np.array(numbers, np.int64)


def shuffle():
    nodes = [
        ("Conv", ["x", "v"], ["z"], {}),
        ("Reshape", ["z", "s1"], ["a"], {}),
        ("Transpose", ["a"], ["b"], {"perm": (1, 0, 2)}),
        ("Reshape", ["b", "s2"], ["c"], {}),
        ("Gather", ["c", "zero"], ["even"], {"axis": 0}),
        ("Gather", ["c", "one"], ["odd"], {"axis": 0}),
        ("Conv", ["odd", "w"], ["d"], {}),
        ("Concat", ["even", "d"], ["y"], {"axis": 1}),
    ]
    shapes = {"s1": ints(4, 2, 60), "s2": ints(2, -1, 4, 6, 10)}
    picks = {"zero": np.array(0, np.int64), "one": np.array(1, np.int64)}
    constants = {"v": weights(8, 8, 1, 1, seed=1), "w": weights(4, 4, 1, 1)}
    return graph(nodes, {**shapes, **picks, **constants})


def grouped_shuffle():
    nodes = [
        ("Reshape", ["x", "s1"], ["a"], {}),
        ("Transpose", ["a"], ["b"], {"perm": (0, 2, 1, 3, 4)}),
        ("Reshape", ["b", "s2"], ["y"], {}),
    ]
    return graph(nodes, {"s1": ints(1, 2, 4, 6, 10), "s2": ints(1, 8, 6, 10)})


def classifier():
    nodes = [
        ("Conv", ["x", "w"], ["a"], {"pads": (1, 1, 1, 1), "strides": (2, 2)}),
        ("Relu", ["a"], ["r"], {}),
        ("Flatten", ["r"], ["f"], {}),
        ("Gemm", ["f", "m", "b"], ["y"], {"transB": 1}),
    ]
    return graph(nodes, {"w": weights(4, 8, 3, 3), "m": weights(5, 60), "b": weights(5)})


def two_halves(op, axis):
    nodes = [
        ("Split", ["x", "sizes"], ["a", "b"], {"axis": axis}),
        (op, ["a", "b"], ["y"], {"axis": axis} if op == "Concat" else {}),
    ]
    half = X[axis] // 2
    return graph(nodes, {"sizes": ints(half, half)})


def resize(mode, coordinates, nearest="floor", scale=2.0):
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "nearest":
        attributes["nearest_mode"] = nearest
    scales = np.array([1, 1, scale, scale], np.float32)
    return graph([("Resize", ["x", "", "s"], ["y"], attributes)], {"s": scales})


def attention():
    nodes = [
        ("Reshape", ["x", "s"], ["a"], {}),
        ("Transpose", ["a"], ["t"], {"perm": (0, 2, 1)}),
        ("MatMul", ["t", "a"], ["m"], {}),
        ("Softmax", ["m"], ["p"], {"axis": -1}),
        ("MatMul", ["p", "w"], ["y"], {}),
    ]
    return graph(nodes, {"s": ints(1, 8, 60), "w": weights(60, 7)})


BOUNDS = {"low": np.float32(-0.4), "high": np.float32(0.9)}
FLOAT = {
    "conv": conv(6, 8, 3, 3, pads=(1, 1, 1, 1)),
    "conv-stride": conv(6, 8, 3, 3, pads=(1, 1, 1, 1), strides=(2, 2)),
    "conv-uneven-pads": conv(6, 8, 3, 3, pads=(0, 2, 1, 0)),
    "conv-lower": conv(6, 8, 3, 3, auto_pad="SAME_LOWER", strides=(2, 2)),
    "conv-upper": conv(6, 8, 3, 3, auto_pad="SAME_UPPER", strides=(2, 2)),
    "conv-dilated": conv(6, 8, 3, 3, dilations=(2, 2), pads=(2, 2, 2, 2)),
    "depthwise": conv(8, 1, 5, 5, group=8, pads=(2, 2, 2, 2)),
    "depthwise-stride": conv(8, 1, 3, 3, group=8, pads=(1, 1, 1, 1), strides=(2, 2)),
    "depthwise-twice": conv(16, 1, 3, 3, group=8),
    "grouped": conv(6, 4, 3, 3, group=2, pads=(1, 1, 1, 1)),
    "transposed": one("ConvTranspose", {"w": weights(8, 5, 2, 2)}, strides=(2, 2)),
    "transposed-cropped": one(
        "ConvTranspose", {"w": weights(8, 5, 4, 4)}, strides=(2, 2), pads=(1, 1, 1, 1)
    ),
    "max-pool": one("MaxPool", kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1)),
    "max-pool-same": one("MaxPool", kernel_shape=(3, 3), pads=(1, 1, 1, 1)),
    "average-pool": one("AveragePool", kernel_shape=(2, 2), strides=(2, 2)),
    "average-pool-counted": one(
        "AveragePool", kernel_shape=(3, 3), strides=(2, 2), pads=(1,) * 4, count_include_pad=1
    ),
    "average-pool-same": one("AveragePool", kernel_shape=(3, 3), pads=(1, 1, 1, 1)),
    "global-average": one("GlobalAveragePool"),
    "mean-of-channels": one("ReduceMean", {"axes": ints(1)}, keepdims=0),
    "mean-of-columns": one("ReduceMean", {"axes": ints(-1)}, keepdims=1),
    "classifier": classifier(),
    "attention": attention(),
    "add-channels": one("Add", {"c": weights(1, 8, 1, 1)}),
    "multiply-columns": one("Mul", {"c": weights(10)}),
    "divide": one("Div", {"c": np.float32(3)}),
    "subtract": one("Sub", {"c": weights(6, 1)}),
    "leaky": one("LeakyRelu", alpha=0.2),
    "prelu": one("PRelu", {"slope": weights(8, 1, 1)}),
    "clip": one("Clip", BOUNDS),
    "clip-6": one("Clip", {"low": np.float32(0), "high": np.float32(6)}),
    "hard-swish": one("HardSwish"),
    **{op.lower(): one(op) for op in ("Relu", "Sigmoid", "Tanh", "Exp", "Abs", "Neg")},
    **{f"softmax-{axis}": one("Softmax", axis=axis) for axis in (1, 2, -1)},
    "log-softmax": one("LogSoftmax", axis=1),
    **{f"concat-{axis}": two_halves("Concat", axis) for axis in (1, 2, 3)},
    "halves-added": two_halves("Add", 1),
    "shuffle": shuffle(),
    "grouped-shuffle": grouped_shuffle(),
    "reshape-across": one("Reshape", {"s": ints(1, 15, 4, 8)}),
    "transpose": one("Transpose", perm=(0, 3, 1, 2)),
    "slice": one("Slice", {"a": ints(1, 2), "b": ints(7, 100), "c": ints(1, 3)}),
    "slice-steps": one(
        "Slice", {"a": ints(1, 0), "b": ints(99, 99), "c": ints(2, 3), "d": ints(2, 5)}
    ),
    "slice-odd-steps": one("Slice", {"a": ints(0), "b": ints(99), "c": ints(3), "d": ints(4)}),
    "gather-many": one("Gather", {"i": ints(3, 1, -1)}, axis=1),
    "pad": one("Pad", {"p": ints(0, 1, 2, 0, 0, 0, 1, 3)}),
    "pad-value": one("Pad", {"p": ints(0, 0, 1, 1, 0, 0, 1, 1), "v": np.float32(2.5)}),
    "pad-reflect": one("Pad", {"p": ints(0, 0, 1, 1, 0, 0, 2, 2)}, mode="reflect"),
    "resize-nearest": resize("nearest", "asymmetric"),
    "resize-half-pixel": resize("nearest", "half_pixel", "round_prefer_floor"),
    "resize-linear": resize("linear", "half_pixel"),
    "resize-corners": resize("linear", "align_corners", scale=1.5),
    "two-dimensions": one("Add", {"c": weights(5)}, shape=(1, 5)),
}  # fmt: skip


def opened(tmp_path, content):
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    return LITERT.open(str(path), SessionOptions())


@pytest.mark.parametrize("name", FLOAT)
def test_a_float_operator_gives_what_onnxruntime_gives(tmp_path, name):
    model = FLOAT[name]
    content = litert.write(ir.from_bytes(model.SerializeToString()), Plan())
    shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
    x = np.random.default_rng(7).normal(size=shape).astype(np.float32)
    reference = onnxruntime.InferenceSession(model.SerializeToString())
    expected = reference.run(None, {"x": x})[0]
    found = opened(tmp_path, content).run({"x": x})["y"]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


REFUSED = {
    "over two dimensions": one("Conv", {"w": weights(2, 8, 3)}, shape=(1, 8, 9)),
    "not SAME": one("AveragePool", kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1)),
    "backwards": one("Slice", {"a": ints(-1), "b": ints(-99), "c": ints(3), "d": ints(-1)}),
    "nearest or linear": resize("cubic", "half_pixel"),
    "no operator CumSum": one("CumSum", {"a": np.array(1, np.int64)}),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_litert_cannot_run_is_refused_with_node_and_reason(why):
    model = ir.from_bytes(REFUSED[why].SerializeToString())
    with pytest.raises(ValueError, match=why) as refused:
        litert.write(model, Plan())
    assert str(ir.nodes(model)[0].name) in str(refused.value)


def planned(model, target="litert"):
    """The graph made ready for a target, and its encodings."""
    clean = passes.explicit_bias(passes.clean(ir.from_bytes(model.SerializeToString())))
    clean = whole_average_pool(clean)
    batches = [
        {"x": np.random.default_rng(seed).normal(size=X).astype(np.float32)} for seed in range(4)
    ]
    made = plan(clean, load_target(target), "w8a8", "x86_64", frozenset({"avx512_vnni"}))
    return Calibrate("minmax")(clean, made.plan, batches)


COUNTED = {"kernel_shape": (3, 3), "pads": (1,) * 4, "count_include_pad": 1}
NEAREST = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
CHAIN = graph(
    [
        ("Conv", ["x", "w1", "b1"], ["a"], {"pads": (1, 1, 1, 1), "strides": (2, 2)}),
        ("Relu", ["a"], ["r"], {}),
        ("Conv", ["r", "w2", "b2"], ["d"], {"group": 8, "pads": (1, 1, 1, 1)}),
        ("LeakyRelu", ["d"], ["l"], {"alpha": 0.1}),
        ("Add", ["l", "r"], ["s"], {}),
        ("MaxPool", ["s"], ["m"], {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}),
        ("AveragePool", ["s"], ["p"], COUNTED),
        ("Concat", ["m", "p", "q"], ["c"], {"axis": 1}),
        ("Resize", ["c", "", "up"], ["u"], NEAREST),
        ("Slice", ["u", "from", "to", "axes", "steps"], ["v"], {}),
        ("Mul", ["v", "c"], ["n"], {}),
        ("GlobalAveragePool", ["n"], ["g"], {}),
        ("Flatten", ["g"], ["f"], {}),
        ("Gemm", ["f", "w3", "b3"], ["y"], {"transB": 1}),
    ],
    {
        "w1": weights(8, 8, 3, 3), "b1": weights(8, seed=1), "w2": weights(8, 1, 3, 3, seed=2),
        "q": weights(1, 2, 3, 5), "b2": weights(8, seed=3), "w3": weights(7, 18, seed=4),
        "b3": weights(7, seed=5),
        "up": np.array([1, 1, 2, 2], np.float32), "from": ints(0, 0), "to": ints(99, 99),
        "axes": ints(2, 3), "steps": ints(2, 2),
    },
)  # fmt: skip


UP = graph(
    [
        ("Conv", ["x", "w1", "b1"], ["a"], {}),
        ("ConvTranspose", ["a", "w2", "b2"], ["t"], {"strides": (2, 2)}),
        ("Relu", ["t"], ["r"], {}),
        ("ConvTranspose", ["r", "w3", "b3"], ["u"], {"strides": (2, 2), "pads": (1, 1, 1, 1)}),
        ("Sub", ["u", "k"], ["d"], {}),
        ("Clip", ["d", "low", "high"], ["e"], {}),
        ("Conv", ["e", "w4"], ["g"], {"group": 2, "strides": (3, 3), "pads": (1, 1, 1, 1)}),
        ("Flatten", ["g"], ["f"], {}),
        ("MatMul", ["f", "m"], ["y"], {}),
    ],
    {
        "w1": weights(8, 8, 1, 1), "b1": weights(8, seed=1), "w2": weights(8, 6, 2, 2, seed=2),
        "b2": weights(6, seed=3), "w3": weights(6, 4, 4, 4, seed=4), "b3": weights(4, seed=5),
        "w4": weights(4, 2, 3, 3, seed=6), "k": weights(1, 4, 1, 1), "low": np.float32(0),
        "high": np.float32(6), "m": weights(448, 3, seed=7),
    },
)  # fmt: skip


@pytest.mark.parametrize("name", ["chain", "up", "shuffle", "classifier"])
def test_an_int8_file_gives_the_codes_of_the_simulation(tmp_path, name):
    model = {"chain": CHAIN, "up": UP, "shuffle": shuffle(), "classifier": classifier()}[name]
    clean, encoded = planned(model)
    values = {p.value: f"{p.value}_codes" for p in encoded if p.value not in ir.constants(clean)}
    shown = {codes: value for value, codes in values.items() if value not in ("k", "q")}
    engine = opened(tmp_path, litert.write(clean, encoded, shown))
    module = IntegerModule(clean, encoded, load_target("litert").arithmetic)
    kinds = {op.kind for op in engine.executed()}
    assert "float" not in kinds and "integer" in kinds
    for seed in range(10, 14):
        x = np.random.default_rng(seed).normal(size=X).astype(np.float32)
        found = engine.run({"x": x})
        seen = []

        def compare(value, codes, found=found, seen=seen):
            np.testing.assert_array_equal(codes.numpy(), found[values[value]], err_msg=value)
            seen.append(value)

        y = module({"x": x}, compare)["y"].numpy()
        assert len(seen) == len(shown)
        np.testing.assert_allclose(found["y"], y, rtol=1e-6)


def test_unsigned_codes_are_the_same_computation_and_come_back_unsigned(tmp_path):
    clean, encoded = planned(conv(8, 8, 3, 3, pads=(1, 1, 1, 1)))
    signed = {p: e for p, e in encoded.encodings().items() if p.value in ("x", "y")}
    unsigned = encoded.replace(
        {p: Encoding(U8, e.scale, e.zero_point + 128) for p, e in signed.items()}
    )
    x = np.random.default_rng(0).normal(size=X).astype(np.float32)
    found = [
        opened(tmp_path, litert.write(clean, p, {"q": "y"})).run({"x": x})
        for p in (encoded, unsigned)
    ]
    assert found[1]["q"].dtype == np.uint8
    np.testing.assert_array_equal(found[0]["q"].astype(int) + 128, found[1]["q"])
    np.testing.assert_array_equal(found[0]["y"], found[1]["y"])


def test_a_node_that_cannot_be_int8_is_a_float_operator_between_conversions(tmp_path):
    model = graph([("Sigmoid", ["x"], ["y"], {})])
    clean = ir.from_bytes(model.SerializeToString())
    encoding = Encoding(S8, np.float32(0.03), np.int32(4))
    encoded = Plan({Point("x"): encoding, Point("y"): encoding})
    engine = opened(tmp_path, litert.write(clean, encoded))
    ops = {op.op.removesuffix(" (builtin)"): op.kind for op in engine.executed()}
    assert ops == {"QUANTIZE": "conversion", "DEQUANTIZE": "conversion", "LOGISTIC": "float"}


def test_a_file_is_the_same_bytes_again_and_says_what_it_holds():
    clean, encoded = planned(CHAIN)
    content = litert.write(clean, encoded)
    assert content == litert.write(clean, encoded)
    facts = litert.facts(content)
    assert [i["name"] for i in facts["inputs"]] == ["x"]
    assert [o["name"] for o in facts["outputs"]] == ["y"]


@pytest.mark.parametrize("damage", ["empty", "garbage", "cut", "other"])
def test_a_damaged_file_is_refused(damage):
    content = litert.write(*planned(classifier()))
    broken = {
        "empty": b"", "garbage": b"\x07" * 5000, "cut": content[: len(content) // 2],
        "other": b"\x00\x00\x00\x00TFL3" + b"\x00" * 40,
    }[damage]  # fmt: skip
    with pytest.raises(ValueError, match="not a LiteRT file of modelmill"):
        litert.facts(broken)


def test_formats_that_the_engine_lacks_are_refused():
    wide = Encoding(QuantSpec(16, signed=True, symmetric=True), np.float32(0.01), np.int32(0))
    clean = ir.from_bytes(conv(8, 8, 3, 3).SerializeToString())
    with pytest.raises(ValueError, match="8-bit codes"):
        litert.write(clean, Plan({Point("x"): wide}))


def test_vela_takes_the_whole_chain_on_the_npu(tmp_path):
    if vela.missing():
        pytest.skip(str(vela.missing()))
    clean, encoded = planned(classifier(), "ethos_u")
    files = vela.litert.export(clean, encoded)
    path = tmp_path / "model.tflite"
    path.write_bytes(files[".tflite"])
    report = vela.compile_with_vela(path, "ethos-u55-128", tmp_path / "compiled.tflite")
    assert report.cpu_operators == 0 and report.cpu == () and report.npu_operators >= 2
    assert report.cycles >= report.npu_cycles > 0 and report.sram_kib > 0
    assert report.macs >= 4 * 8 * 9 * 15 + 60 * 5
    assert (tmp_path / "compiled.tflite").stat().st_size > 0


def test_vela_says_what_stays_on_the_cpu_and_what_it_does_not_know(tmp_path):
    if vela.missing():
        pytest.skip(str(vela.missing()))
    path = tmp_path / "float.tflite"
    path.write_bytes(litert.write(ir.from_bytes(classifier().SerializeToString()), Plan()))
    report = vela.compile_with_vela(path)
    assert "FULLY_CONNECTED" in {o.op for o in report.cpu} and report.npu_operators == 0
    assert all("Float32" in o.reason for o in report.cpu)
    with pytest.raises(RuntimeError, match="Vela refused"):
        vela.compile_with_vela(path, "ethos-u99-1")
    path.write_bytes(b"")
    with pytest.raises(RuntimeError, match="Vela"):
        vela.compile_with_vela(path)


def test_the_export_for_ethos_u_has_integer_ends_and_a_report():
    if vela.missing():
        pytest.skip(str(vela.missing()))
    files = vela.PLUGIN(*planned(classifier(), "ethos_u"))
    assert set(files) == {".tflite", ".vela.json"}
    reports = json.loads(files[".vela.json"])["reports"]
    assert [r["accelerator"] for r in reports] == list(vela.ACCELERATORS)
    assert litert.facts(files[".tflite"])["outputs"][0]["codes"] == "int8"


@pytest.mark.parametrize("name", ["resnet20_cifar10", "fastestdet_coco"])
def test_a_real_model_in_float(tmp_path, name):
    path = DATA / "models" / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is not there; set MODELMILL_DATA to the folder of the real data")
    LITERT.convert(str(path), str(tmp_path / "m.tflite"), SessionOptions())
    engine = LITERT.open(str(tmp_path / "m.tflite"), SessionOptions())
    reference = onnxruntime.InferenceSession(str(path))
    shape = (1, *reference.get_inputs()[0].shape[1:])
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = reference.run(None, {reference.get_inputs()[0].name: x})[0]
    np.testing.assert_allclose(
        engine.run({engine.inputs[0]: x})[engine.outputs[0]], expected, rtol=1e-4, atol=1e-4
    )
