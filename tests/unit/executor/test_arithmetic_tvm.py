"""The simulation of TVM's kernels against TVM: every code, and the outputs to the last bit."""

import importlib.util
from fractions import Fraction

import numpy as np
import pytest

from modelmill import ir, targets
from modelmill.executor.integer import IntegerModule
from modelmill.executor.kernels_float import convolve_in_turn, multiply_in_turn
from modelmill.ir import Plan
from modelmill.numerics import choose_encoding
from modelmill.runtimes.protocol import SessionOptions
from modelmill.runtimes.tvm import PLUGIN

torch = pytest.importorskip("torch")
TARGET = targets.load_target("tvm")

# Convolutions with stride, dilation, groups and odd channels; depthwise; a shortcut that is a
# strided slice and a pad; ShuffleNet's shuffle; concatenation of other codes; pools; nearest
# neighbours; a residual between float results; layers that stay float.
NETWORK = """
g (float[N,3,13,11] x) => (float[N,10] y) {
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)   a1 = LeakyRelu<alpha=0.1>(c1)
    c2 = Conv<pads=[2,2,2,2], dilations=[2,2], group=2>(a1, w2)   a2 = Relu(c2)
    c3 = Conv<pads=[1,1,1,1], group=20>(a2, w3, b3)   a3 = Clip(c3, low, high)
    c4 = Conv(a3, w4, b4)   s4 = Add(c4, a1)   a4 = Relu(s4)
    c5 = Conv<strides=[2,2], pads=[1,1,1,1]>(a4, w5, b5)
    half = Slice(a4, starts, ends, axes, steps)
    wide = Pad(half, pads)
    s5 = Add(c5, wide)   a5 = Relu(s5)
    five = Reshape(a5, pair)   swapped = Transpose<perm=[0,2,1,3,4]>(five)
    shuffled = Reshape(swapped, whole)
    one, two = Split<axis=1, num_outputs=2>(shuffled)
    c6 = Conv(two, w6, b6)   a6 = Relu(c6)
    both = Concat<axis=1>(one, a6)
    m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[1,1]>(both)
    up = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",
                nearest_mode="floor">(m, , scales)
    v = AveragePool<kernel_shape=[2,2], strides=[2,2]>(up)
    c7 = Conv<pads=[1,1,1,1]>(v, w7, b7)   a7 = Relu(c7)
    c8 = Conv<pads=[1,1,1,1], group=24>(a7, w8, b8)   a8 = LeakyRelu<alpha=0.2>(c8)
    c9 = Conv(a8, w9)
    p = GlobalAveragePool(c9)   f = Flatten(p)   y = Gemm<transB=1>(f, wg, bg)
}
"""
FLOAT = ("c7", "c8")  # node outputs of layers that stay float


@pytest.fixture(scope="module")
def network(graph_from_text):
    random = np.random.default_rng(5)

    def weight(*shape):
        return random.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)

    shapes = {"w1": (20, 3, 3, 3), "w2": (20, 10, 3, 3), "w3": (20, 1, 3, 3), "w4": (20, 20, 1, 1),
              "w5": (24, 20, 3, 3), "w6": (12, 12, 1, 1), "w7": (24, 24, 3, 3),
              "w8": (24, 1, 3, 3), "w9": (37, 24, 1, 1), "wg": (10, 37)}  # fmt: skip
    arrays = {name: weight(*shape) for name, shape in shapes.items()}
    for name in ("1", "3", "4", "5", "6", "7", "8", "g"):
        arrays[f"b{name}"] = random.normal(0, 0.3, shapes[f"w{name}"][0]).astype(np.float32)
    ints = {"starts": [0, 0], "ends": [99, 99], "axes": [2, 3], "steps": [2, 2],
            "pads": [0, 2, 0, 0, 0, 2, 0, 0], "pair": [1, 2, 12, 7, 6],
            "whole": [1, 24, 7, 6]}  # fmt: skip
    arrays |= {name: np.array(v, np.int64) for name, v in ints.items()}
    arrays |= {"low": np.float32(-0.2), "high": np.float32(0.9)}
    arrays["scales"] = np.array([1, 1, 2, 2], np.float32)
    return ir.with_batch(graph_from_text(NETWORK, **arrays), 1)


