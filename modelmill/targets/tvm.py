"""TVM on CPU, w8a8, by kernels of our own: integer sums, then float32 until the next tensor.

A convolution adds exact integers, then goes to float32 by one scale for each channel and adds the
bias; activation and residual follow in registers, and the outcome is quantized only where another
integer kernel reads it. So a tensor inside such a chain does not exist, and nothing is rounded to 8
bits that only floats read.
"""

from modelmill.numerics import Arithmetic
from modelmill.targets.formats import NARROW_PER_CHANNEL, U8
from modelmill.targets.patterns import MOVES, NEAREST_RESIZE, NO_PADS, PLAIN_GEMM, PRODUCT, ZERO_PAD
from modelmill.targets.target import OpRule, Scheme, Target

MOVEMENT = (*MOVES, "Split")
PRODUCTS = ("Conv", "Gemm", "MatMul")
SOURCE = "modelmill.export.tvm_kernels, compiled by apache-tvm 0.27.0.post1"

PLUGIN = Target(
    name="tvm",
    runtime="tvm",
    # vpdpbusd multiplies unsigned by signed bytes; -128 would be as good, but gains nothing.
    schemes=(Scheme("w8a8", activation=U8, weight=NARROW_PER_CHANNEL),),
    rules=(
        OpRule("Conv", PRODUCT, float_output=True, anchor=True),
        OpRule("Gemm", PRODUCT, float_output=True, anchor=True, attributes=PLAIN_GEMM),
        OpRule("MatMul", PRODUCT, float_output=True, anchor=True),
        OpRule("Add", ("activation", "activation"), float_output=True),
        OpRule("Mul", ("activation", "activation"), float_output=True),
        OpRule("LeakyRelu", ("activation",), float_output=True),
        # Windows that count different numbers of elements stay float: one factor is for all.
        OpRule("AveragePool", ("activation",), attributes=(("count_include_pad", (1,)),)),
        OpRule("AveragePool", ("activation",), attributes=NO_PADS),
        OpRule("GlobalAveragePool", ("activation",)),
        OpRule("Concat", ("activation",), variadic=True),
        OpRule("MaxPool", ("activation",), output="same"),
        NEAREST_RESIZE,
        ZERO_PAD,
        *(OpRule(op, ("activation",), output="same") for op in MOVEMENT),
    ),
    fused=(
        ("Conv", "Add", "Relu"),
        ("Conv", "Add"),
        ("Conv", "Relu"),
        ("Conv", "Clip"),
        ("Conv", "LeakyRelu"),
        ("Gemm", "Relu"),
        ("Add", "Relu"),
    ),
    arithmetic=Arithmetic(
        requantize="dequantize",
        average_pool="ratio",
        global_average_pool="ratio",
        quantize="reciprocal",
        float_products="in_turn",
    ),
    float_kernels=(
        *((op, op) for op in (*PRODUCTS, "Add", "Mul", "LeakyRelu", "Concat", "MaxPool")),
        *((op, op) for op in ("AveragePool", "GlobalAveragePool", "Resize", "Pad", *MOVEMENT)),
    ),
    source=SOURCE,
)
