"""Files for the tool chains of chips: each is read back, as the tool's documentation says, and
gives the numbers of the plan."""

import json
import math
import struct
from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from modelmill import ir, plugins, targets
from modelmill.export.stpu import exponent
from modelmill.ir import Plan, Point
from modelmill.line.quantize import prepare_graph
from modelmill.numerics import QuantSpec, choose_encoding
from modelmill.quant.calibrate import Calibrate

NET = """g (float[N,4,8,8] x) => (float[N,3] y) {
    c = Conv<pads=[1,1,1,1]>(x, w, b)  r = Relu(c)
    d = Conv<group=8, pads=[1,1,1,1]>(r, k, e)  s = Add(d, r)
    t = Concat<axis=1>(s, r)
    u = Resize<mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric">
        (t, , scales)
    p = GlobalAveragePool(u)  f = Flatten(p)  y = Gemm<transB=1>(f, v, a)
}"""
SHAPES = {"w": (8, 4, 3, 3), "b": (8,), "k": (8, 1, 3, 3), "e": (8,), "v": (3, 16), "a": (3,)}

LOADED = [plugins.load("modelmill.targets", name) for name in plugins.names("modelmill.targets")]
RANGES = (
    *("aimet", "atlas", "gfpq", "imx", "magicmind", "ppl_cuda", "ppl_dsp", "rknn", "stpu"),
    *("tengine", "tensorrt_cache", "ti", "vitis"),
)


@pytest.fixture(scope="module")
def graph(graph_from_text):
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype("f") for name, shape in SHAPES.items()}
    scales = np.array([1, 1, 2, 2], "f")
    return prepare_graph(graph_from_text(NET, 17, **arrays, scales=scales))


@pytest.fixture(scope="module")
def written(graph):
    """target, format -> (plan with numbers, the files)."""

    @cache
    def plan_of(name):
        target = targets.load_target(name)
        precision = target.schemes[0].precision
        planned = targets.plan(graph, target, precision, "x86_64", frozenset())
        rng = np.random.default_rng(1)
        batches = [{"x": rng.normal(size=(4, 4, 8, 8)).astype("f")}]
        return Calibrate("minmax")(graph, planned.plan, batches)[1]

    def make(name, form):
        plan = plan_of(name)
        return plan.encodings(), plugins.load("modelmill.export", form)(graph, plan)

    return make


def test_every_format_is_taken_by_a_target():
    formats = set(plugins.names("modelmill.export"))
    assert set(RANGES) <= {form for target in LOADED for form in target.export} <= formats


@pytest.mark.parametrize("form", RANGES)
def test_a_float_model_lies_beside_a_file_of_ranges(written, graph, form):
    name = next(target.name for target in LOADED if form in target.export)
    _, files = written(name, form)
    assert files[".float.onnx"] == ir.to_bytes(graph) and len(files) > 1
    onnx.checker.check_model(onnx.load_from_string(files[".float.onnx"]))


def test_qdq(written, graph):
    plan, files = written("tensorrt", "qdq")
    _, read = ir.from_qdq(ir.from_bytes(files[".qdq.onnx"]))
    assert dict(read) == plan
    for node in onnx.load_from_string(files[".qdq.onnx"]).graph.node:
        if node.op_type == "DequantizeLinear":  # TensorRT takes symmetric codes only
            assert "zero_point" in node.input[2]
    session = ort.InferenceSession(files[".qdq.onnx"], providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.zeros((1, 4, 8, 8), "f")})[0].shape == (1, 3)


def test_the_calibration_cache_of_tensorrt(written):
    plan, files = written("tensorrt", "tensorrt_cache")
    head, *lines = files[".calib.cache"].decode().splitlines()
    assert head.startswith("TRT-") and head.endswith("-EntropyCalibration2")
    read = {n: struct.unpack("!f", bytes.fromhex(h))[0] for n, h in (s.split(": ") for s in lines)}
    want = {p.value: float(e.scale) for p, e in plan.items() if p.value not in SHAPES}
    assert read == want
    ranges = dict(s.split(": ") for s in files[".ranges.txt"].decode().splitlines())
    assert {n: float(r) / 127 for n, r in ranges.items()} == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("precision", ["w8a8", "w8a16"])
