"""Tengine in uint8, w8a8: simulated.

uint8 asymmetric per tensor, weights too. Its converter joins a convolution with ReLU or ReLU6.
"""

from modelmill.numerics import Arithmetic
from modelmill.targets.formats import BIAS, U8
from modelmill.targets.patterns import LAYER, NEAREST_RESIZE, PLAIN_GEMM
from modelmill.targets.target import OpRule, Scheme, Target

MOVEMENT = ("Reshape", "Flatten", "Transpose", "Slice", "Gather", "Split", "MaxPool")
FUNCTIONS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSwish")

PLUGIN = Target(
    name="tengine",
    runtime=None,
    schemes=(Scheme("w8a8", activation=U8, weight=U8, bias=BIAS),),
    rules=(
        OpRule("Conv", LAYER, anchor=True),
        OpRule("Gemm", LAYER, anchor=True, attributes=PLAIN_GEMM),
        OpRule("Add", ("activation", "activation")),
        OpRule("Mul", ("activation", "activation")),
        OpRule("AveragePool", ("activation",)),
        OpRule("GlobalAveragePool", ("activation",)),
        OpRule("Concat", ("activation",), variadic=True),
        NEAREST_RESIZE,
        *(OpRule(op, ("activation",)) for op in FUNCTIONS),
        *(OpRule(op, ("activation",), output="same") for op in MOVEMENT),
    ),
    fused=(("Conv", "Relu"), ("Conv", "Clip")),
    arithmetic=Arithmetic(requantize="dequantize"),
    export=("tengine",),
    source="MQBench's Tengine_u8 quantizer and deploy_tengine (scheme, fused, file); "
    "github.com/OpenPPL/ppq, TengineQuantizer (operators); movement is assumed",
)
