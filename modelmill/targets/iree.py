"""IREE on the CPU (llvm-cpu), w8a8: explicit integer arithmetic that its compiler cannot undo.

What becomes integer is decided when the file is written (`modelmill.export.integer_onnx`), as
torch-mlir's importer computes QDQ convolutions with one scale per channel in float. Activations are
int8, so that both operands of a product have one sign; weights symmetric, so that no zero point is
subtracted inside; the bias int32.
"""

from modelmill.numerics import Arithmetic
from modelmill.targets.formats import BIAS_PER_CHANNEL, S8, S8_PER_CHANNEL
from modelmill.targets.patterns import LAYER, MOVES, NEAREST_RESIZE, PLAIN_GEMM, ZERO_PAD
from modelmill.targets.target import OpRule, Scheme, Target

MOVEMENT = (*MOVES, "Expand", "MaxPool")

PLUGIN = Target(
    name="iree",
    runtime="iree",
    schemes=(Scheme("w8a8", activation=S8, weight=S8_PER_CHANNEL, bias=BIAS_PER_CHANNEL),),
    rules=(
        OpRule(
            "Conv",
            LAYER,
            float_output=True,
            anchor=True,
            attributes=(("auto_pad", ("NOTSET", "VALID")),),
        ),
        OpRule("Gemm", LAYER, float_output=True, anchor=True, attributes=PLAIN_GEMM),
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
        NEAREST_RESIZE,
        ZERO_PAD,
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
    # Float products as the adapter names them, then as IREE would name one that is not in the file.
    float_kernels=(
        ("Conv", "Conv"),
        ("Gemm", "Gemm"),
        ("MatMul", "MatMul"),
        ("conv", "Conv"),
        ("matmul_like", "Conv"),
        ("matvec_like", "Gemm"),
    ),
    source="modelmill.export.integer_onnx writes it; torch-mlir, FuseQuantizedOps and the linalg "
    "lowering of aten.convolution; iree-base-compiler 3.13",
)
