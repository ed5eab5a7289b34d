"""NXP i.MX NPUs in dynamic fixed point, w8a8: simulated.

Every scale is a power of two, weights have one per output channel: what a layer sums is shifted to
its output, half rounded up.
"""

from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets.formats import BIAS_PER_CHANNEL
from modelmill.targets.patterns import LAYER, NEAREST_RESIZE, PLAIN_GEMM, ZERO_PAD
from modelmill.targets.target import OpRule, Scheme, Target

S8 = QuantSpec(8, signed=True, symmetric=True, power_of_two=True)
S8_PER_CHANNEL = QuantSpec(8, signed=True, symmetric=True, axis=0, power_of_two=True)

MOVEMENT = ("Reshape", "Flatten", "Transpose", "Slice", "Gather", "MaxPool")
FUNCTIONS = ("Relu", "PRelu", "LeakyRelu", "Clip", "Sigmoid")

PLUGIN = Target(
    name="nxp_imx",
    runtime=None,
    schemes=(Scheme("w8a8", activation=S8, weight=S8_PER_CHANNEL, bias=BIAS_PER_CHANNEL),),
    rules=(
        OpRule("Conv", LAYER, anchor=True),
        OpRule("ConvTranspose", LAYER, anchor=True),
        OpRule("Gemm", LAYER, anchor=True, attributes=PLAIN_GEMM),
        *(OpRule(op, ("activation", "activation")) for op in ("Add", "Sub", "Mul", "Div")),
        OpRule("AveragePool", ("activation",)),
        OpRule("GlobalAveragePool", ("activation",)),
        OpRule("Concat", ("activation",), variadic=True),
        NEAREST_RESIZE,
        ZERO_PAD,
        *(OpRule(op, ("activation",)) for op in FUNCTIONS),
        *(OpRule(op, ("activation",), output="same") for op in MOVEMENT),
    ),
    fused=(("Conv", "Relu"), ("Conv", "Clip"), ("Gemm", "Relu"), ("Add", "Relu")),
    arithmetic=Arithmetic(requantize="shift", quantize="half_up"),
    export=("imx",),
    source="Dipoorlet's imx (scheme, file); github.com/OpenPPL/ppq, NXPQuantizer (operators, "
    "powers of two, half up)",
)
