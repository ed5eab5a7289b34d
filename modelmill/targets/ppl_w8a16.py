"""OpenPPL on DSPs with 16-bit activations (PPL W8A16): simulated.

Weights 8 bits asymmetric per tensor, activations 16 bits asymmetric. With so many steps the range
hardly matters and the loss is that of the weights alone.
"""

from modelmill.numerics import Arithmetic
from modelmill.targets.formats import BIAS, U8, U16
from modelmill.targets.patterns import LAYER, LINEAR_RESIZE, NEAREST_RESIZE, PLAIN_GEMM, ZERO_PAD
from modelmill.targets.target import OpRule, Scheme, Target

MOVEMENT = ("Reshape", "Flatten", "Transpose", "Slice", "Gather", "Split", "MaxPool")
FUNCTIONS = ("Relu", "PRelu", "LeakyRelu", "Clip", "Sigmoid", "Softmax", "ReduceMean")

PLUGIN = Target(
    name="ppl_w8a16",
    runtime=None,
    schemes=(Scheme("w8a16", activation=U16, weight=U8, bias=BIAS),),
    rules=(
        OpRule("Conv", LAYER, anchor=True),
        OpRule("ConvTranspose", LAYER, anchor=True),
        OpRule("Gemm", LAYER, anchor=True, attributes=PLAIN_GEMM),
        *(OpRule(op, ("activation", "activation")) for op in ("Add", "Sub", "Mul", "Div")),
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
    export=("ppl_dsp",),
    source="MQBench, BackendType.PPLW8A16 (scheme) and its clip-range file; "
    "github.com/OpenPPL/ppq, DSPQuantizer (operators, fused activations). How the DSP requantizes "
    "is not public: one factor per layer is assumed",
)
