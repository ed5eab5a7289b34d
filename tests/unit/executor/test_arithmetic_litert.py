"""The simulation's kernels against LiteRT's own: XNNPACK's (as its interpreter runs them) and the
reference kernels, on files of one operator, every code or every pair of codes.
"""

import numpy as np
import pytest
import torch

from modelmill.executor.codes import Codes
from modelmill.executor.kernels import (
    ADD,
    AVERAGE_POOL,
    GLOBAL_AVERAGE_POOL,
    LEAKY_RELU,
    MULTIPLY,
    QUANTIZE,
    REQUANTIZE,
    SUBTRACT,
    Sums,
)
from modelmill.executor.kernels_float import convolve_in_turn, multiply_in_turn
from modelmill.numerics import Encoding, QuantSpec
from modelmill.runtimes.litert import PLUGIN as LITERT

if LITERT.missing():
    pytest.skip(str(LITERT.missing()), allow_module_level=True)

from ai_edge_litert.interpreter import Interpreter, OpResolverType

from modelmill.export.litert_file import Affine, File
from modelmill.export.litert_writer import affine

S8 = QuantSpec(8, signed=True, symmetric=False)
WEIGHT = QuantSpec(8, signed=True, symmetric=True, axis=0, narrow=True)
CODES = np.arange(-128, 128, dtype=np.int8)
PAIRS = tuple(side.reshape(1, -1).astype(np.int8) for side in np.meshgrid(CODES, CODES))
XNNPACK, REFERENCE = OpResolverType.AUTO, OpResolverType.BUILTIN_REF


def encoding(random, low=0.01, high=0.2):
    return Encoding(S8, np.float32(random.uniform(low, high)), random.integers(-128, 128))


def run(kernels, op, sides, output, table="", constants=(), **options):
    """One operator on int8 (or float) arrays with their encodings; the codes it writes."""
    file = File()
    inputs = [
        file.tensor(f"x{i}", a.shape, a.dtype, None if e is None else affine(e))
        for i, (a, e) in enumerate(sides)
    ]
    more = [file.constant(f"c{i}", a, q) for i, (a, q) in enumerate(constants)]
    shape, written = output
    made = file.tensor("y", shape, np.int8, affine(written))
    file.operator(op, [*inputs, *more], [made], table, **options)
    content = file.pack(inputs, [made], {})
    engine = Interpreter(
        model_content=content, num_threads=1, experimental_op_resolver_type=kernels
    )
    engine.allocate_tensors()
    for detail, (array, _) in zip(engine.get_input_details(), sides, strict=True):
        engine.set_tensor(detail["index"], array)
    engine.invoke()
    return engine.get_tensor(engine.get_output_details()[0]["index"])


def codes(array, of):
    return Codes(torch.tensor(array.astype(np.float32) - float(of.zero_point)), of)


@pytest.mark.parametrize(
    ("kernels", "name"), [(XNNPACK, "fixed_point"), (REFERENCE, "double_rounding")]
)
def test_leaky_relu_on_every_code(kernels, name):
    random = np.random.default_rng(0)
    for alpha in (0.1, 0.01, 0.2, 0.7, 0.333):
        for _ in range(6):
            x = encoding(random)
            y = encoding(random, float(x.scale) / 4, float(x.scale) * 2)
            deployed = run(
                kernels, "LEAKY_RELU", [(CODES[None], x)], ((1, 256), y), "LeakyReluOptions",
                Alpha=alpha,
            )  # fmt: skip
            simulated = LEAKY_RELU[name](codes(CODES[None], x), alpha, y).codes.numpy()
            np.testing.assert_array_equal(simulated, deployed)


PAIRWISE = [
    (XNNPACK, "ADD", ADD["fixed_point"]),
    (XNNPACK, "SUB", SUBTRACT["fixed_point"]),
    (XNNPACK, "MUL", MULTIPLY["ratio_alone"]),
    (REFERENCE, "ADD", ADD["double_rounding"]),
    (REFERENCE, "SUB", SUBTRACT["double_rounding"]),
    (REFERENCE, "MUL", MULTIPLY["double_rounding"]),
]


