"""Operators written for ncnn give what ONNX Runtime gives; what cannot be written is refused."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelmill.runtimes.ncnn import PLUGIN
from modelmill.runtimes.protocol import SessionOptions

IMAGE = (1, 6, 8, 10)


def model(op, shapes, constants=(), outputs=1, opset=18, **attributes):
    """One node, or one for each of several operators (all on the same inputs): inputs of `shapes`,
    then constants (None: left out).
    """
    names = [f"x{i}" for i in range(len(shapes))]
    given = {f"c{i}": np.asarray(c) for i, c in enumerate(constants) if c is not None}
    rest = ["" if c is None else f"c{i}" for i, c in enumerate(constants)]
    nodes = [
        helper.make_node(
            kind, names + rest, [f"y{n}_{i}" for i in range(outputs)], f"node {n}", **attributes
        )
        for n, kind in enumerate([op] if isinstance(op, str) else op)
    ]
    return whole(
        nodes,
        dict(zip(names, shapes, strict=True)),
        [o for n in nodes for o in n.output],
        given,
        opset,
    )


def whole(nodes, inputs, outputs, constants, opset=18):
    value = helper.make_tensor_value_info
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [value(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [value(n, TensorProto.FLOAT, None) for n in outputs],
            [numpy_helper.from_array(a, n) for n, a in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=9,
    )


@pytest.fixture
def converted(tmp_path):
    missing = PLUGIN.missing()
    if missing:
        pytest.skip(missing)
    sessions = []

    def convert(proto):
        source = tmp_path / "m.onnx"
        source.write_bytes(proto.SerializeToString())
        out = str(tmp_path / "m.param")
        PLUGIN.convert(str(source), out, SessionOptions())
        sessions.append(PLUGIN.open(out, SessionOptions()))
        return sessions[-1]

    yield convert
    for session in sessions:
        session.close()


def random(*shape, low=-2.0, high=2.0, seed=0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def check(converted, proto, low=-2.0, high=2.0, tolerance=2e-5):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    reference = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    feeds = {
        x.name: random(*x.shape, low=low, high=high, seed=i)
        for i, x in enumerate(reference.get_inputs())
    }
    found = converted(proto).run(feeds)
    for output, wanted in zip(reference.get_outputs(), reference.run(None, feeds), strict=True):
        assert found[output.name].shape == wanted.shape
        np.testing.assert_allclose(found[output.name], wanted, rtol=tolerance, atol=tolerance)


i64 = np.int64
ELEMENTS = [
    *(
        [
            "Relu",
            "Sigmoid",
            "Tanh",
            "Erf",
            "Softplus",
            "Mish",
            "HardSwish",
            "HardSigmoid",
            "Elu",
            "Celu",
            "Selu",
            "Softsign",
        ]
    ),
    *(
        [
            "Abs",
            "Neg",
            "Floor",
            "Ceil",
            "Exp",
            "Sin",
            "Cos",
            "Atan",
            "Round",
            "Identity",
            "LeakyRelu",
        ]
    ),
]


@pytest.mark.parametrize("shape", [IMAGE, (1, 16, 3, 3), (1, 33), (3, 5, 7)], ids=str)
def test_single_elements(converted, shape):
    check(converted, model(ELEMENTS, [shape]), tolerance=1e-4)


def test_single_elements_of_a_smaller_domain(converted):
    ops = ["Log", "Sqrt", "Reciprocal", "Tan", "Asin", "Acos"]
    check(converted, model(ops, [IMAGE]), low=0.1, high=0.9, tolerance=1e-4)


@pytest.mark.parametrize(
    ("constants", "attributes"),
    [((-0.5, 0.7), {}), ((None, 0.7), {}), ((-0.5,), {}), ((), {})],
)
def test_clip(converted, constants, attributes):
    numbers = [None if c is None else np.float32(c) for c in constants]
    check(converted, model("Clip", [IMAGE], numbers))


def test_gelu_and_prelu(converted):
    check(converted, model("Gelu", [IMAGE], opset=20), tolerance=1e-4)
    check(converted, model("Gelu", [IMAGE], opset=20, approximate="tanh"), tolerance=1e-4)
    check(converted, model("PRelu", [IMAGE], [random(6, 1, 1)]))
    check(converted, model("PRelu", [IMAGE], [random(1, 1, 1)]))


PAIRS = [
    (IMAGE, IMAGE), (IMAGE, (1, 6, 1, 1)), (IMAGE, (1, 1, 8, 10)), (IMAGE, (8, 10)), (IMAGE, (10,)),
    (IMAGE, (1, 6, 8, 1)), ((1, 6, 1, 1), (1, 1, 8, 10)), ((1, 16, 5, 5), (1, 16, 1, 1)),
    ((1, 33), (1, 33)), ((1, 7, 9), (1, 7, 1)), ((2, 3, 4, 5), (3, 1, 5)), (IMAGE, (1,)),
    ((1, 5, 4, 3, 2), (1, 5, 1, 1, 1)), ((1, 1, 8, 10), IMAGE), ((1, 16, 5, 5), (1, 1, 5, 5)),
]  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_two_tensors(converted, pair):
    ops = ["Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"]
    check(converted, model(ops, pair), low=0.5, tolerance=1e-4)
    constant = random(*pair[1], low=0.5, high=2.0, seed=5)
    check(converted, model(ops, pair[:1], [constant]), low=0.5, tolerance=1e-4)


@pytest.mark.parametrize("shape", [(), (1, 6, 1, 1)], ids=str)
def test_a_constant_on_the_left(converted, shape):
    number = np.float32(1.5) if shape == () else random(*shape, low=0.5)
    proto = model(["Sub", "Div", "Pow", "Add"], [IMAGE], [number])
    for node in proto.graph.node:
        node.input[:] = reversed(node.input)
    check(converted, proto, low=0.5, tolerance=1e-4)


@pytest.mark.parametrize("n", [0.5, 1, 2, 3, 4])
def test_powers_of_negative_numbers(converted, n):
    check(converted, model("Pow", [IMAGE], [np.float32(n)]), low=0.1 if n == 0.5 else -2)


def test_any_number_of_tensors(converted):
    for n in (1, 3):
        check(converted, model(["Sum", "Mean", "Max", "Min"], [IMAGE] * n))


SHAPES = [
    (IMAGE, (1, 48, 10)), (IMAGE, (1, 480)), (IMAGE, (6, 80)), (IMAGE, (1, 2, 3, 8, 10)),
    ((1, 480), (1, 6, 80)), ((1, 16, 4, 4), (1, 4, 4, 16)), ((3, 5, 7), (1, 105)),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "to"), SHAPES, ids=str)
def test_reshape(converted, shape, to):
    check(converted, model("Reshape", [shape], [np.array(to, i64)]))


@pytest.mark.parametrize(
    ("shape", "perm"),
    [
        (IMAGE, (0, 2, 3, 1)), (IMAGE, (0, 3, 1, 2)), (IMAGE, (0, 1, 3, 2)), (IMAGE, (0, 3, 2, 1)),
        (IMAGE, (0, 2, 1, 3)), (IMAGE, (1, 0, 2, 3)), ((24, 2, 50), (1, 0, 2)), ((4, 6), (1, 0)),
        ((1, 2, 16, 5, 5), (0, 2, 1, 3, 4)), ((1, 16, 2, 5, 5), (0, 2, 1, 3, 4)),
        ((2, 3, 4, 5), (3, 1, 0, 2)), ((2, 3, 4, 5), (1, 3, 2, 0)), ((2, 3, 4, 5), (2, 0, 3, 1)),
        ((1, 8, 3, 4, 5), (0, 3, 1, 4, 2)), ((1, 7, 9), (0, 2, 1)),
        ((1, 1, 4, 1, 5), (0, 4, 1, 3, 2)),
    ],
    ids=str,
)  # fmt: skip
def test_transpose(converted, shape, perm):
    check(converted, model("Transpose", [shape], perm=perm), tolerance=0)


@pytest.mark.parametrize("groups", [2, 4, 8])
@pytest.mark.parametrize("channels", [8, 16, 24, 32, 48, 96])
def test_channel_shuffle(converted, channels, groups):
    """Reshape, Transpose, Reshape: ShuffleChannel in ncnn, whose packed kernels are many."""
    node = helper.make_node
    nodes = [
        node("Relu", ["x"], ["r"], "relu"),  # its blob is packed
        node("Reshape", ["r", "a"], ["one"], "one"),
        node("Transpose", ["one"], ["two"], "two", perm=(0, 2, 1, 3)),
        node("Reshape", ["two", "b"], ["y"], "three"),
    ]
    shapes = {"a": (1, groups, channels // groups, 25), "b": (1, channels, 5, 5)}
    constants = {name: np.array(shape, i64) for name, shape in shapes.items()}
    check(converted, whole(nodes, {"x": shapes["b"]}, ["y"], constants), tolerance=0)


@pytest.mark.parametrize(
    ("shapes", "axis"),
    [
        ([IMAGE, (1, 2, 8, 10)], 1), ([IMAGE, (1, 6, 3, 10)], 2), ([IMAGE, (1, 6, 8, 1)], 3),
        ([IMAGE, IMAGE], 0), ([(1, 5), (1, 7)], 1), ([(1, 16, 4, 4)] * 3, -3),
        ([(3, 4), (3, 2)], 1),
        ([(1, 2, 3, 4, 5)] * 2, 2),
    ],
    ids=str,
)  # fmt: skip
def test_concat(converted, shapes, axis):
    check(converted, model("Concat", shapes, axis=axis), tolerance=0)


def test_split(converted):
    check(converted, model("Split", [IMAGE], [np.array([2, 4], i64)], outputs=2, axis=1))
    check(converted, model("Split", [IMAGE], outputs=2, axis=3, num_outputs=2))
    check(converted, model("Split", [(1, 32, 5, 5)], outputs=2, axis=1, num_outputs=2))
    check(converted, model("Split", [(3, 4, 6)], outputs=3, axis=-1, num_outputs=3))


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ([0], [3], [1], [1]), ([1, 2], [7, -1], [2, 3], [1, 1]), ([0, 0], [8, 10], [2, 3], [2, 2]),
        ([1], [2**62], [2], [3]), ([-4], [-1], [1], [1]), ([0], [6], [1], [2]),
        ([0], [1], [0], [1]),
    ],
    ids=str,
)  # fmt: skip
def test_slice(converted, starts, ends, axes, steps):
    numbers = [np.array(n, i64) for n in (starts, ends, axes, steps)]
    check(converted, model("Slice", [IMAGE], numbers), tolerance=0)


@pytest.mark.parametrize(
    ("indices", "axis"),
    [(0, 1), (3, 2), ([1, 2, 3], 1), ([0, 2, 4], 3), ([5, 0, 2], 1), (-1, 3), ([0], 0), (0, 0)],
    ids=str,
)
def test_gather(converted, indices, axis):
    check(converted, model("Gather", [IMAGE], [np.array(indices, i64)], axis=axis), tolerance=0)
    if axis == 1 and indices == 3:
        return
    shape = (6, 1, 16, 5, 5)
    if axis == 0:
        check(converted, model("Gather", [shape], [np.array(indices, i64)], axis=0), tolerance=0)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
@pytest.mark.parametrize("pads", [(0, 0, 1, 2, 0, 0, 3, 4), (0, 0, 0, 1, 0, 0, 0, 0)], ids=str)
def test_pad(converted, mode, pads):
    fill = [np.float32(1.5)] if mode == "constant" else []
    check(converted, model("Pad", [IMAGE], [np.array(pads, i64), *fill], mode=mode), tolerance=0)
    sixteen = (1, 16, 8, 10)
    check(converted, model("Pad", [sixteen], [np.array(pads, i64), *fill], mode=mode), tolerance=0)


def test_pad_channels_and_vectors(converted):
    for channels in (6, 16):
        pads = np.array((0, 8, 0, 0, 0, 8, 0, 0), i64)
        check(converted, model("Pad", [(1, channels, 5, 5)], [pads]), tolerance=0)
    check(converted, model("Pad", [(1, 7)], [np.array((0, 2, 0, 3), i64)]), tolerance=0)


def test_tile_and_expand(converted):
    check(converted, model("Tile", [IMAGE], [np.array((1, 2, 1, 3), i64)]), tolerance=0)
    wanted = np.array((1, 6, 8, 10), i64)
    check(converted, model("Expand", [(1, 6, 1, 1)], [wanted]), tolerance=0)
    check(converted, model("Expand", [(8, 1)], [wanted]), tolerance=0)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_space(converted, mode):
    shape = (1, 32, 4, 6)
    check(converted, model("DepthToSpace", [shape], blocksize=2, mode=mode), tolerance=0)
    check(converted, model("SpaceToDepth", [(1, 3, 4, 6)], blocksize=2), tolerance=0)


@pytest.mark.parametrize("axis", [1, 2, 3, -1])
def test_softmax(converted, axis):
    ops = ["Softmax", "LogSoftmax"]
    check(converted, model(ops, [IMAGE], axis=axis), tolerance=1e-4)
    check(converted, model(ops, [(1, 16, 8, 5)], axis=axis), tolerance=1e-4)


def test_softmax_of_a_vector(converted):
    check(converted, model("Softmax", [(1, 10)], axis=1), tolerance=1e-4)


REDUCTIONS = ["Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp", "LogSum"]


@pytest.mark.parametrize("axes", [(1,), (2, 3), (1, 2, 3), (3,), (2,)], ids=str)
def test_reduce(converted, axes):
    for keep in (0, 1):
        ops = [f"Reduce{op}" for op in REDUCTIONS]
        proto = model(ops, [(1, 4, 3, 5)], [np.array(axes, i64)], keepdims=keep)
        check(converted, proto, low=0.8, high=1.2, tolerance=1e-4)


@pytest.mark.parametrize("channels", [5, 16])
@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": (2, 2), "strides": (2, 2)},
        {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)},
        {"kernel_shape": (3, 2), "strides": (2, 1), "pads": (1, 0, 0, 1)},
        {"kernel_shape": (3, 3), "strides": (2, 2), "ceil_mode": 1},
        {"kernel_shape": (3, 3), "strides": (2, 2), "auto_pad": "SAME_UPPER"},
        {"kernel_shape": (8, 10)},
    ],
    ids=str,
)
def test_pools(converted, channels, attributes):
    shape = (1, channels, 8, 10)
    check(converted, model("MaxPool", [shape], **attributes), tolerance=0)
    check(converted, model("AveragePool", [shape], **attributes))
    if not attributes.get("ceil_mode"):
        check(converted, model("AveragePool", [shape], count_include_pad=1, **attributes))


def test_global_and_one_dimensional_pools(converted):
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        check(converted, model(op, [IMAGE]))
        check(converted, model(op, [(1, 16, 7, 7)]))
    for op in ("MaxPool", "AveragePool"):
        check(converted, model(op, [(1, 4, 20)], kernel_shape=(3,), strides=(2,), pads=(1, 1)))


NOTHING = np.zeros(0, np.float32)


@pytest.mark.parametrize(
    ("mode", "where", "more", "sizes"),
    [
        ("nearest", "asymmetric", {"nearest_mode": "floor"}, (16, 30)),
        ("nearest", "asymmetric", {"nearest_mode": "floor"}, (13, 7)),
        ("nearest", "half_pixel", {"nearest_mode": "round_prefer_floor"}, (16, 20)),
        ("linear", "half_pixel", {}, (16, 20)),
        ("linear", "half_pixel", {}, (5, 17)),
        ("linear", "align_corners", {}, (15, 11)),
        ("linear", "pytorch_half_pixel", {}, (16, 20)),
        ("cubic", "half_pixel", {}, (16, 20)),
    ],
)
def test_resize(converted, mode, where, more, sizes):
    for channels in (6, 16):
        wanted = np.array((1, channels, *sizes), i64)
        constants = [NOTHING, NOTHING, wanted]
        proto = model(
            "Resize", [(1, channels, 8, 10)], constants, mode=mode,
            coordinate_transformation_mode=where, **more,
        )  # fmt: skip
        check(converted, proto, tolerance=1e-4)


CONVOLUTIONS = [
    ((1, 6, 9, 11), (8, 6, 3, 3), {"pads": (1, 1, 1, 1)}),
    ((1, 3, 9, 11), (16, 3, 3, 3), {"pads": (0, 0, 1, 1), "strides": (2, 2)}),
    ((1, 16, 9, 11), (32, 16, 1, 1), {}),
    ((1, 16, 9, 11), (16, 1, 3, 3), {"group": 16, "pads": (1, 1, 1, 1)}),
    ((1, 12, 9, 11), (12, 1, 5, 5), {"group": 12, "pads": (2, 2, 2, 2), "strides": (2, 2)}),
    ((1, 12, 9, 11), (24, 4, 3, 3), {"group": 3}),
    ((1, 8, 9, 11), (8, 8, 3, 2), {"dilations": (2, 3), "pads": (2, 1, 1, 0)}),
    ((1, 8, 9, 11), (8, 8, 3, 3), {"auto_pad": "SAME_LOWER", "strides": (2, 2)}),
    ((1, 8, 40), (12, 8, 3), {"pads": (1, 1)}),
    ((1, 8, 40), (8, 1, 3), {"group": 8}),
]


@pytest.mark.parametrize(("shape", "weight", "attributes"), CONVOLUTIONS, ids=str)
def test_conv(converted, shape, weight, attributes):
    w = random(*weight, low=-0.3, high=0.3)
    check(converted, model("Conv", [shape], [w], **attributes), tolerance=1e-4)
    check(converted, model("Conv", [shape], [w, random(weight[0])], **attributes), tolerance=1e-4)


@pytest.mark.parametrize(
    ("weight", "attributes"),
    [
        ((6, 4, 2, 2), {"strides": (2, 2)}),
        ((6, 5, 3, 3), {"strides": (2, 2), "pads": (1, 1, 1, 1), "output_padding": (1, 1)}),
        ((6, 2, 4, 4), {"strides": (2, 2), "pads": (1, 1, 1, 1), "group": 3}),
        ((6, 1, 3, 3), {"group": 6, "pads": (1, 0, 0, 1)}),
        ((6, 16, 3, 3), {"dilations": (2, 2)}),
    ],
    ids=str,
)
def test_conv_transpose(converted, weight, attributes):
    w = random(*weight, low=-0.3, high=0.3)
    bias = random(weight[1] * attributes.get("group", 1))
    check(converted, model("ConvTranspose", [IMAGE], [w, bias], **attributes), tolerance=1e-4)


def test_matrix_products(converted):
    w, bias = random(33, 10), random(10)
    check(converted, model("Gemm", [(1, 33)], [w, bias]), tolerance=1e-4)
    check(converted, model("Gemm", [(5, 33)], [w, bias], alpha=0.5, beta=2.0), tolerance=1e-4)
    check(converted, model("Gemm", [(1, 10)], [w], transB=1), tolerance=1e-4)
    check(converted, model("MatMul", [(1, 33)], [w]), tolerance=1e-4)
    check(converted, model("MatMul", [(1, 7, 33)], [w]), tolerance=1e-4)
    check(converted, model("MatMul", [(1, 4, 7, 33)], [w]), tolerance=1e-4)
    check(converted, model("MatMul", [(1, 4, 7, 8), (1, 4, 8, 5)]), tolerance=1e-4)
    check(converted, model("MatMul", [(1, 7, 8), (1, 8, 5)]), tolerance=1e-4)
    check(converted, model("MatMul", [(7, 8), (8, 5)]), tolerance=1e-4)


def test_normalizations(converted):
    four = [random(6, low=0.5), random(6), random(6), random(6, low=0.5)]
    check(converted, model("BatchNormalization", [IMAGE], four), tolerance=1e-4)
    check(converted, model("InstanceNormalization", [IMAGE], four[:2]), tolerance=1e-4)
    # before 1.0.20261020 with a reciprocal root of 12 bits
    check(converted, model("LayerNormalization", [IMAGE], [random(10), random(10)]), tolerance=1e-2)
    both = [random(6, 8, 10), random(6, 8, 10)]
    check(converted, model("LayerNormalization", [IMAGE], both, axis=1), tolerance=1e-2)
    check(converted, model("LRN", [IMAGE], size=5, alpha=1e-2), tolerance=1e-4)


@pytest.mark.parametrize(
    ("proto", "says"),
    [
        (model("Hardmax", [IMAGE]), "cannot write this operator"),
        (model("Conv", [(2, 3, 8, 8)], [random(4, 3, 3, 3)]), "one image"),
        (model("Conv", [(1, 3, 8, 8), (4, 3, 3, 3)]), "computed at run time"),
        (model("Slice", [IMAGE], [np.array([n], i64) for n in (-1, -9, 3, -1)]), "backwards"),
        (model("Resize", [IMAGE], [NOTHING, NOTHING, np.array((1, 6, 9, 9), i64)]), "nearest"),
        (model("MaxPool", [IMAGE], kernel_shape=(2, 2), dilations=(2, 2)), "dilations"),
    ],
)
def test_what_ncnn_cannot_run_is_refused_by_name(converted, proto, says):
    with pytest.raises(ValueError, match=says):
        converted(proto)


def test_the_file_is_checked_for_names(converted):
    """White space and repeated names would break the text file; outputs may also be read."""
    node = helper.make_node
    nodes = [node("Relu", ["x"], ["a b"], "my relu"), node("Neg", ["a b"], ["y"], "my_relu")]
    check(converted, whole(nodes, {"x": (1, 5)}, ["y", "a b"], {}), tolerance=0)
