"""The simulation against the engines that torch feeds: every code of ExecuTorch's XNNPACK and of
what inductor compiles, and oneDNN's 8-bit convolution by itself.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from modelmill import ir
from modelmill.executor.codes import Codes
from modelmill.executor.exportable import Exportable
from modelmill.executor.integer import IntegerModule
from modelmill.executor.kernels import (
    GLOBAL_AVERAGE_POOL,
    LEAKY_RELU,
    MULTIPLY,
    Sums,
    requantize_scale_by_scale,
)
from modelmill.executor.kernels_xnnpack import add_in_fixed_point, subtract_in_fixed_point
from modelmill.ir import Plan
from modelmill.line.agreement import exposed
from modelmill.line.quantize import Recipe, Where, prepare_graph, quantize_all
from modelmill.numerics import Encoding, QuantSpec
from modelmill.runtimes import EngineMissing, SessionOptions, open_session
from modelmill.targets import load_target

S8, U8 = QuantSpec(8, symmetric=False), QuantSpec(8, signed=False, symmetric=False)

# Convolutions with stride, dilation, groups and uneven padding; depthwise; LeakyRelu; a shortcut of
# strided slice and pad; ShuffleNet's shuffle with a split and with indices; concatenation; sums,
# differences and products of codes; pools; nearest neighbours; a softmax behind a transposition.
NETWORK = """
g (float[1,3,13,11] x) => (float[1,10] y, float[1,7,6,9] s) {
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
    m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(both)
    up = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",
                nearest_mode="floor">(m, , scales)
    v = AveragePool<kernel_shape=[2,2], strides=[2,2]>(up)
    c7 = Conv<strides=[2,2], pads=[0,1,1,0]>(v, w7, b7)
    q = Mul(c7, k)   d = Sub(q, c7)
    t = Reshape(d, stacked)   t0 = Gather<axis=0>(t, zero)
    c8 = Conv<pads=[1,1,1,1]>(t0, w8)
    p = GlobalAveragePool(c8)   f = Flatten(p)   y = Gemm(f, wg, bg)
    c9 = Conv(both, w9)   r = Transpose<perm=[0,2,3,1]>(c9)   s = Softmax<axis=-1>(r)
}
"""


@pytest.fixture(scope="module")
def network(graph_from_text):
    random = np.random.default_rng(5)
    shapes = {"w1": (20, 3, 3, 3), "w2": (20, 10, 3, 3), "w3": (20, 1, 3, 3), "w4": (20, 20, 1, 1),
              "w5": (24, 20, 3, 3), "w6": (12, 12, 1, 1), "w7": (24, 24, 3, 3),
              "w8": (37, 12, 3, 3), "w9": (9, 24, 1, 1)}  # fmt: skip
    arrays = {
        name: random.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape)
        for name, shape in shapes.items()
    }
    arrays["k"] = random.normal(0, 1, (24, 1, 1))
    for name in ("1", "3", "4", "5", "6", "7"):
        arrays[f"b{name}"] = random.normal(0, 0.3, shapes[f"w{name}"][0])
    arrays |= {"wg": random.normal(0, 0.2, (37, 10)), "bg": random.normal(0, 0.3, 10)}
    arrays |= {"low": np.array(-0.2), "high": np.array(0.9), "scales": np.array([1, 1, 2, 2])}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    ints = {"starts": [0, 0], "ends": [99, 99], "axes": [2, 3], "steps": [2, 2],
            "pads": [0, 2, 0, 0, 0, 2, 0, 0], "pair": [1, 2, 12, 7, 6], "whole": [1, 24, 7, 6],
            "stacked": [2, 1, 12, 2, 1], "zero": 0}  # fmt: skip
    arrays |= {name: np.array(v, np.int64) for name, v in ints.items()}
    return prepare_graph(graph_from_text(NETWORK, **arrays))


def pictures(n, seed=1):
    return np.random.default_rng(seed).normal(0, 1, (n, 1, 3, 13, 11)).astype(np.float32)


def quantized(network, name):
    recipe = Recipe(equalize=None, bias_correction=None, protect=None)
    batches = [{"x": x} for x in pictures(4)]
    made = quantize_all(network, {name: load_target(name)}, Where(), batches, recipe)[name]
    return made.to_qdq()


def start(graph, runtime, path):
    ir.save(graph, path)
    try:
        return open_session(runtime, path, SessionOptions(timeout_s=600))
    except EngineMissing as error:
        pytest.skip(str(error))


# Inductor computes the products that stay float, and the softmax, in an order of its own.
@pytest.mark.parametrize(
    "name",
    [
        "torch_eager",
        pytest.param("executorch", marks=pytest.mark.slow),
        pytest.param("torch_inductor", marks=pytest.mark.slow),
    ],
)
def test_every_code_is_that_of_the_engine(network, name, tmp_path):
    graph, target = quantized(network, name), load_target(name)
    opened, codes = exposed(graph)
    module = IntegerModule(*ir.from_qdq(graph), target.arithmetic)
    seen, different = {}, {}
    with start(opened, target.runtime, tmp_path / "network.onnx") as session:
        executed = session.executed()
        for x in pictures(6, seed=2) * np.float32(1.3):  # wider than the calibration: codes clip
            deployed = session.run({"x": x})

            def compare(value, simulated, deployed=deployed):
                found = deployed[codes[value]].astype(int) - simulated.numpy()
                seen[value] = seen.get(value, 0) + found.size
                if found.any():
                    different[value] = different.get(value, 0) + np.count_nonzero(found)

            outputs = module({"x": x}, compare)
            for output, y in outputs.items():
                np.testing.assert_allclose(deployed[output], y, rtol=1e-5, atol=2e-6)
    assert different == {}
    assert set(seen) == set(codes)
    assert set(seen) >= {"x", "a2", "a3", "c4", "a4", "a5", "shuffled", "both", "f"}
    if name == "executorch":
        integer = {op.op for op in executed if op.integer}
        assert integer >= {"Convolution", "Fully Connected", "Add", "LeakyReLU", "Mean"}
        assert {op.op for op in executed if op.kind == "float"} == {"Softmax"}
    if name == "torch_inductor":
        assert {op.op for op in executed if op.integer} == {"qconv_pointwise", "qlinear_pointwise"}


def test_float_and_fake_quantized_are_what_the_executor_computes(network):
    """The exportable form of a graph against the executor, which the ONNX node tests hold."""
    x = pictures(1)[0]
    for graph in (network, quantized(network, "executorch")):
        float_graph, plan = ir.from_qdq(graph)
        names = [p.value for p in plan if p.value in ("a4", "both", "shuffled")]
        every = [n.name for n in ir.nodes(float_graph) if n.op_type in ("Pad", "Slice", "Split")]
        module = Exportable(float_graph, plan, tuple(names), every).eval()
        with torch.no_grad():
            found = module(torch.from_numpy(x))
        expected = IntegerModule(graph, Plan(), load_target("torch_eager").arithmetic)({"x": x})
        for value, y in zip(module.output_names, found, strict=False):
            np.testing.assert_allclose(y, expected[value], rtol=1e-4, atol=1e-5)
        assert [y.dtype for y in found[len(module.output_names) :]] == [torch.int8] * len(names)


# ---------------------------------------------------------------- by algebra, and one kernel alone


def every_pair(spec, *scales_and_zeros):
    encodings = [Encoding(spec, np.float32(s), z) for s, z in scales_and_zeros]
    codes = torch.arange(spec.qmin, spec.qmax + 1, dtype=torch.float32)
    a, b = torch.meshgrid(codes, codes, indexing="ij")
    first, second, output = encodings
    return (
        Codes(a - float(first.zero_point), first),
        Codes(b - float(second.zero_point), second),
        output,
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_fixed_point_addition_is_within_its_multipliers_of_the_real_sum(sign):
    a, b, output = every_pair(S8, (0.031, -7), (0.0173, 20), (0.0402, 3))
    made = (add_in_fixed_point if sign == 1 else subtract_in_fixed_point)(a, b, output)
    real = (a.real.double() + sign * b.real.double()) / float(output.scale)
    real = real.clamp(output.spec.qmin - 3, output.spec.qmax - 3)
    # Multipliers of 21 bits err by at most 2^-21 of themselves, on codes up to 255.
    assert (made.centred - real).abs().max() <= 0.5 + 2 * 255 * 2.0**-20


def test_fixed_point_rounds_ties_up():
    a, b, output = every_pair(S8, (0.5, 0), (0.5, 0), (1.0, 0))
    made = add_in_fixed_point(a, b, output).centred
    assert torch.equal(made, torch.floor((a.centred + b.centred) / 2 + 0.5).clamp(-128, 127))


def test_leaky_multipliers_have_eight_bits():
    x = Codes(torch.arange(-120.0, 121.0), Encoding(S8, np.float32(0.1), 0))
    made = LEAKY_RELU["fixed_point"](x, 0.1, Encoding(S8, np.float32(0.1), 0)).centred
    assert torch.equal(made[120:], x.centred[120:])  # 256 / 256
    assert torch.equal(made[:120], torch.floor((x.centred[:120] * 26 + 128) / 256))  # 25.6 -> 26


def test_products_are_rounded_before_the_zero_point_is_added():
    a, b, output = every_pair(S8, (0.5, 0), (0.5, 0), (0.5, 7))
    made = MULTIPLY["ratio_alone"](a, b, output).centred
    assert torch.equal(made, torch.round(a.centred * b.centred / 2).clamp(-128 - 7, 127 - 7))


def test_a_mean_of_equal_codes_is_that_code():
    encoding = Encoding(S8, np.float32(0.1), -3)
    x = Codes(torch.arange(-100.0, 100.0).reshape(1, -1, 1, 1).expand(1, -1, 7, 5), encoding)
    made = GLOBAL_AVERAGE_POOL["bias"](x, encoding).centred
    assert torch.equal(made.flatten(), x.centred[0, :, 0, 0])


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("groups", [1, 16])
def test_every_code_of_onednn(relu, groups):
    if not hasattr(torch.ops.onednn, "qconv_pointwise"):
        pytest.skip('torch has no oneDNN here: pip install "torch>=2.9"')
    rng = np.random.default_rng(groups)
    x = torch.tensor(rng.integers(0, 256, (2, 16, 40, 40)).astype(np.uint8))
    # 7 bits: without VNNI pairs of products are added in 16 bits
    w = torch.tensor(rng.integers(-63, 64, (16, 16 // groups, 3, 3)).astype(np.int8))
    s_w = rng.uniform(0.001, 0.01, 16).astype(np.float32)
    bias = torch.tensor(rng.normal(0, 1, 16).astype(np.float32))
    given = Encoding(U8, np.float32(0.0371), 101)
    weight = Encoding(QuantSpec(8, axis=0), s_w, 0)
    output = Encoding(U8, np.float32(0.0432), 0 if relu else 120)
    numbers = (float(given.scale), int(given.zero_point))
    window = ([1, 1], [1, 1], [1, 1], groups)
    packed = torch.ops.onednn.qconv_prepack(w, torch.tensor(s_w), *numbers, *window, [*x.shape])
    deployed = torch.ops.onednn.qconv_pointwise(
        x.contiguous(memory_format=torch.channels_last), *numbers, packed, torch.tensor(s_w),
        torch.zeros(16, dtype=torch.int8), bias, *window, float(output.scale),
        int(output.zero_point), torch.uint8, "relu" if relu else "none", [], "",
    )  # fmt: skip
    centred = x.float() - 101
    total = torch.nn.functional.conv2d(centred, w.float(), None, 1, 1, 1, groups)
    sums = Sums(
        total, given.scale * s_w, 1, bias.reshape(1, -1, 1, 1), output, given,
        Codes(w.float(), weight), depthwise=groups > 1,
    )  # fmt: skip
    simulated = requantize_scale_by_scale(sums).codes
    if relu:
        simulated = simulated.clamp(min=int(output.zero_point))
    assert torch.equal(deployed.int(), simulated)
    assert isinstance(requantize_scale_by_scale(replace(sums, output=None)), torch.Tensor)
