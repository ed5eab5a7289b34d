"""TVM on CPU, w8a8, by kernels of our own: integer sums, then float32 until the next tensor.

A convolution adds exact integers, then goes to float32 by one scale for each channel and adds the
bias; activation and residual follow in registers, and the outcome is quantized only where another
integer kernel reads it. So a tensor inside such a chain does not exist, and nothing is rounded to 8
bits that only floats read.
"""

from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets.target import OpRule, Scheme, Target

U8 = QuantSpec(8, signed=False, symmetric=False)
# vpdpbusd multiplies unsigned by signed bytes; -128 would be as good, but gains nothing.
S8_PER_CHANNEL = QuantSpec(8, signed=True, symmetric=True, axis=0, narrow=True)

MOVEMENT = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Split")
PRODUCTS = ("Conv", "Gemm", "MatMul")
SOURCE = "modelmill.export.tvm_kernels, compiled by apache-tvm 0.27.0.post1"

PLUGIN = Target(
    name="tvm",
    runtime="tvm",
    schemes=(Scheme("w8a8", activation=U8, weight=S8_PER_CHANNEL),),
    rules=(
        OpRule("Conv", ("activation", "weight"), float_output=True, anchor=True),
        OpRule(
            "Gemm",
            ("activation", "weight"),
            float_output=True,
            anchor=True,
            attributes=(("alpha", (1.0,)), ("beta", (1.0,)), ("transA", (0,))),
        ),
        OpRule("MatMul", ("activation", "weight"), float_output=True, anchor=True),
        OpRule("Add", ("activation", "activation"), float_output=True),
        OpRule("Mul", ("activation", "activation"), float_output=True),
        OpRule("LeakyRelu", ("activation",), float_output=True),
        # Windows that count different numbers of elements stay float: one factor is for all.
        OpRule("AveragePool", ("activation",), attributes=(("count_include_pad", (1,)),)),
        OpRule(
            "AveragePool",
            ("activation",),
            attributes=(("pads", ((0, 0, 0, 0),)), ("auto_pad", ("NOTSET", "VALID"))),
        ),
        OpRule("GlobalAveragePool", ("activation",)),
        OpRule("Concat", ("activation",), variadic=True),
        OpRule("MaxPool", ("activation",), output="same"),
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
