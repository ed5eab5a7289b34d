"""The simulation of a quantized graph against the engine that runs it: every code, element by
element.

ONNX Runtime with all its optimisations must agree without exception. OpenVINO clips and adds in
float32 in an order of its own: there a code may differ by one in rare ties behind such a layer.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from modelmill import ir, targets
from modelmill.executor.integer import IntegerModule
from modelmill.ir import Plan, Point
from modelmill.line.agreement import exposed
from modelmill.line.quantize import load_target, prepare_graph
from modelmill.numerics import Arithmetic, QuantSpec, choose_encoding
from modelmill.quant.bias_correction import BiasCorrection
from modelmill.quant.calibrate import Calibrate
from modelmill.records.machine import this_machine

ort = pytest.importorskip("onnxruntime")
SIDE = 11


def picture(text, channels=8, **weights):
    """A graph from one picture x (N, channels, SIDE, SIDE); `text` makes y of it."""
    return text, (channels, SIDE, SIDE), weights


def vector(text, size=40, **weights):
    return text, (size,), weights


def ints(*values):
    return np.array(values, np.int64)


F = np.float32
RELU6 = {"low": F(0), "high": F(6)}
CASES = {
    "conv": picture("y = Conv<pads=[1,1,1,1]>(x, w, b)", w=(16, 8, 3, 3), b=(16,)),
    "conv without bias": picture("y = Conv(x, w)", w=(5, 8, 3, 3)),
    "conv strided": picture(
        "y = Conv<strides=[2,3], pads=[0,1,2,1]>(x, w, b)", w=(7, 8, 3, 2), b=(7,)
    ),
    "conv dilated": picture(
        "y = Conv<dilations=[2,3], pads=[2,3,2,3]>(x, w, b)", w=(16, 8, 3, 3), b=(16,)
    ),
    "conv grouped": picture(
        "y = Conv<group=2, pads=[1,1,1,1]>(x, w, b)", w=(12, 4, 3, 3), b=(12,)
    ),
    "conv depthwise": picture(
        "y = Conv<group=8, pads=[1,1,1,1]>(x, w, b)", w=(8, 1, 3, 3), b=(8,)
    ),
    "conv depthwise twice as wide": picture(
        "y = Conv<group=8, pads=[2,2,2,2], strides=[2,2]>(x, w, b)", w=(16, 1, 5, 5), b=(16,)
    ),
    "conv 1x1": picture("y = Conv(x, w, b)", w=(17, 8, 1, 1), b=(17,)),
    "conv 1x1 strided": picture("y = Conv<strides=[2,2]>(x, w, b)", w=(16, 8, 1, 1), b=(16,)),
    "conv relu": picture(
        "c = Conv<pads=[1,1,1,1]>(x, w, b)  y = Relu(c)", w=(16, 8, 3, 3), b=(16,)
    ),
    "conv clip": picture(
        "c = Conv<pads=[1,1,1,1]>(x, w, b)  y = Clip(c, low, high)",
        w=(16, 8, 3, 3), b=(16,), **RELU6,
    ),
    "conv leaky": picture(
        "c = Conv(x, w, b)  y = LeakyRelu<alpha=0.1>(c)", w=(16, 8, 3, 3), b=(16,)
    ),
    "conv, conv": picture(
        "c = Conv(x, w, b)  r = Relu(c)  y = Conv(r, v, d)",
        w=(16, 8, 3, 3), b=(16,), v=(9, 16, 3, 3), d=(9,),
    ),
    "gemm float": vector("y = Gemm<transB=1>(x, w, b)", w=(10, 40), b=(10,)),
    "gemm not transposed": vector("y = Gemm(x, w, b)", w=(40, 10), b=(10,)),
    "gemm relu gemm": vector(
        "g = Gemm<transB=1>(x, w, b)  r = Relu(g)  y = Gemm<transB=1>(r, v, d)",
        w=(24, 40), b=(24,), v=(10, 24), d=(10,),
    ),
    "gemm gemm": vector(
        "g = Gemm<transB=1>(x, w, b)  y = Gemm<transB=1>(g, v, d)",
        w=(24, 40), b=(24,), v=(10, 24), d=(10,),
    ),
    "matmul": vector("y = MatMul(x, w)", w=(40, 10)),
    "matmul matmul": vector("m = MatMul(x, w)  y = MatMul(m, v)", w=(40, 24), v=(24, 10)),
    "add": picture(
        "c = Conv<pads=[1,1,1,1]>(x, w, b)  y = Add(c, x)", w=(8, 8, 3, 3), b=(8,)
    ),
    "add relu": picture(
        "c = Conv<pads=[1,1,1,1]>(x, w, b)  a = Add(x, c)  y = Relu(a)", w=(8, 8, 3, 3), b=(8,)
    ),
    "add itself": picture("c = Conv(x, w, b)  y = Add(c, c)", w=(8, 8, 3, 3), b=(8,)),
    "add a constant": picture("c = Conv(x, w, b)  y = Add(c, k)", w=(8, 8, 3, 3), b=(8,), k=(1,)),
    "add channel constants": picture(
        "c = Conv(x, w, b)  y = Add(c, k)", w=(8, 8, 3, 3), b=(8,), k=(8, 1, 1)
    ),
    "mul": picture(
        "c = Conv<pads=[1,1,1,1]>(x, w, b)  y = Mul(c, x)", w=(8, 8, 3, 3), b=(8,)
    ),
    "mul by channel": picture(
        "c = Conv(x, w, b)  p = GlobalAveragePool(c)  y = Mul(c, p)", w=(8, 8, 3, 3), b=(8,)
    ),
    "average pool": picture(
        "c = Conv(x, w, b)  y = AveragePool<kernel_shape=[3,3]>(c)", w=(8, 8, 3, 3), b=(8,)
    ),
    "average pool padded": picture(
        "c = Conv(x, w, b)  y = AveragePool<kernel_shape=[3,2], pads=[1,0,1,1], strides=[2,1]>(c)",
        w=(8, 8, 3, 3), b=(8,),
    ),
    "average pool counting pads": picture(
        "c = Conv(x, w, b)"
        "  y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(c)",
        w=(8, 8, 3, 3), b=(8,),
    ),
    "global average pool": picture(
        "c = Conv(x, w, b)  y = GlobalAveragePool(c)", w=(8, 8, 3, 3), b=(8,)
    ),
    "global average pool of a picture": picture(
        "c = Conv<pads=[1,1,1,1]>(x, w, b)  y = GlobalAveragePool(c)", w=(33, 8, 3, 3), b=(33,)
    ),
    "concat": picture(
        "c = Conv(x, w, b)  d = Conv(x, v, b)  y = Concat<axis=1>(c, d, c)",
        w=(8, 8, 3, 3), v=(8, 8, 3, 3), b=(8,),
    ),
    "max pool": picture(
        "c = Conv(x, w, b)  y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(c)",
        w=(8, 8, 3, 3), b=(8,),
    ),
    "resize": picture(
        "c = Conv(x, w, b)"
        '  y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",'
        ' nearest_mode="floor">(c, , scales)',
        w=(8, 8, 3, 3), b=(8,), scales=np.array([1, 1, 2, 2], F),
    ),
    "pad": picture(
        "c = Conv(x, w, b)  p = Pad(c, pads)  y = Conv(p, v, d)",
        w=(8, 8, 3, 3), b=(8,), v=(8, 8, 3, 3), d=(8,), pads=ints(0, 0, 1, 2, 0, 0, 2, 1),
    ),
    "slice": picture(
        "c = Conv(x, w, b)  s = Slice(c, from, to, axes)  y = Add(s, s)",
        w=(8, 8, 3, 3), b=(8,), **{"from": ints(2), "to": ints(7), "axes": ints(2)},
    ),
    "transpose": picture(
        "c = Conv(x, w, b)  t = Transpose<perm=[0,2,3,1]>(c)  y = MatMul(t, v)",
        w=(8, 8, 3, 3), b=(8,), v=(8, 5),
    ),
    "reshape": picture(
        "c = Conv(x, w, b)  f = Reshape(c, shape)  y = Gemm<transB=1>(f, v, d)",
        w=(4, 8, 3, 3), b=(4,), shape=ints(0, -1), v=(6, 324), d=(6,),
    ),
    "flatten behind a pool": picture(
        "c = Conv(x, w, b)  p = GlobalAveragePool(c)  f = Flatten(p)  y = Gemm(f, v, d)",
        w=(8, 8, 3, 3), b=(8,), v=(8, 6), d=(6,),
    ),
    "residual block": picture(
        "c = Conv<pads=[1,1,1,1]>(x, w, b)  r = Relu(c)  d = Conv<pads=[1,1,1,1]>(r, v, b)"
        "  a = Add(d, x)  s = Relu(a)  p = GlobalAveragePool(s)  f = Flatten(p)"
        "  y = Gemm<transB=1>(f, u, e)",
        w=(8, 8, 3, 3), v=(8, 8, 3, 3), b=(8,), u=(10, 8), e=(10,),
    ),
}  # fmt: skip


def array(rng, name, content):
    """Weights with channels of very different size; biases; what is given as it is."""
    if not isinstance(content, tuple):
        return content
    values = rng.normal(size=content)
    if len(content) > 1:
        values *= np.exp(rng.normal(0, 0.7, (content[0], *[1] * (len(content) - 1))))
        values /= np.sqrt(np.prod(content[1:]))
    return values.astype(np.float32)


def build(graph_from_text, case, seed=0):
    """The clean graph of a case and a function that draws batches for it."""
    text, shape, weights = case
    rng = np.random.default_rng(seed)
    arrays = {name: array(rng, name, content) for name, content in weights.items()}
    sizes = ",".join(map(str, shape))
    free = "N,A,B,C" if "AveragePool" in text or len(shape) == 3 else "N,A"
    if "Gemm" in text or len(shape) == 1:
        free = "N,A"
    if "MatMul" in text and len(shape) == 3:
        free = "N,A,B,C"
    graph = graph_from_text(f"g (float[N,{sizes}] x) => (float[{free}] y) {{ {text} }}", **arrays)

    def draw(n, reach=1.0, seed=1):
        x = np.random.default_rng(seed).normal(0.3, reach, (n, *shape))
        return {"x": x.astype(np.float32)}

    return prepare_graph(graph), draw


def quantized(graph, draw, target_name, calibrate=None, correct=False):
    """(float graph, plan) by the target's rules, on this CPU."""
    target, machine = load_target(target_name), this_machine()
    planned = targets.plan(graph, target, "w8a8", machine.arch, frozenset(machine.flags))
    batches = [draw(16)]
    graph, plan = (calibrate or Calibrate())(graph, planned.plan, batches)
    if correct:
        graph, plan = BiasCorrection()(graph, plan, batches)
    return graph, plan, target


