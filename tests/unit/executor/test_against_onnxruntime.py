"""Operators with many options, against ONNX Runtime on configurations drawn at random.

The node tests fix a few configurations; here are the ones between. Left out is what ONNX Runtime
does otherwise than the standard: SAME padding where the stride exceeds the window, align_corners or
tf_crop_and_resize with a scale that gives no whole size or is 1.
"""

import random

import numpy as np
import onnx
import onnx.helper as oh
import onnx_ir
import pytest

from modelmill.executor import Module

ort = pytest.importorskip("onnxruntime")
DRAWS = 40


def normal(chance, *shape):
    return np.random.default_rng(chance.getrandbits(32)).standard_normal(shape).astype("f")


def ints(*values):
    return np.array(values, dtype=np.int64)


def window(chance, size, kernel):
    """Strides, dilations and padding that leave at least one window."""
    strides = [chance.randint(1, min(3, k)) for k in kernel]
    made = {
        "strides": strides,
        "auto_pad": chance.choice(["NOTSET", "NOTSET", "SAME_UPPER", "VALID"]),
    }
    if made["auto_pad"] == "NOTSET":
        made["dilations"] = [chance.randint(1, 2) for _ in kernel]
        made["pads"] = [chance.randint(0, k - 1) for k in (*kernel, *kernel)]
    if made["auto_pad"] == "SAME_UPPER":
        made["auto_pad"] = chance.choice(["SAME_UPPER", "SAME_LOWER"])
    return made