@pytest.mark.parametrize(("kernels", "op", "kernel"), PAIRWISE)
def test_two_tensors_on_every_pair_of_codes(kernels, op, kernel):
    random = np.random.default_rng(1)
    table = f"{op.capitalize()}Options"
    for _ in range(6):
        a, b = encoding(random), encoding(random, 0.002, 1.0)
        top = float(a.scale * b.scale) * 100 if op == "MUL" else float(a.scale + b.scale)
        y = encoding(random, top / 4, top)
        sides = [(PAIRS[0], a), (PAIRS[1], b)]
        deployed = run(kernels, op, sides, (PAIRS[0].shape, y), table)
        simulated = kernel(codes(PAIRS[0], a), codes(PAIRS[1], b), y).codes.numpy()
        np.testing.assert_array_equal(simulated, deployed)


@pytest.mark.parametrize(("kernels", "name"), [(XNNPACK, "bias"), (REFERENCE, "double_rounding")])
def test_mean_over_a_picture_with_many_ties(kernels, name):
    random = np.random.default_rng(2)
    for height, width in ((1, 3), (7, 7), (3, 3), (8, 8), (2, 3)):
        for ratio in (1.5, 2.5, 0.5, 3, 24.5, random.uniform(0.2, 4)):
            y = encoding(random)
            x = Encoding(S8, y.scale * np.float32(ratio), random.integers(-128, 128))
            array = random.normal(int(x.zero_point), 30 / ratio, (1, height, width, 256))
            array = array.clip(-128, 127).astype(np.int8)
            axes = [(np.array([1, 2], np.int32), None)]
            deployed = run(
                kernels, "MEAN", [(array, x)], ((1, 1, 1, 256), y), "ReducerOptions", axes,
                KeepDims=True,
            )  # fmt: skip
            sent = codes(array.transpose(0, 3, 1, 2), x)
            simulated = GLOBAL_AVERAGE_POOL[name](sent, y).codes.numpy()
            np.testing.assert_array_equal(simulated.transpose(0, 2, 3, 1), deployed)


@pytest.mark.parametrize("kernels", [XNNPACK, REFERENCE])
@pytest.mark.parametrize("padding", [0, 1], ids=["same", "valid"])
def test_average_pool_keeps_the_scale(kernels, padding):
    random = np.random.default_rng(3)
    attributes = {"kernel_shape": (3, 3), "pads": (0,) * 4 if padding else (1,) * 4}
    size = 6 if padding else 8
    for _ in range(4):
        x = encoding(random)
        array = random.integers(-128, 128, (1, 8, 8, 16)).astype(np.int8)
        deployed = run(
            kernels, "AVERAGE_POOL_2D", [(array, x)], ((1, size, size, 16), x), "Pool2DOptions",
            Padding=padding, StrideH=1, StrideW=1, FilterHeight=3, FilterWidth=3,
        )  # fmt: skip
        made = AVERAGE_POOL["away"](codes(array.transpose(0, 3, 1, 2), x), attributes, x)
        np.testing.assert_array_equal(made.codes.numpy().transpose(0, 2, 3, 1), deployed)


@pytest.mark.parametrize(("kernels", "name"), [(XNNPACK, "reciprocal"), (REFERENCE, "divide_away")])
def test_floats_at_and_beside_ties_become_codes(kernels, name):
    random = np.random.default_rng(4)
    for _ in range(10):
        y = encoding(random)
        x = (random.integers(-300, 300, (1, 4096)) * np.float32(0.5) * y.scale).astype(np.float32)
        x = np.nextafter(x, x + random.integers(-1, 2, x.shape).astype(np.float32))
        deployed = run(kernels, "QUANTIZE", [(x, None)], (x.shape, y), "QuantizeOptions")
        np.testing.assert_array_equal(QUANTIZE[name](torch.tensor(x), y).codes.numpy(), deployed)


