"""Gradients of every differentiable operator, in float64, against finite differences."""

import inspect
import zlib

import pytest
import torch

from modelmill.executor import operators

# Integers or truth values come out, or steps whose gradient is zero or undefined everywhere.
STEPS = {
    *("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Xor"),
    *(
        "ArgMax",
        "ArgMin",
        "IsInf",
        "IsNaN",
        "NonMaxSuppression",
        "NonZero",
        "OneHot",
        "Shape",
        "Size",
    ),
    *("Ceil", "Floor", "Round", "Sign", "DequantizeLinear", "QuantizeLinear"),
    *("Cast", "CastLike", "Constant", "ConstantOfShape", "Range"),
}

X = (2, 3, 4)  # a shape stands for a random tensor that has a gradient
IMAGE = (1, 4, 5, 4)


def positive(*shape):
    """Numbers in [0.5, 1.5), where roots, logarithms and powers are smooth."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) + 0.5


INDEX = torch.tensor([[0, 2], [-1, 1]])
CASES = {
    "Abs": [((X,), {})],
    "Add": [((X, (3, 1)), {})],
    "Atan": [((X,), {})],
    "Attention": [
        (((1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 3)), {}),
        (
            ((1, 3, 8), (1, 3, 4), (1, 3, 4)),
            {"q_num_heads": 2, "kv_num_heads": 1, "is_causal": 1, "softcap": 2.0},
        ),
    ],
    "AveragePool": [
        ((IMAGE,), {"kernel_shape": (3, 2), "pads": (1, 0, 1, 0), "strides": (2, 1)}),
        ((IMAGE,), {"kernel_shape": (3, 2), "pads": (1, 0, 0, 1), "ceil_mode": 1}),
        ((IMAGE,), {"kernel_shape": (2, 2), "dilations": (2, 1), "auto_pad": "SAME_UPPER"}),
    ],
    "BatchNormalization": [((IMAGE, (4,), (4,), torch.zeros(4), positive(4)), {})],
    "Celu": [((X,), {"alpha": 0.7})],
    "Clip": [((X, -0.5, 0.6), {})],
    "Concat": [((X, (2, 1, 4)), {"axis": 1})],
    "Conv": [
        ((IMAGE, (4, 2, 3, 3), (4,)), {"group": 2, "pads": (1, 1, 1, 1), "strides": (2, 1)}),
        ((IMAGE, (3, 4, 2, 3)), {"pads": (0, 1, 1, 2), "dilations": (2, 1)}),
        (((2, 3, 7), (4, 3, 3), (4,)), {"auto_pad": "SAME_LOWER"}),
        (((1, 2, 3, 4, 3), (2, 2, 2, 2, 2)), {}),
    ],
    "ConvTranspose": [
        ((IMAGE, (4, 2, 3, 3), (4,)), {"group": 2, "pads": (1, 1, 1, 1), "strides": (2, 2)}),
        ((IMAGE, (4, 2, 3, 3), (2,)), {"pads": (0, 1, 1, 0), "strides": (2, 1)}),
        ((IMAGE, (4, 2, 2, 2)), {"output_shape": (11, 9), "strides": (2, 2)}),
    ],
    "Cos": [((X,), {})],
    "CumSum": [((X, 1), {"exclusive": 1, "reverse": 1})],
    "DepthToSpace": [((IMAGE,), {"blocksize": 2}), ((IMAGE,), {"blocksize": 2, "mode": "CRD"})],
    "Div": [((X, positive(4)), {})],
    "Dropout": [((X,), {})],
    "Einsum": [(((3, 4), (4, 5)), {"equation": "ij,jk->ki"})],
    "Elu": [((X,), {"alpha": 0.7})],
    "Erf": [((X,), {})],
    "Exp": [((X,), {})],
    "Expand": [(((3, 1), (2, 1, 4)), {})],
    "Flatten": [((X,), {"axis": 2})],
    "Gather": [((X, INDEX), {"axis": 1}), ((X, torch.tensor(-1)), {"axis": 2})],
    "GatherElements": [(((3, 4), INDEX), {"axis": 1})],
    "GatherND": [((X, INDEX), {}), ((X, INDEX), {"batch_dims": 1})],
    "Gelu": [((X,), {}), ((X,), {"approximate": "tanh"})],
    "Gemm": [(((4, 3), (5, 4), (5,)), {"alpha": 0.5, "beta": 2.0, "transA": 1, "transB": 1})],
    "GlobalAveragePool": [((IMAGE,), {})],
    "GlobalMaxPool": [((IMAGE,), {})],
    "GridSample": [
        ((IMAGE, (1, 2, 3, 2)), {}),
        ((IMAGE, (1, 2, 3, 2)), {"mode": "cubic", "padding_mode": "border", "align_corners": 1}),
    ],
    "GroupNormalization": [
        ((IMAGE, (4,), (4,)), {"num_groups": 2, "opset": 21}),
        ((IMAGE, (2,), (2,)), {"num_groups": 2, "opset": 18}),
    ],
    "HardSigmoid": [((X,), {})],
    "HardSwish": [((X,), {})],
    "Identity": [((X,), {})],
    "InstanceNormalization": [((IMAGE, (4,), (4,)), {})],
    "LRN": [((IMAGE,), {"size": 4, "alpha": 0.1})],
    "LayerNormalization": [((X, (4,), (4,)), {}), ((X, (3, 4)), {"axis": 1})],
    "LeakyRelu": [((X,), {"alpha": 0.2})],
    "Log": [((positive(X),), {})],
    "LogSoftmax": [((X,), {"axis": 1}), ((X,), {"opset": 11})],
    "LpNormalization": [((X,), {"axis": 1}), ((X,), {"axis": 1, "p": 1})],
    "LpPool": [((positive(IMAGE),), {"kernel_shape": (2, 3), "p": 3})],
    "MatMul": [(((2, 3, 4), (4, 5)), {})],
    "Max": [((X, (3, 1), (4,)), {})],
    "MaxPool": [
        ((IMAGE,), {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1), "strides": (2, 2)}),
        ((IMAGE,), {"kernel_shape": (3, 3), "pads": (0, 1, 2, 0), "dilations": (1, 2)}),
    ],
    "Mean": [((X, (3, 1)), {})],
    "Min": [((X, (3, 1), (4,)), {})],
    "Mish": [((X,), {})],
    "Mod": [((X, torch.full((4,), 0.7)), {"fmod": 1})],
    "Mul": [((X, (3, 1)), {})],
    "Neg": [((X,), {})],
    "PRelu": [((IMAGE, (4, 1, 1)), {}), ((IMAGE, (4,)), {}), ((IMAGE, (1,)), {})],
    "Pad": [
        ((IMAGE, (0, 0, 1, -1, 0, 0, 2, 1), 0.5), {}),
        ((IMAGE, (1, 0, 2, 1), None, (2, 3)), {"mode": "reflect"}),
        ((IMAGE, (1, 0, 2, 1), None, (2, 3)), {"mode": "edge"}),
        ((IMAGE, (1, 0, 2, 1), None, (2, 3)), {"mode": "wrap"}),
    ],
    "Pow": [((X, torch.tensor(3.0)), {}), ((positive(X), (4,)), {})],
    "RMSNormalization": [((X, (4,)), {})],
    "Reciprocal": [((positive(X),), {})],
    "ReduceL1": [((X, (1,)), {})],
    "ReduceL2": [((X, (0, 2)), {"keepdims": 0})],
    "ReduceLogSum": [((positive(X), (1,)), {})],
    "ReduceLogSumExp": [((X, (1, 2)), {})],
    "ReduceMax": [((X, (1, 2)), {})],
    "ReduceMean": [((X, (-1,)), {"keepdims": 0})],
    "ReduceMin": [((X,), {})],
    "ReduceProd": [((X, (0, 2)), {})],
    "ReduceSum": [((X,), {}), ((X,), {"noop_with_empty_axes": 1})],
    "ReduceSumSquare": [((X, (1,)), {})],
    "Relu": [((X,), {})],
    "Reshape": [((X, (0, -1)), {})],
    "Resize": [
        ((IMAGE, None, (1.0, 1.0, 2.0, 2.0)), {}),
        ((IMAGE, None, None, (1, 4, 7, 3)), {}),
        ((IMAGE, None, None, (1, 4, 8, 9)), {"mode": "linear"}),
        (
            (IMAGE, None, (1.0, 1.0, 0.6, 1.5)),
            {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
        ),
        (
            (IMAGE, None, None, (8, 9)),
            {"mode": "cubic", "axes": (2, 3), "exclude_outside": 1, "cubic_coeff_a": -0.5},
        ),
        ((IMAGE, None, None, (1, 4, 3, 2)), {"mode": "cubic", "antialias": 1}),
    ],
    "ScatterElements": [
        (((3, 4), INDEX, (2, 2)), {"axis": 1}),
        (((3, 4), INDEX, (2, 2)), {"axis": 1, "reduction": "add"}),
    ],
    "ScatterND": [
        ((X, INDEX, (2, 4)), {}),
        ((X, INDEX, (2, 4)), {"reduction": "add"}),
        ((X, INDEX, (2, 4)), {"reduction": "mul"}),
    ],
    "Selu": [((X,), {})],
    "Shrink": [((X,), {"bias": 0.1, "lambd": 0.3})],
    "Sigmoid": [((X,), {})],
    "Sin": [((X,), {})],
    "Slice": [((X, (0, -1), (9, -9), (1, 2), (2, -2)), {})],
    "Softmax": [((X,), {"axis": 1}), ((X,), {"axis": 1, "opset": 11})],
    "Softplus": [((X,), {})],
    "Softsign": [((X,), {})],
    "SpaceToDepth": [(((2, 1, 4, 6),), {"blocksize": 2})],
    "Split": [((X,), {"axis": 2, "n_outputs": 2})],
    "Sqrt": [((positive(X),), {})],
    "Squeeze": [(((2, 1, 3),), {}), (((2, 1, 3), (-2,)), {})],
    "Sub": [((X, (3, 1)), {})],
    "Sum": [((X, (3, 1), (4,)), {})],
    "Swish": [((X,), {}), ((X,), {"alpha": 0.5})],
    "Tan": [((X,), {})],
    "Tanh": [((X,), {})],
    "ThresholdedRelu": [((X,), {"alpha": 0.3})],
    "Tile": [((X, (1, 2, 3)), {})],
    "TopK": [((X, 2), {})],
    "Transpose": [((X,), {}), ((X,), {"perm": (2, 0, 1)})],
    "Trilu": [((X, 1), {}), ((X,), {"upper": 0})],
    "Unsqueeze": [((X, (0, -1)), {})],
    "Upsample": [((IMAGE, (1.0, 1.0, 2.0, 3.0)), {})],
    "Where": [((torch.tensor([True, False, True, False]), X, (3, 1)), {})],
}


def _inputs(op, values):
    """Random float64 for shapes, except where an operator wants numbers; the rest as it is."""
    generator = torch.Generator().manual_seed(zlib.crc32(op.encode()))
    numbers = {"Expand", "Reshape", "Tile", "Pad", "Slice", "Unsqueeze", "Squeeze", "Upsample"}
    numbers |= {"Resize"} | {name for name in operators() if name.startswith("Reduce")}
    for i, value in enumerate(values):
        if isinstance(value, tuple) and not (op in numbers and i > 0):
            made = torch.randn(value, generator=generator, dtype=torch.float64)
            yield made.requires_grad_()
        elif isinstance(value, torch.Tensor) and value.is_floating_point():
            yield value.double().requires_grad_(op not in ("BatchNormalization", "Mod", "Pow"))
        else:
            yield value


@pytest.mark.parametrize(
    ("op", "values", "attributes"),
    [pytest.param(op, *c, id=f"{op}-{i}") for op, cs in CASES.items() for i, c in enumerate(cs)],
)
def test_gradient(op, values, attributes):
    function = operators()[op]
    filled = {"opset": 20, "n_outputs": 1}
    asked = inspect.signature(function).parameters
    attributes = {k: v for k, v in filled.items() if k in asked} | attributes
    inputs = list(_inputs(op, values))
    free = [v for v in inputs if isinstance(v, torch.Tensor) and v.requires_grad]

    def run(*tensors):
        given = iter(tensors)
        filled = [
            next(given) if isinstance(v, torch.Tensor) and v.requires_grad else v for v in inputs
        ]
        result = function(*filled, **attributes)
        results = result if isinstance(result, tuple | list) else (result,)
        return tuple(r for r in results if r.is_floating_point())

    assert torch.autograd.gradcheck(run, free)


def test_every_operator_is_checked():
    assert sorted([*CASES, *STEPS]) == sorted(operators())
