"""Qualcomm SNPE and QNN (AI Engine Direct) on the Hexagon processor, w8a8 and w8a16: simulated.

Everything is integer: unsigned asymmetric codes, one scale per tensor, weights too; biases have 32
bits. The converter takes a float model and a file of encodings that overrides its own calibration,
or a QDQ model. Outputs of the model are codes as well.
"""

from modelmill.numerics import Arithmetic
from modelmill.targets.formats import BIAS, U8, U16
from modelmill.targets.patterns import (
    LAYER,
    LINEAR_RESIZE,
    MOVES,
    NEAREST_RESIZE,
    PLAIN_GEMM,
    ZERO_PAD,
)
from modelmill.targets.target import OpRule, Scheme, Target

MOVEMENT = (*MOVES, "Split", "MaxPool", "DepthToSpace", "SpaceToDepth")
FUNCTIONS = ("Relu", "PRelu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSwish", "Softmax", "Abs")

PLUGIN = Target(
    name="qnn",
    runtime=None,
    schemes=(
        Scheme("w8a8", activation=U8, weight=U8, bias=BIAS),
        Scheme("w8a16", activation=U16, weight=U8, bias=BIAS),
    ),
    rules=(
        OpRule("Conv", LAYER, anchor=True),
        OpRule("ConvTranspose", LAYER, anchor=True),
        OpRule("Gemm", LAYER, anchor=True, attributes=PLAIN_GEMM),
        OpRule("MatMul", ("activation", "weight"), anchor=True),
        OpRule("MatMul", ("activation", "activation")),
        *(OpRule(op, ("activation", "activation")) for op in ("Add", "Sub", "Mul")),
        OpRule("AveragePool", ("activation",)),
        OpRule("GlobalAveragePool", ("activation",)),
        OpRule("Concat", ("activation",), variadic=True),
        NEAREST_RESIZE,
        LINEAR_RESIZE,
        ZERO_PAD,
        *(OpRule(op, ("activation",)) for op in FUNCTIONS),
        *(OpRule(op, ("activation",), output="same") for op in MOVEMENT),
    ),
    fused=(("Conv", "Relu"), ("Conv", "Clip"), ("Gemm", "Relu"), ("Add", "Relu")),
    arithmetic=Arithmetic(requantize="multiply"),
    export=("aimet", "qdq"),
    source="docs.qualcomm.com, AI Engine Direct: HTP operator definitions (8 and 16 bit) and "
    "quantization overrides; scheme as MQBench's BackendType.SNPE and Dipoorlet's snpe. How the "
    "processor requantizes is not public: one factor per layer is assumed",
)