def conv(chance):
    size, kernel, group = (8, 9), [chance.randint(1, 3) for _ in "hw"], chance.choice([1, 2])
    inputs = [normal(chance, 2, 4, *size), normal(chance, 6, 4 // group, *kernel)]
    inputs.append(chance.choice([None, normal(chance, 6)]))
    return "Conv", inputs, window(chance, size, kernel) | {"group": group}, {}


def conv_transpose(chance):
    kernel, group = [chance.randint(1, 4) for _ in "hw"], chance.choice([1, 2])
    strides = [chance.randint(1, 3) for _ in "hw"]
    attributes = {"strides": strides, "dilations": [chance.randint(1, 2) for _ in "hw"]}
    attributes |= {"group": group, "pads": [chance.randint(0, k - 1) for k in (*kernel, *kernel)]}
    if chance.random() < 0.5:
        attributes["output_padding"] = [chance.randint(0, s - 1) for s in strides]
    inputs = [normal(chance, 2, 4, 5, 6), normal(chance, 4, 3, *kernel)]
    return "ConvTranspose", [*inputs, normal(chance, 3 * group)], attributes, {}


def max_pool(chance):
    kernel = [chance.randint(1, 4) for _ in "hw"]
    attributes = window(chance, (8, 9), kernel) | {"kernel_shape": kernel}
    attributes["ceil_mode"] = chance.randint(0, 1)
    opset, outputs = chance.choice([11, 12, 22]), chance.randint(1, 2)
    return "MaxPool", [normal(chance, 2, 3, 8, 9)], attributes, {"opset": opset, "outputs": outputs}


def average_pool(chance):
    kernel, opset = [chance.randint(1, 4) for _ in "hw"], chance.choice([11, 19, 22])
    attributes = window(chance, (8, 9), kernel) | {"kernel_shape": kernel}
    attributes |= {"ceil_mode": chance.randint(0, 1), "count_include_pad": chance.randint(0, 1)}
    if opset < 19:
        attributes.pop("dilations", None)
    return "AveragePool", [normal(chance, 2, 3, 8, 9)], attributes, {"opset": opset}


def pad(chance):
    shape = [chance.randint(3, 6) for _ in range(chance.randint(1, 4))]
    mode = chance.choice(["constant", "reflect", "edge", "wrap"])
    least = -1 if mode == "constant" else 0
    pads = ints(*(chance.randint(least, 2) for _ in (*shape, *shape)))
    inputs = [normal(chance, *shape), pads]
    if mode == "constant":
        inputs.append(np.float32(1.5))
    return "Pad", inputs, {"mode": mode}, {"opset": 19}


def slice_(chance):
    shape = [chance.randint(1, 6) for _ in range(chance.randint(1, 4))]
    axes = chance.sample(range(len(shape)), chance.randint(1, len(shape)))
    far = [2**31 - 1, -(2**31), 2**63 - 1]
    starts = [chance.randint(-8, 8) for _ in axes]
    ends = [chance.choice([chance.randint(-8, 8), *far]) for _ in axes]
    steps = [chance.choice([1, 2, 3, -1, -2]) for _ in axes]
    axes = [a - chance.choice([0, len(shape)]) for a in axes]
    numbers = [ints(*v) for v in (starts, ends, axes, steps)]
    return "Slice", [normal(chance, *shape), *numbers], {}, {}


def resize(chance):
    coordinates = chance.choice(
        ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]
    )
    attributes = {
        "mode": chance.choice(["nearest", "linear", "cubic"]),
        "coordinate_transformation_mode": coordinates,
        "nearest_mode": chance.choice(["round_prefer_floor", "floor", "ceil"]),
    }
    if attributes["mode"] == "cubic":
        attributes["cubic_coeff_a"] = chance.choice([-0.5, -0.75])
        attributes["exclude_outside"] = chance.randint(0, 1)
    elif attributes["mode"] == "linear" and coordinates != "align_corners":
        attributes["antialias"] = chance.randint(0, 1)
    inputs = [
        normal(chance, 1, 2, 8, 10),
        None,
        None,
        ints(1, 2, *chance.choices(range(2, 20), k=2)),
    ]
    if chance.random() < 0.5:
        factors = [0.5, 1.5, 2.0, 3.0] + ([] if coordinates == "align_corners" else [0.7, 1.3])
        inputs[2:] = [np.array([1, 1, *chance.choices(factors, k=2)], "f")]
    return "Resize", inputs, attributes, {"opset": 19}


def crop_and_resize(chance):
    attributes = {
        "mode": chance.choice(["nearest", "linear"]),
        "coordinate_transformation_mode": "tf_crop_and_resize",
        "extrapolation_value": 0.25,
    }
    roi = np.array([0, 0, 0.1, 0.2, 1, 1, 0.93, 1.1], "f")
    sizes = ints(1, 2, *chance.choices([3, 5, 7, 9, 11, 13], k=2))
    return "Resize", [normal(chance, 1, 2, 8, 10), roi, None, sizes], attributes, {"opset": 13}


def softmax(chance):
    shape = [chance.randint(1, 4) for _ in range(chance.randint(1, 4))]
    axis = chance.randint(-len(shape), len(shape) - 1)
    op = chance.choice(["Softmax", "LogSoftmax"])
    return op, [normal(chance, *shape)], {"axis": axis}, {"opset": chance.choice([11, 13])}


def ranked(chance):
    """Operators whose answer among equal elements is fixed by the standard."""
    shape = [chance.randint(2, 5) for _ in range(chance.randint(1, 3))]
    axis = chance.randint(-len(shape), len(shape) - 1)
    x = np.random.default_rng(chance.getrandbits(32)).integers(0, 3, shape).astype("f")
    op = chance.choice(["ArgMax", "ArgMin", "TopK"])
    if op == "TopK":
        return op, [x, ints(2)], {"axis": axis, "largest": chance.randint(0, 1)}, {"outputs": 2}
    flags = {"keepdims": chance.randint(0, 1), "select_last_index": chance.randint(0, 1)}
    return op, [x], flags | {"axis": axis}, {}


DRAWN = [conv, conv_transpose, max_pool, average_pool, pad, slice_, resize, crop_and_resize]
DRAWN += [softmax, ranked]


def _model(op, inputs, attributes, opset=18, outputs=1):
    names = ["" if a is None else f"i{k}" for k, a in enumerate(inputs)]
    node = oh.make_node(op, names, [f"o{k}" for k in range(outputs)], name="node", **attributes)
    x = oh.make_tensor_value_info(
        "i0", oh.np_dtype_to_tensor_dtype(inputs[0].dtype), inputs[0].shape
    )
    results = [onnx.ValueInfoProto(name=name) for name in node.output]
    constants = [
        onnx.numpy_helper.from_array(np.asarray(a), n)
        for n, a in zip(names[1:], inputs[1:], strict=True)
        if a is not None
    ]
    graph = oh.make_graph([node], "g", [x], results, constants)
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=9)


@pytest.mark.parametrize("draw", DRAWN, ids=lambda f: f.__name__.strip("_"))
def test_operator(draw):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    for seed in range(DRAWS):
        op, inputs, attributes, more = draw(random.Random(seed))
        model = _model(op, inputs, attributes, **more)
        session = ort.InferenceSession(model.SerializeToString(), options)
        expected = session.run(None, {"i0": inputs[0]})
        got = Module(onnx_ir.from_proto(model))({"i0": inputs[0]})
        for (name, mine), theirs in zip(got.items(), expected, strict=True):
            where = f"seed {seed}, {attributes}, {more}, {name}"
            assert mine.numpy().dtype == theirs.dtype, where
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5, err_msg=where)
