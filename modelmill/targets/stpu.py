"""STPU, w8a8: simulated.

Symmetric codes in -127..127, one scale per tensor, weights too; int32 biases. The chip's file also
wants the smallest exponent of each layer's accumulator, which follows from the ranges.
"""

from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets.formats import BIAS
from modelmill.targets.patterns import LAYER, LINEAR_RESIZE, NEAREST_RESIZE, PLAIN_GEMM
from modelmill.targets.target import OpRule, Scheme, Target

S8 = QuantSpec(8, signed=True, symmetric=True, narrow=True)

MOVEMENT = ("Reshape", "Flatten", "Transpose", "Slice", "Gather", "Split", "MaxPool")
FUNCTIONS = ("Relu", "PRelu", "Clip", "Abs", "Sigmoid")

PLUGIN = Target(
    name="stpu",
    runtime=None,
    schemes=(Scheme("w8a8", activation=S8, weight=S8, bias=BIAS),),
    rules=(
        OpRule("Conv", LAYER, anchor=True),
        OpRule("ConvTranspose", LAYER, anchor=True),
        OpRule("Gemm", LAYER, anchor=True, attributes=PLAIN_GEMM),
        OpRule("Add", ("activation", "activation")),
        OpRule("Mul", ("activation", "activation")),
        OpRule("AveragePool", ("activation",)),
        OpRule("GlobalAveragePool", ("activation",)),
        OpRule("Concat", ("activation",), variadic=True),
        NEAREST_RESIZE,
        LINEAR_RESIZE,
        *(OpRule(op, ("activation",)) for op in FUNCTIONS),
        *(OpRule(op, ("activation",), output="same") for op in MOVEMENT),
    ),
    fused=(("Conv", "Relu"), ("Conv", "Clip"), ("Gemm", "Relu"), ("Add", "Relu")),
    arithmetic=Arithmetic(requantize="multiply"),
    export=("stpu",),
    source="Dipoorlet's stpu and MQBench's deploy_stpu (scheme, operators, merged ReLU and Clip, "
    "file); movement is assumed. How the chip requantizes is not public: one factor per layer is "
    "assumed",
)
