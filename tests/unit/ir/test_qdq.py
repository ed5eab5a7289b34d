"""Plan <-> QDQ: what is written is what ONNX Runtime computes, and what is read back is what was
written."""

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelmill import ir
from modelmill.executor import Module
from modelmill.ir import Plan, Point
from modelmill.numerics import QuantSpec, choose_encoding

ACTIVATION = QuantSpec(8, signed=False, symmetric=False)


@pytest.fixture
def graph(tmp_path):
    """x - Conv - Relu - (Slice - Pad) and itself - Add - y."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(4, 4, 3, 3)).astype(np.float32),
        "b": rng.normal(size=4).astype(np.float32),
        "starts": np.array([0], np.int64),
        "ends": np.array([100], np.int64),
        "axes": np.array([2], np.int64),
        "steps": np.array([2], np.int64),
        "pads": np.array([0, 0, 0, 0, 0, 0, 3, 0], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Slice", ["r", "starts", "ends", "axes", "steps"], ["s"], "slice"),
        helper.make_node("Pad", ["s", "pads"], ["p"], "pad"),
        helper.make_node("Add", ["r", "p"], ["y"], "add"),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 6, 6])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
            [numpy_helper.from_array(a, n) for n, a in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "m.onnx")
    return ir.load(tmp_path / "m.onnx")


def weight_plan(graph):
    w = ir.constants(graph)["w"]
    high = np.abs(w).max(axis=(1, 2, 3))
    return {Point("w"): choose_encoding(QuantSpec(7, axis=0), -high, high)}


def full_plan(graph):
    same = choose_encoding(ACTIVATION, 0.0, 9.0)
    x = choose_encoding(ACTIVATION, -4.0, 5.0)
    plan = Plan(
        weight_plan(graph)
        | {Point("x"): x, Point("r"): same, Point("s"): same, Point("p"): same}
        | {Point("y"): choose_encoding(ACTIVATION, 0.0, 17.0)}
    )
    w = plan[Point("w")]
    bias = QuantSpec(32, axis=0)
    numbers = type(w)(bias, x.scale * w.scale, np.zeros(4, np.int32))
    return plan.replace({Point("b"): numbers})


def run(graph, feeds, optimised=False):
    options = ort.SessionOptions()
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_bytes(graph), options, ["CPUExecutionProvider"])
    return session.run(None, feeds)


@pytest.mark.parametrize("on_codes", [(), ("Slice", "Pad")])
def test_round_trip_gives_the_plan_back(graph, on_codes):
    plan = full_plan(graph)
    written = ir.to_qdq(graph, plan, on_codes)
    onnx.checker.check_model(onnx.load_from_string(ir.to_bytes(written)), full_check=True)
    _, read = ir.from_qdq(written)
    assert dict(read) == dict(plan)


@pytest.mark.parametrize("on_codes", [(), ("Slice", "Pad")])
def test_round_trip_gives_the_same_computation(graph, on_codes):
    x = np.random.default_rng(1).normal(size=(1, 4, 6, 6)).astype(np.float32)
    written = ir.to_qdq(graph, full_plan(graph), on_codes)
    again = ir.to_qdq(*ir.from_qdq(written), on_codes)
    for a, b in zip(run(written, {"x": x}), run(again, {"x": x}), strict=True):
        np.testing.assert_array_equal(a, b)


def test_movement_on_codes_changes_no_number(graph):
    x = np.random.default_rng(1).normal(size=(1, 4, 6, 6)).astype(np.float32)
    apart = ir.to_qdq(graph, full_plan(graph))
    on_codes = ir.to_qdq(graph, full_plan(graph), ("Slice", "Pad"))
    np.testing.assert_array_equal(run(apart, {"x": x})[0], run(on_codes, {"x": x})[0])
    assert [n.op_type for n in ir.nodes(on_codes)].count("QuantizeLinear") == 3
    assert [n.op_type for n in ir.nodes(apart)].count("QuantizeLinear") == 5


def test_a_value_that_only_movement_reads_keeps_its_point(graph):
    same = choose_encoding(ACTIVATION, 0.0, 9.0)
    cut = ir.clone(graph)
    ir.nodes(cut)[-1].replace_input_with(0, ir.value(cut, "p"))  # y = p + p: only Slice reads r
    plan = Plan({Point(name): same for name in "rsp"})
    written = ir.to_qdq(cut, plan, ("Slice", "Pad"))
    assert dict(ir.from_qdq(written)[1]) == dict(plan)
    assert list(ir.code_values(written)) == ["r", "s", "p"]


def test_a_point_of_one_node_leaves_the_others_float(graph):
    plan = Plan({Point("r", "add", 0): choose_encoding(ACTIVATION, 0.0, 9.0)})
    written = ir.to_qdq(graph, plan)
    by_name = {n.name: n for n in ir.nodes(written)}
    assert by_name["slice"].inputs[0].name == "r"
    assert by_name["add"].inputs[0].producer().op_type == "DequantizeLinear"
    assert dict(ir.from_qdq(written)[1]) == dict(plan)


def test_a_shielded_layer_stays_float_on_the_engine(graph):
    """ONNX Runtime would give this convolution int8 weights per tensor; shielded, it must not."""
    x = np.random.default_rng(1).normal(size=(1, 4, 6, 6)).astype(np.float32)
    plan = full_plan(graph).without({Point("w"), Point("b")})
    plain, shielded = ir.to_qdq(graph, plan), ir.to_qdq(graph, plan, (), ("Conv",))
    exact = run(plain, {"x": x})[0]
    assert not np.array_equal(run(plain, {"x": x}, optimised=True)[0], exact)
    np.testing.assert_array_equal(run(shielded, {"x": x}, optimised=True)[0], exact)
    assert dict(ir.from_qdq(shielded)[1]) == dict(plan)


def test_the_float_graph_is_untouched(graph):
    before = ir.to_bytes(graph)
    ir.to_qdq(graph, full_plan(graph), ("Slice", "Pad"))
    assert ir.to_bytes(graph) == before


def test_unknown_value_and_missing_numbers_are_named(graph):
    with pytest.raises(ValueError, match="'nowhere'"):
        ir.to_qdq(graph, Plan({Point("nowhere"): choose_encoding(ACTIVATION, 0.0, 1.0)}))
    with pytest.raises(ValueError, match=r"no encoding yet.*first is x"):
        ir.to_qdq(graph, Plan({Point("x"): ACTIVATION}))
    with pytest.raises(ValueError, match="cannot be written as QDQ"):
        ir.to_qdq(graph, Plan({Point("x"): choose_encoding(QuantSpec(4, False, False), 0.0, 1.0)}))


@pytest.mark.parametrize(
    "spec", [QuantSpec(16, False, False), QuantSpec(8, power_of_two=True)], ids=str
)
def test_formats_of_chips_come_back(graph, spec):
    """16-bit codes need opset 21, which the graph is lifted to; ONNX Runtime runs the result."""
    ends = {"x": 2.0, "r": 3.0, "y": 5.0}
    plan = Plan({Point(name): choose_encoding(spec, -end, end) for name, end in ends.items()})
    artifact = ir.to_qdq(graph, plan)
    assert ir.opset(artifact) == max(ir.opset(graph), 21 if spec.bits == 16 else 0)
    _, read = ir.from_qdq(artifact)
    assert dict(read) == dict(plan)
    session = ort.InferenceSession(ir.to_bytes(artifact), providers=["CPUExecutionProvider"])
    shape = [d if isinstance(d, int) else 1 for d in session.get_inputs()[0].shape]
    (y,) = session.run(None, {"x": np.ones(shape, np.float32)})
    encoding = plan[Point("y")]
    np.testing.assert_array_equal(encoding.fake(y), y)


def test_logarithms_are_no_qdq(graph):
    log = QuantSpec(8, signed=False, symmetric=True, logarithmic=True)
    with pytest.raises(ValueError, match="logarithmic codes cannot be written as QDQ"):
        ir.to_qdq(graph, Plan({Point("x"): choose_encoding(log, -1.0, 1.0)}))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("signed", [True, False])
def test_narrow_weights_are_packed(graph, bits, signed):
    """Two codes to a byte in the file, the same numbers and the same plan as unpacked; ONNX Runtime
    runs both to the same bits, on integers."""
    x = np.random.default_rng(1).normal(size=(1, 4, 6, 6)).astype(np.float32)
    whole = full_plan(graph)
    spec = QuantSpec(bits, signed, symmetric=signed, axis=0)
    w = ir.constants(graph)["w"]
    low, high = (f(w.reshape(len(w), -1), axis=1) for f in (np.min, np.max))
    narrow = choose_encoding(spec, low, high)
    b = whole[Point("b")]
    scales = whole[Point("x")].scale * narrow.scale
    plan = whole.replace({Point("w"): narrow, Point("b"): type(b)(b.spec, scales, b.zero_point)})
    plain, packed = ir.to_qdq(graph, plan), ir.to_qdq(graph, plan, packed=True)
    onnx.checker.check_model(onnx.load_from_string(ir.to_bytes(packed)), full_check=True)
    assert dict(ir.from_qdq(packed)[1]) == dict(plan) and ir.opset(packed) >= 21
    held = ir.constants(packed)["w_packed"]
    assert held.dtype.name == ("int4" if signed else "uint4") and "w_packed" not in ir.values(plain)
    assert ir.value(packed, "w_packed").const_value.nbytes == w.size // 2
    for optimised in (False, True):
        a, b = (run(made, {"x": x}, optimised)[0] for made in (plain, packed))
        np.testing.assert_array_equal(a, b)
    simulated = Module(packed)({"x": x})["y"].numpy()
    np.testing.assert_array_equal(simulated, Module(plain)({"x": x})["y"].numpy())


def test_eight_bits_are_never_packed(graph):
    plan = full_plan(graph)
    assert ir.to_bytes(ir.to_qdq(graph, plan, packed=True)) == ir.to_bytes(ir.to_qdq(graph, plan))


def test_a_four_bit_file_of_others(graph_from_text):
    """INT4 codes without a Cast, as ONNX allows them: their element type tells the bits."""
    w = np.array([[-8, 7], [1, -2]], np.int8).astype(onnx_ir.DataType.INT4.numpy())
    text = "r = DequantizeLinear<axis=1>(w, s)  y = MatMul(x, r)"
    graph = graph_from_text(
        f"g (float[N,2] x) => (float[N,2] y) {{ {text} }}", opset=21,
        w=w, s=np.array([0.5, 0.25], np.float32),
    )  # fmt: skip
    made, plan = ir.from_qdq(graph)
    (encoding,) = plan.values()
    assert encoding.spec == QuantSpec(4, axis=1)
    (held,) = ir.constants(made).values()
    np.testing.assert_array_equal(held, [[-4, 1.75], [0.5, -0.5]])