def test_encodings_in_the_schema_of_aimet(graph, precision):
    target = targets.load_target("qnn")
    planned = targets.plan(graph, target, precision, "x86_64", frozenset())
    batches = [{"x": np.random.default_rng(1).normal(size=(4, 4, 8, 8)).astype("f")}]
    _, plan = Calibrate("minmax")(graph, planned.plan, batches)
    content = json.loads(plugins.load("modelmill.export", "aimet")(graph, plan)[".encodings.json"])
    assert set(content) == {"version", "activation_encodings", "param_encodings"}
    assert content["version"] == "0.5.0"
    assert set(content["param_encodings"]) == {"w", "k", "v"}
    assert {"x", "r", "y"} <= set(content["activation_encodings"])
    for name, entries in {**content["activation_encodings"], **content["param_encodings"]}.items():
        (entry,) = entries
        assert set(entry) == {
            "dtype", "bitwidth", "is_symmetric", "min", "max", "offset", "scale",
        }  # fmt: skip
        encoding = plan[Point(name)]
        assert entry["dtype"] == "int" and entry["is_symmetric"] == "False"
        assert entry["bitwidth"] == encoding.spec.bits and isinstance(entry["offset"], int)
        steps = 2 ** entry["bitwidth"] - 1
        assert entry["offset"] * entry["scale"] == pytest.approx(entry["min"], abs=1e-6)
        assert (entry["offset"] + steps) * entry["scale"] == pytest.approx(entry["max"], abs=1e-5)
        q = np.arange(0, steps + 1, 17).astype(encoding.spec.storage)
        real = (q.astype(np.int64) + entry["offset"]) * np.float32(entry["scale"])
        np.testing.assert_allclose(encoding.dequantize(q), real, rtol=1e-6)


def test_aimet_has_one_encoding_for_each_channel(graph):
    spec = QuantSpec(8, axis=0, narrow=True)
    w = ir.constants(graph)["w"]
    plan = Plan({Point("w"): choose_encoding(spec, w.min((1, 2, 3)), w.max((1, 2, 3)))})
    content = json.loads(plugins.load("modelmill.export", "aimet")(graph, plan)[".encodings.json"])
    entries = content["param_encodings"]["w"]
    assert [e["scale"] for e in entries] == plan[Point("w")].scale.astype("d").tolist()
    assert {e["offset"] for e in entries} == {-127} and len(entries) == 8


def test_atlas(written):
    plan, files = written("ascend", "atlas")
    content = json.loads(files[".atlas.json"])
    assert set(content) == {"x", "r", "f"}  # what quantized layers read
    for name, entry in content.items():
        assert -128 <= entry["offset"] <= 127
        encoding = plan[Point(name)]
        assert (entry["scale"], entry["offset"]) == (encoding.scale, encoding.zero_point)


def test_magicmind(written):
    plan, files = written("cambricon", "magicmind")
    content = json.loads(files[".magicmind.json"])["blob_range"]
    assert set(content) == {"x", "r", "f"}
    for name, entry in content.items():
        assert choose_encoding(plan[Point(name)].spec, entry["min"], entry["max"]).scale == (
            pytest.approx(plan[Point(name)].scale, rel=1e-6)
        )


def test_rknn(written, graph):
    plan, files = written("rockchip", "rknn")
    by_node = json.loads(files[".rv1126.json"])["quantize_parameters"]
    by_tensor = json.loads(files[".rk3568.json"])["quantize_parameters"]
    conv = next(n for n in ir.nodes(graph) if n.op_type == "Conv")
    relu = plan[Point("r")]
    assert by_node[f"@{conv.name}:out0"]["scale"] == [float(relu.scale)]  # merged ReLU
    assert (
        by_tensor["c"]
        == by_tensor["r"]
        == {
            "max": [float(relu.high)],
            "min": [float(relu.low)],
        }
    )
    bias = by_node[f"@{conv.name}:bias"]
    assert bias["qtype"] == "i32" and bias["scale"] == [float(plan[Point("b")].scale)]
    weight = by_node[f"@{conv.name}:weight"]
    assert weight["zero_point"] == [int(plan[Point("w")].zero_point)] and weight["qtype"] == "u8"
    assert by_tensor[f"{conv.name}_b"]["max"] == [float(np.abs(ir.constants(graph)["b"]).max())]
    assert by_tensor["t"] == by_tensor["s"] == by_tensor["r"]  # one encoding around a Concat


def test_imx(written):
    plan, files = written("nxp_imx", "imx")
    content = json.loads(files[".imx.json"])["blob_range"]
    assert isinstance(content["x"], float) and len(content["w"]) == 8
    for name, scale in content.items():
        np.testing.assert_array_equal(scale, plan[Point(name)].scale)
        assert (np.log2(scale) % 1 == 0).all()


def test_ti(written):
    plan, files = written("ti", "ti")
    content = json.loads(files[".ti.json"])["blob_range"]
    lines = [line.split(" ") for line in files[".ti.txt"].decode().splitlines()]
    assert {n: [float(low), float(high)] for n, low, high in lines} == content
    for name, (low, high) in content.items():
        assert choose_encoding(plan[Point(name)].spec, low, high) == plan[Point(name)]


