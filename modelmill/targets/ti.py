"""Texas Instruments TIDL (TDA4VM, AM68PA and others), w8a8: simulated.

Activations have scales that are powers of two; weights have any scale, one per tensor. TIDL itself
switches a tensor without negative numbers to unsigned codes, which wins one bit there; the clip
ranges in its file leave that open, the simulation stays signed.
"""

from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets.formats import BIAS
from modelmill.targets.patterns import LAYER, LINEAR_RESIZE, NEAREST_RESIZE, PLAIN_GEMM, ZERO_PAD
from modelmill.targets.target import Limit, OpRule, Scheme, Target

S8 = QuantSpec(8, signed=True, symmetric=True, power_of_two=True)
WEIGHT = QuantSpec(8, signed=True, symmetric=True)

MOVEMENT = ("Reshape", "Flatten", "Transpose", "Slice", "Gather", "Split")
FUNCTIONS = ("Relu", "PRelu", "LeakyRelu", "Clip", "Sigmoid", "Tanh")
POOL = (
    Limit("kernel_shape", high=3, why="validated: 1x1 to 3x3"),
    Limit("strides", high=2, why="validated: at most 2"),
)

PLUGIN = Target(
    name="ti",
    runtime=None,
    schemes=(Scheme("w8a8", activation=S8, weight=WEIGHT, bias=BIAS),),
    rules=(
        OpRule(
            "Conv",
            LAYER,
            anchor=True,
            limits=(Limit("kernel_shape", high=7), Limit("strides", high=2)),
        ),
        OpRule(
            "Conv",
            LAYER,
            anchor=True,
            limits=(Limit("kernel_shape", 11, 11), Limit("strides", 4, 4)),
        ),
        OpRule("ConvTranspose", LAYER, anchor=True, limits=(Limit("strides", 2, 2),)),
        OpRule("Gemm", LAYER, anchor=True, attributes=PLAIN_GEMM),
        OpRule("Add", ("activation", "activation")),
        OpRule("Mul", ("activation", "activation")),
        OpRule("MaxPool", ("activation",), output="same", limits=POOL),
        OpRule("AveragePool", ("activation",), limits=POOL),
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
    export=("ti",),
    host="CPU",
    source="github.com/TexasInstruments/edgeai-tidl-tools, docs: tidl_fsg_quantization (powers of "
    "two for feature maps) and supported_ops_rts_versions (operators, limits); Dipoorlet's ti "
    "(scheme, file). How TIDL requantizes is not public: one factor per layer is assumed",
)