@pytest.fixture(scope="module")
def quantized(network):
    """The network as a QDQ graph with its codes exposed, the plan, and pictures."""
    planned = targets.plan(
        network,
        TARGET,
        "w8a8",
        "x86_64",
        frozenset({"avx2"}),
        frozenset(n.name for n in ir.nodes(network) if n.outputs[0].name in FLOAT),
    )
    pictures = np.random.default_rng(1).normal(0, 1, (3, 1, 3, 13, 11)).astype(np.float32)
    names = [p.value for p in planned.plan if p.value not in ir.constants(network)]
    ranges = {name: [0.0, 0.0] for name in names}
    shown = IntegerModule(
        ir.expose(network, [n for n in names if n != "x"]), Plan(), TARGET.arithmetic
    )
    for x in pictures:
        for name, array in {**shown({"x": x}), "x": torch.tensor(x)}.items():
            if name in ranges:
                low, high = ranges[name]
                ranges[name] = [min(low, float(array.min())), max(high, float(array.max()))]
    found, constants = {}, ir.constants(network)
    for point in planned.plan:
        spec = planned.plan.spec(point)
        if point.value in constants:
            w = np.moveaxis(constants[point.value], spec.axis, 0).reshape(-1)
            w = w.reshape(constants[point.value].shape[spec.axis], -1)
            found[point] = choose_encoding(spec, w.min(1), w.max(1))
        else:
            found[point] = choose_encoding(spec, *ranges[point.value])
    for group in planned.plan.ties:
        first = next(p for p in group if p in found)
        found |= {p: found[first] for p in group if p in found}
    plan = Plan(found, planned.plan.ties)
    return ir.to_qdq(network, plan, TARGET.on_codes, TARGET.shield), plan, pictures


@pytest.fixture(scope="module")
def engine(quantized, tmp_path_factory):
    if line := PLUGIN.missing():
        pytest.skip(line)
    graph, _, _ = quantized
    opened = ir.expose(graph, ir.code_values(graph).values())
    folder = tmp_path_factory.mktemp("tvm")
    ir.save(opened, folder / "quantized.onnx")
    PLUGIN.convert(str(folder / "quantized.onnx"), str(folder / "quantized.so"), SessionOptions())
    return PLUGIN.open(str(folder / "quantized.so"), SessionOptions())


def test_every_code_and_every_output_is_that_of_the_engine(quantized, engine):
    graph, plan, pictures = quantized
    module = IntegerModule(*ir.from_qdq(graph), TARGET.arithmetic)
    codes, seen = ir.code_values(graph), set()
    for x in pictures:
        deployed = engine.run({"x": x})

        def compare(name, simulated, deployed=deployed):
            if name in codes:
                seen.add(name)
                np.testing.assert_array_equal(deployed[codes[name]], simulated.numpy(), name)

        simulated = module({"x": x}, compare)["y"].numpy()
        np.testing.assert_array_equal(deployed["y"], simulated)
    assert seen == set(codes)
    assert {p.value for p in plan} >= {"x", "a1", "a2", "a3", "a4", "both", "p", "v", "shuffled"}


def test_what_is_planned_on_integers_runs_on_them(quantized, engine):
    ops = engine.executed()
    kinds = {}
    for op in ops:
        kinds.setdefault(op.op, set()).add(op.kind)
    assert all(op.us is None or op.us >= 0 for op in ops)
    for name in ("Concat", "Gemm", "MaxPool", "AveragePool", "GlobalAveragePool", "Pad", "Split"):
        assert kinds[name] == {"integer"}, name
    convolutions = [op.kind for op in ops if op.op == "Conv"]
    assert (convolutions.count("integer"), convolutions.count("float")) == (7, len(FLOAT))
    assert not {"Add", "Relu", "LeakyRelu", "Clip"} & set(kinds)  # in the kernels before them


def test_products_in_turn_are_fused_multiply_adds_in_order():
    """The oracle: exact fractions, rounded to float32 behind every step."""
    random = np.random.default_rng(0)
    x = random.normal(size=(1, 4, 5, 4)).astype(np.float32)
    w = random.normal(size=(6, 2, 3, 2)).astype(np.float32)
    found = convolve_in_turn(
        torch.tensor(x),
        torch.tensor(w),
        None,
        {"group": 2, "strides": (2, 1), "pads": (1, 0, 1, 0)},
    ).numpy()
    padded = np.pad(x[0], ((0, 0), (1, 1), (0, 0)))
    assert found.shape == (1, 6, 3, 3)
    for o, i, j in np.ndindex(6, 3, 3):
        total = np.float32(0)
        for h, v, c in np.ndindex(3, 2, 2):
            term = Fraction(float(padded[o // 3 * 2 + c, 2 * i + h, j + v]))
            exact = term * Fraction(float(w[o, c, h, v])) + Fraction(float(total))
            total = np.float32(exact.numerator / exact.denominator)
        assert found[0, o, i, j] == total
    rows = multiply_in_turn(torch.tensor(x[0, 0]), torch.eye(4), torch.ones(4))
    np.testing.assert_array_equal(rows.numpy(), x[0, 0] + np.float32(1))


def test_the_engine_has_its_pip_line():
    assert PLUGIN.missing() in (None, PLUGIN.pip)
    assert (importlib.util.find_spec("tvm") is None) == (PLUGIN.missing() is not None)