def test_stpu(written, graph):
    plan, files = written("stpu", "stpu")
    content = json.loads(files[".stpu.json"])
    first, second = (n for n in ir.nodes(graph) if n.op_type == "Conv")
    gemm = next(n for n in ir.nodes(graph) if n.op_type == "Gemm")
    for entry in content.values():
        assert "alpha" in entry or entry["min"] == -entry["max"]
    assert content["c"]["max"] == content["r"]["max"] == float(plan[Point("r")].high)
    alpha = content[f"{first.name}_bias"]["alpha"]
    assert alpha == float(plan[Point("b")].scale)
    for node, products, out in ((first, 36, "c"), (second, 9, "d"), (gemm, 16, "y")):
        x = content[node.inputs[0].name]["max"]
        reach = math.sqrt(products) * x * content[f"{node.name}_weights"]["max"]
        field = struct.unpack("!I", struct.pack("!f", max(reach, content[out]["max"])))[0] >> 23
        assert content[out]["emin"] == field - 10
    assert "emin" in content["u"] and "emin" not in content["s"]


@pytest.mark.parametrize("v", [1.0, 0.5, 3.7, 1e30, 1e-30, 1e-45, 2.0**127])
def test_exponent_is_the_field_of_a_float(v):
    field = struct.unpack("!I", struct.pack("!f", v))[0] >> 23
    assert exponent(v) == max(field, 1) and exponent(0.0) == 0


def test_vitis(written):
    plan, files = written("vitis_dpu", "vitis")
    content = json.loads(files[".vitis.json"])["vitis"]
    assert {"x", "w", "b", "r"} <= set(content)
    for name, entry in content.items():
        assert entry["scale"] == float(plan[Point(name)].scale)
        assert math.log2(entry["scale"]) % 1 == 0


def test_gfpq(written, graph):
    plan, files = written("nnie", "gfpq")
    content = json.loads(files[".gfpq.json"])["nnie"]["gfpq_param_dict"]
    by_op = {n.name: n for n in ir.nodes(graph)}
    ops = [by_op[name].op_type for name in content]
    assert ops == ["Conv", "Add", "Concat", "Resize", "Gemm"]  # no group, no Flatten, no average
    for clips in content.values():
        for clip in clips:  # in the mapper's table
            assert 16 * math.log2(clip) == pytest.approx(round(16 * math.log2(clip)), abs=1e-5)
    conv = next(name for name in content if by_op[name].op_type == "Conv")
    assert content[conv] == [float(plan[Point("x")].high)]


def test_tengine(written):
    plan, files = written("tengine", "tengine")
    lines = [line.split(" ") for line in files[".scale"].decode().splitlines()]
    read = {name: (np.float32(scale), int(z)) for name, scale, z in lines}
    assert read["c"] == read["r"]  # merged ReLU
    for name, (scale, zero_point) in read.items():
        encoding = plan[Point("r" if name == "c" else name)]
        assert (scale, zero_point) == (encoding.scale, encoding.zero_point)


def test_ppl_cuda(written):
    plan, files = written("ppl_cuda", "ppl_cuda")
    content = json.loads(files[".ppl.json"])
    for name, entry in content["quant_info"].items():
        encoding = plan[Point(name)]
        np.testing.assert_array_equal(np.float32(entry["scale"]), encoding.scale)
        np.testing.assert_array_equal(entry["zero_point"], encoding.zero_point)
        assert (entry["q_min"], entry["q_max"], entry["bit_width"]) == (0, 255, 8)
    info = content["quant_info"]
    assert (
        len(info["w"]["scale"]) == 8 and info["w"]["per_channel"] and not info["x"]["per_channel"]
    )
    assert info["u"]["hash"] == info["t"]["hash"] != info["x"]["hash"]  # Resize moves codes
    assert all(entry == {"data_type": "INT8"} for entry in content["op_info"].values())


def test_ppl_dsp(written):
    plan, files = written("ppl_w8a16", "ppl_dsp")
    content = json.loads(files[".ppl.json"])["ppl"]
    assert content["x"]["bit"] == 16 and content["w"]["bit"] == 8
    for name, entry in content.items():
        encoding = plan[Point(name)]
        assert (entry["step"], entry["zero_point"]) == (encoding.scale, encoding.zero_point)
        assert entry["min"] == float(encoding.low) and entry["type"] == "biased"


def test_a_reader_with_an_encoding_of_its_own_is_an_error(graph):
    conv = next(n for n in ir.nodes(graph) if n.op_type == "Conv")
    spec = QuantSpec(8)
    plan = Plan({
        Point("x"): choose_encoding(spec, -1, 1),
        Point("x", conv.name, 0): choose_encoding(spec, -2, 2),
    })  # fmt: skip
    with pytest.raises(ValueError, match="knows one for each tensor"):
        plugins.load("modelmill.export", "ti")(graph, plan)