LAYERS = [(XNNPACK, "multiply"), (REFERENCE, "double_rounding")]
CONVOLUTION = {"Padding": 1, "StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1}


@pytest.mark.parametrize("op", ["CONV_2D", "FULLY_CONNECTED"])
@pytest.mark.parametrize(("kernels", "name"), LAYERS)
def test_a_layer_s_sums_become_codes(kernels, name, op):
    random = np.random.default_rng(5)
    picture = op == "CONV_2D"
    for _ in range(40):
        x = encoding(random)
        w = Encoding(WEIGHT, random.uniform(0.001, 0.02, 16).astype(np.float32), 0)
        weight = random.integers(-127, 128, (16, 32)).astype(np.int8)
        bias = random.integers(-500, 500, 16).astype(np.int32)
        array = random.integers(-128, 128, (64, 32)).astype(np.int8)
        scale = x.scale * w.scale
        products = codes(array, x).centred.double() @ torch.tensor(weight.T).double()
        sums = products + torch.tensor(bias)
        spread = float((sums * torch.tensor(scale)).std())
        y = encoding(random, spread * 0.01, spread * 0.04)
        kept = Affine(scale, np.zeros(16, np.int64), 0)
        stored = weight.reshape(16, 1, 1, 32) if picture else weight
        deployed = run(
            kernels,
            op,
            [(array.reshape(1, 8, 8, 32) if picture else array, x)],
            ((1, 8, 8, 16) if picture else (64, 16), y),
            "Conv2DOptions" if picture else "FullyConnectedOptions",
            [(stored, affine(w)), (bias, kept)],
            **(CONVOLUTION if picture else {}),
        ).reshape(64, 16)
        held = Codes(torch.tensor(weight).float(), w)
        if picture:  # channels at axis 1, as ONNX has them
            sums = sums.T.reshape(1, 16, 8, 8)
        made = REQUANTIZE[name](Sums(sums, scale, 1 if picture else -1, None, y, x, held, False))
        simulated = made.codes.numpy()
        simulated = simulated.reshape(16, 64).T if picture else simulated
        np.testing.assert_array_equal(simulated, deployed)


def run_float(op, table, array, constants, shape, **options):
    file = File()
    fed = file.tensor("x", array.shape, np.float32)
    more = [file.constant(f"c{i}", c) for i, c in enumerate(constants)]
    made = file.tensor("y", shape, np.float32)
    file.operator(op, [fed, *more], [made], table, **options)
    engine = Interpreter(model_content=file.pack([fed], [made], {}), num_threads=1)
    engine.allocate_tensors()
    engine.set_tensor(engine.get_input_details()[0]["index"], array)
    engine.invoke()
    return engine.get_tensor(engine.get_output_details()[0]["index"])


FLOAT_LAYERS = [(3, 8, 3, 2, 1), (64, 32, 1, 1, 1), (16, 16, 3, 1, 1), (24, 24, 5, 1, 24),
                (8, 8, 3, 2, 8), (8, 12, 3, 1, 2)]  # fmt: skip


@pytest.mark.parametrize(("inside", "outside", "size", "stride", "groups"), FLOAT_LAYERS)
def test_a_float_convolution_sums_in_xnnpack_s_order(inside, outside, size, stride, groups):
    random = np.random.default_rng(6)
    x = random.normal(size=(1, 16, 16, inside)).astype(np.float32)
    w = random.normal(size=(outside, inside // groups, size, size)).astype(np.float32)
    bias = random.normal(size=outside).astype(np.float32)
    rows = (16 - size) // stride + 1
    depthwise = groups == inside
    deployed = run_float(
        "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
        "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions",
        x,
        [w.transpose((1, 2, 3, 0) if depthwise else (0, 2, 3, 1)), bias],
        (1, rows, rows, outside),
        **{**CONVOLUTION, "StrideH": stride, "StrideW": stride},
        **({"DepthMultiplier": 1} if depthwise else {}),
    )
    attributes = {"strides": (stride, stride), "group": groups}
    sent = [torch.tensor(a) for a in (x.transpose(0, 3, 1, 2), w, bias)]
    simulated = convolve_in_turn(*sent, attributes, from_bias=True).numpy()
    np.testing.assert_array_equal(simulated.transpose(0, 2, 3, 1), deployed)


def test_a_float_matrix_product_sums_in_xnnpack_s_order():
    random = np.random.default_rng(7)
    x, w, bias = (random.normal(size=s).astype(np.float32) for s in ((8, 256), (100, 256), 100))
    deployed = run_float("FULLY_CONNECTED", "FullyConnectedOptions", x, [w, bias], (8, 100))
    sent = torch.tensor(x), torch.tensor(w.T), torch.tensor(bias)
    np.testing.assert_array_equal(multiply_in_turn(*sent, from_bias=True).numpy(), deployed)