def run_ort(graph, feeds, threads=1):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(ir.to_bytes(graph), options, ["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def run_openvino(graph, feeds):
    import openvino

    core = openvino.Core()
    model = core.read_model(ir.to_bytes(graph))
    # As the adapter does: a quantization of open shape has another kernel, which rounds once less.
    model.reshape({port: feeds[port.get_any_name()].shape for port in model.inputs})
    compiled = core.compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )
    results = compiled(feeds)
    return {name: results[output] for output in compiled.outputs for name in output.names}


def differences(graph, plan, target, feeds, run):
    """{value: |code of the engine - code of the simulation|}, and the largest of float outputs."""
    artifact = ir.to_qdq(graph, plan, target.on_codes, target.shield)
    opened, codes = exposed(artifact)
    engine = run(opened, feeds)
    found = {}

    def compare(name, simulated):
        if name in codes:
            found[name] = np.abs(engine[codes[name]].astype(int) - simulated.numpy())

    outputs = IntegerModule(*ir.from_qdq(artifact), target.arithmetic)(feeds, compare)
    assert set(found) == set(codes)
    return found, {n: np.abs(engine[n] - y.numpy()).max() for n, y in outputs.items()}


@pytest.mark.parametrize("name", CASES)
def test_every_code_of_onnx_runtime(graph_from_text, name):
    graph, draw = build(graph_from_text, CASES[name])
    graph, plan, target = quantized(graph, draw, "ort_cpu")
    feeds = draw(24, reach=1.3, seed=2)  # wider than the calibration data: codes saturate
    found, outputs = differences(graph, plan, target, feeds, run_ort)
    assert found and sum(d.size for d in found.values()) > 100
    assert {n: int((d > 0).sum()) for n, d in found.items() if d.any()} == {}
    assert max(outputs.values()) <= 2e-6 * max(1.0, *(np.abs(v).max() for v in feeds.values()))


DRAWS = 40


def random_layer(seed):
    """One or two convolutions with whatever attributes, and what may be fused behind them."""
    rng = np.random.default_rng(seed)
    pick = lambda *options: options[rng.integers(len(options))]  # noqa: E731
    channels, group = pick((8, 1), (8, 2), (8, 8), (3, 1), (24, 3))
    out = group * int(rng.integers(1, 9))
    kernel = [int(rng.integers(1, 4)), int(rng.integers(1, 4))]
    attributes = {
        "strides": [int(rng.integers(1, 4)), int(rng.integers(1, 4))],
        "dilations": [int(rng.integers(1, 3)), int(rng.integers(1, 3))],
        "pads": [int(rng.integers(0, 3)) for _ in range(4)],
    }
    listed = ", ".join(f"{n}={v}" for n, v in attributes.items())
    after = pick("", "y = Relu(c)", "y = Clip(c, low, high)", "y = Relu(c)", "y = Add(c, c)")
    name = "c" if after else "y"
    weights = {"w": (out, channels // group, *kernel), "b": (out,)}
    if "Clip" in after:
        weights |= {"low": F(pick(0, -1)), "high": F(pick(0.5, 2, 6))}
    return picture(f"{name} = Conv<group={group}, {listed}>(x, w, b)  {after}", channels, **weights)


@pytest.mark.parametrize("seed", range(DRAWS))
def test_every_code_of_layers_drawn_at_random(graph_from_text, seed):
    graph, draw = build(graph_from_text, random_layer(seed), seed)
    graph, plan, target = quantized(graph, draw, "ort_cpu", correct=bool(seed % 2))
    found, _ = differences(graph, plan, target, draw(16, 2.0, seed=2), run_ort)
    assert {n: int((d > 0).sum()) for n, d in found.items() if d.any()} == {}


OPENVINO = [
    "conv leaky", "conv, conv", "add itself", "add relu", "mul by channel", "concat", "resize",
    "pad", "transpose", "residual block", "average pool padded", "average pool counting pads",
    "gemm relu gemm", "matmul matmul", "flatten behind a pool",
]  # fmt: skip


@pytest.mark.parametrize("name", OPENVINO)
def test_openvino_but_for_ties(graph_from_text, name):
    pytest.importorskip("openvino")
    graph, draw = build(graph_from_text, CASES[name])
    graph, plan, target = quantized(graph, draw, "openvino_cpu")
    feeds = draw(24, reach=1.3, seed=2)
    found, outputs = differences(graph, plan, target, feeds, run_openvino)
    assert sum(int(d.sum()) for d in found.values()) <= 1
    if not any(d.any() for d in found.values()):
        assert max(outputs.values()) < 1e-5


@pytest.mark.parametrize("seed", range(8))
def test_openvino_on_layers_drawn_at_random(graph_from_text, seed):
    pytest.importorskip("openvino")
    text, shape, weights = random_layer(seed)
    behind = {"v": (3, weights["w"][0], 1, 1), "d": (3,)}
    case = (text.replace("y = ", "z = ") + "  y = Conv(z, v, d)", shape, weights | behind)
    graph, draw = build(graph_from_text, case, seed)
    graph, plan, target = quantized(graph, draw, "openvino_cpu")
    found, _ = differences(graph, plan, target, draw(16, 2.0, seed=2), run_openvino)
    assert set(found) == {"x", "z"} or "Add" in text
    assert sum(int(d.sum()) for d in found.values()) <= 1


@pytest.mark.parametrize(
    ("target_name", "run"), [("ort_cpu", run_ort), ("openvino_cpu", run_openvino)]
)
def test_ties_of_the_input_are_read_as_the_engine_reads_them(graph_from_text, target_name, run):
    """Inputs within a few units in the last place of the middle between two codes."""
    if run is run_openvino:
        pytest.importorskip("openvino")
    graph, draw = build(graph_from_text, CASES["conv, conv"])
    graph, plan, target = quantized(graph, draw, target_name)
    x = draw(32, 1.0, seed=3)["x"]
    scale = plan[Point("x")].scale
    middle = ((np.floor(x / scale) + 0.5) * scale).astype(np.float32)
    steps = np.random.default_rng(0).integers(-8, 9, x.shape).astype(np.int32)
    feeds = {"x": (middle.view(np.int32) + steps).view(np.float32)}
    found, _ = differences(graph, plan, target, feeds, run)
    assert not found["x"].any()


@pytest.mark.xfail(
    reason="OpenVINO 2026.4 gives a quantized 1x1 convolution with strides and padding a wrong "
    "output shape; the float model and ONNX Runtime follow the standard",
    raises=ValueError,
)
def test_openvino_strided_1x1_with_padding(graph_from_text):
    pytest.importorskip("openvino")
    case = picture(
        "z = Conv<strides=[2,2], pads=[0,1,0,2]>(x, w, b)  y = Conv(z, v, d)",
        w=(4, 8, 1, 1), b=(4,), v=(3, 4, 1, 1), d=(3,),
    )  # fmt: skip
    graph, draw = build(graph_from_text, case)
    graph, plan, target = quantized(graph, draw, "openvino_cpu")
    differences(graph, plan, target, draw(2), run_openvino)


# ------------------------------------------------------------ accumulators


def test_an_accumulator_that_float32_cannot_hold(graph_from_text):
    """512 channels of equal sign: sums beyond 2^24, odd ones among them."""
    weights = {"w": (6, 512, 3, 3), "b": (6,)}
    case = ("y = Conv(x, w, b)", (512, 5, 5), weights)
    graph, draw = build(graph_from_text, case)
    node = ir.nodes(graph)[0]
    ir.set_constant(graph, node, 1, np.abs(ir.constants(graph)["w"]) + F(0.05))
    graph, plan, target = quantized(graph, draw, "ort_cpu", Calibrate("minmax", "minmax"))
    codes = plan[Point("w")].quantize(ir.constants(graph)[node.inputs[1].name])
    assert codes.astype(np.int64).sum(axis=(1, 2, 3)).max() * 255 > 2**24
    found, _ = differences(graph, plan, target, draw(8, 3.0, seed=2), run_ort)
    assert not any(d.any() for d in found.values())


@pytest.mark.parametrize("channels", [8, 2048])
def test_accumulators_are_exact(graph_from_text, channels):
    """Against int64: scales of 1, so that the float output is the accumulator."""
    rng = np.random.default_rng(0)
    w = rng.integers(-127, 128, (4, channels)).astype(np.float32)
    x = rng.integers(0, 256, (32, channels))
    w[0], x[0] = 127, 255  # the largest sum there is
    text = f"g (float[N,{channels}] x) => (float[N,4] y) {{ y = Gemm<transB=1>(x, w, b) }}"
    graph = graph_from_text(text, w=w, b=np.array([1, -1, 7, 12345], F))
    unit = {
        "x": choose_encoding(QuantSpec(8, False, False), 0, 255),
        "w": choose_encoding(QuantSpec(8, axis=0, narrow=True), np.full(4, -127), np.full(4, 127)),
        "b": choose_encoding(
            QuantSpec(32, axis=0), np.full(4, -(2.0**31)), np.full(4, 2.0**31 - 1)
        ),
    }
    assert all((e.scale == 1).all() for e in unit.values())
    plan = Plan({Point(name): encoding for name, encoding in unit.items()})
    want = x.astype(np.int64) @ w.T.astype(np.int64) + [1, -1, 7, 12345]
    made = IntegerModule(graph, plan, Arithmetic())({"x": x.astype(np.float32)})["y"]
    np.testing.assert_array_equal(made.numpy(), want.astype(np.float32))


@pytest.mark.parametrize("requantize", ["multiply", "range", "dequantize"])
def test_the_ways_to_requantize_differ_by_ties_only(graph_from_text, requantize):
    """All three approximate round(r / s): at most one code from real arithmetic in float64."""
    graph, draw = build(graph_from_text, CASES["conv, conv"])
    graph, plan, target = quantized(graph, draw, "ort_cpu")
    feeds, seen = draw(8), {}
    arithmetic = replace(target.arithmetic, requantize=requantize)
    IntegerModule(graph, plan, arithmetic)(feeds, lambda name, codes: seen.update({name: codes}))
    e, n, b = (plan[Point(name)] for name in ("x", "w", "r"))
    x = torch.tensor(e.fake(feeds["x"])).double()
    w = torch.tensor(n.fake(ir.constants(graph)["w"])).double()
    bias = torch.tensor(plan[Point("b")].fake(ir.constants(graph)["b"])).double()
    real = torch.nn.functional.conv2d(x, w, bias).clamp(min=0).numpy() / float(b.scale)
    want = np.clip(np.rint(real) + b.zero_point, 0, 255)
    away = np.abs(seen["r"].numpy() - want)
    assert away.max() <= 1 and (away > 0).mean() < 1e-3
    near_tie = np.abs(real - np.floor(real) - 0.5) < 1e-3
    assert not away[~near_tie].any()


def test_seven_bit_weights_and_two_threads(graph_from_text):
    graph, draw = build(graph_from_text, CASES["residual block"])
    target = load_target("ort_cpu")
    planned = targets.plan(graph, target, "w8a8", "x86_64", frozenset())
    graph, plan = Calibrate()(graph, planned.plan, [draw(16)])
    assert plan[Point("w")].spec.bits == 7
    found, _ = differences(
        graph, plan, target, draw(16, 1.5, seed=2), lambda g, f: run_ort(g, f, threads=2)
    )
    assert not any(d.any() for d in found.values())


# ------------------------------------------------------------ what it shows, what it refuses


def test_values_come_in_graph_order_as_codes(graph_from_text):
    graph, draw = build(graph_from_text, CASES["residual block"])
    graph, plan, target = quantized(graph, draw, "ort_cpu")
    seen = []

    def look(name, codes):
        assert codes.dtype == torch.int32 and codes.min() >= 0 and codes.max() <= 255
        seen.append(name)

    IntegerModule(graph, plan, target.arithmetic)(draw(2), look)
    assert seen == ["x", "r", "d", "s", "p", "f"]


def test_a_plan_without_numbers_is_refused(graph_from_text):
    graph, _ = build(graph_from_text, CASES["conv"])
    with pytest.raises(ValueError, match="no encoding yet, the first is x"):
        IntegerModule(graph, Plan({Point("x"): QuantSpec()}), Arithmetic())


def test_an_unknown_operator_is_named(graph_from_text):
    graph = graph_from_text("g (float[N,3] x) => (float[N,3] y) { y = Bernoulli(x) }")
    with pytest.raises(ValueError, match=r"no operator Bernoulli \(node '.+'\)"):
        IntegerModule(graph, Plan(), Arithmetic())


def test_without_a_plan_it_is_the_float_model(graph_from_text):
    graph, draw = build(graph_from_text, CASES["residual block"])
    feeds = draw(3)
    mine = IntegerModule(graph, Plan(), Arithmetic())(feeds)["y"].numpy()
    np.testing.assert_allclose(mine, run_ort(graph, feeds)["y"], rtol=1e-4, atol=1e-5)
