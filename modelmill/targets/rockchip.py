"""Rockchip NPUs (RV1126, RK3568 and others, RKNN), w8a8: simulated.

uint8 asymmetric per tensor, weights too, biases int32; outputs of the model are codes. What is
joined by a Concat has one encoding before and behind it. A ReLU is part of the layer before it.
"""

from modelmill.numerics import Arithmetic
from modelmill.targets.formats import BIAS, U8
from modelmill.targets.patterns import LAYER, LINEAR_RESIZE, NEAREST_RESIZE, PLAIN_GEMM
from modelmill.targets.target import OpRule, Scheme, Target

MOVEMENT = ("Reshape", "Flatten", "Transpose", "Slice", "Gather", "Split", "MaxPool")
FUNCTIONS = ("Relu", "PRelu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "Abs")

PLUGIN = Target(
    name="rockchip",
    runtime=None,
    schemes=(Scheme("w8a8", activation=U8, weight=U8, bias=BIAS),),
    rules=(
        OpRule("Conv", LAYER, anchor=True),
        OpRule("ConvTranspose", LAYER, anchor=True),
        OpRule("Gemm", LAYER, anchor=True, attributes=PLAIN_GEMM),
        OpRule("Add", ("activation", "activation")),
        OpRule("Mul", ("activation", "activation")),
        OpRule("AveragePool", ("activation",)),
        OpRule("GlobalAveragePool", ("activation",)),
        OpRule("Concat", ("activation",), output="same", variadic=True),
        NEAREST_RESIZE,
        LINEAR_RESIZE,
        *(OpRule(op, ("activation",)) for op in FUNCTIONS),
        *(OpRule(op, ("activation",), output="same") for op in MOVEMENT),
    ),
    fused=(("Conv", "Relu"), ("Conv", "Clip"), ("Gemm", "Relu"), ("Add", "Relu")),
    arithmetic=Arithmetic(requantize="multiply"),
    export=("rknn",),
    source="Dipoorlet's rv (scheme, operators, Concat, merged ReLU, file); RKNN-Toolkit's operator "
    "list (movement, LeakyRelu, Tanh). How the NPU requantizes is not public: one factor per layer "
    "is assumed",
)
