"""IREE on the CPU (llvm-cpu), w8a8: explicit integer arithmetic that its compiler cannot undo.

What becomes integer is decided when the file is written (`modelmill.export.integer_onnx`), as
torch-mlir's importer computes QDQ convolutions with one scale per channel in float. Activations are
int8, so that both operands of a product have one sign; weights symmetric, so that no zero point is
subtracted inside; the bias int32.
"""

from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets.target import OpRule, Scheme, Target

S8 = QuantSpec(8, signed=True, symmetric=False)
S8_PER_CHANNEL = QuantSpec(8, signed=True, symmetric=True, axis=0)
BIAS = QuantSpec(32, signed=True, symmetric=True, axis=0)

MOVEMENT = (
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Slice",
    "Gather",
    "Expand",
    "MaxPool",
)

PLUGIN = Target(
    name="iree",
    runtime="iree",
    schemes=(Scheme("w8a8", activation=S8, weight=S8_PER_CHANNEL, bias=BIAS),),
    rules=(
        OpRule(
            "Conv",
            ("activation", "weight", "bias"),
            float_output=True,
            anchor=True,
            attributes=(("auto_pad", ("NOTSET", "VALID")),),
        ),
        OpRule(
            "Gemm",
            ("activation", "weight", "bias"),
            float_output=True,
            anchor=True,
            attributes=(("alpha", (1.0,)), ("beta", (1.0,)), ("transA", (0,))),
        ),
        OpRule("MatMul", ("activation", "weight"), float_output=True, anchor=True),
        OpRule("Add", ("activation", "activation"), float_output=True),
        # Windows that count different numbers of elements have no single factor: they stay float.
        OpRule(
            "AveragePool",
            ("activation",),
            attributes=(
                ("pads", ((0, 0, 0, 0),)),
                ("ceil_mode", (0,)),
                ("auto_pad", ("NOTSET",)),
            ),
        ),
        OpRule(
            "AveragePool",
            ("activation",),
            attributes=(
                ("count_include_pad", (1,)),
                ("ceil_mode", (0,)),
                ("auto_pad", ("NOTSET",)),
            ),
        ),
        OpRule("GlobalAveragePool", ("activation",)),
        OpRule("Concat", ("activation",), variadic=True),
        OpRule("Resize", ("activation",), output="same", attributes=(("mode", ("nearest",)),)),
        OpRule(
            "Pad",
            ("activation",),
            output="same",
            attributes=(("mode", ("constant",)),),
            constants=((2, 0.0),),
        ),
        *(OpRule(op, ("activation",), output="same") for op in MOVEMENT),
    ),
    fused=(
        ("Conv", "Relu"),
        ("Conv", "Clip"),
        ("Conv", "LeakyRelu"),
        ("Gemm", "Relu"),
        ("Add", "Relu"),
    ),
    arithmetic=Arithmetic(
        requantize="multiply",
        add="fma",
        average_pool="ratio",
        global_average_pool="ratio",
        float_products="in_turn",
    ),
    # The file holds integers where the plan does: the compiler has nothing to fall back to.
    source="modelmill.export.integer_onnx writes it; torch-mlir, FuseQuantizedOps and the linalg "
    "lowering of aten.convolution; iree-base-compiler 3.13",
)
