"""Arm Ethos-U55, U65 and U85 (NPU beside a Cortex-M or Cortex-A), w8a8: simulated; the LiteRT file
is compiled by Arm's Vela for real.

The NPU takes the same int8 LiteRT file as the CPU runtime; what it cannot take runs on the CPU
beside it. Its arithmetic is that of LiteRT's reference kernels, to which Arm verifies it: integer
factors of 31 bits, rounded twice. Limits are those of Vela's report of supported operators; the
narrower of U55/U65 and U85 holds.
"""

from modelmill.numerics import Arithmetic
from modelmill.targets.formats import BIAS_PER_CHANNEL, NARROW_PER_CHANNEL, S8
from modelmill.targets.litert import COUNTED, FIXED
from modelmill.targets.patterns import LAYER, MOVES, NEAREST_RESIZE, NO_PADS, PLAIN_GEMM, ZERO_PAD
from modelmill.targets.target import Limit, OpRule, Scheme, Target

MOVEMENT = (*MOVES, "Split")
STRIDES = Limit("strides", high=3, why="Vela: kernel stride must be in the range (1,3)")
POOL = (STRIDES, Limit("ceil_mode", high=0, why="no windows that reach beyond the end"))

PLUGIN = Target(
    name="ethos_u",
    runtime=None,
    # "int8 weights ... restricted to [-127, 127]": LiteRT, 8-bit quantization specification.
    schemes=(Scheme("w8a8", activation=S8, weight=NARROW_PER_CHANNEL, bias=BIAS_PER_CHANNEL),),
    rules=(
        OpRule("Conv", LAYER, anchor=True, limits=(STRIDES,)),
        OpRule("Gemm", LAYER, anchor=True, attributes=PLAIN_GEMM),
        OpRule("MatMul", ("activation", "weight"), anchor=True),
        *(OpRule(op, ("activation", "activation")) for op in ("Add", "Sub", "Mul")),
        OpRule("LeakyRelu", ("activation",)),
        OpRule("GlobalAveragePool", ("activation",)),
        OpRule("AveragePool", ("activation",), output="same", attributes=NO_PADS, limits=POOL),
        OpRule("AveragePool", ("activation",), output="same", limits=(COUNTED, *POOL)),
        OpRule("MaxPool", ("activation",), output="same", limits=(STRIDES,)),
        OpRule("Concat", ("activation",), output="same", variadic=True),
        NEAREST_RESIZE,
        ZERO_PAD,
        OpRule("Relu", ("activation",), output="same"),
        OpRule("Clip", ("activation",), output="same", constants=((1, 0.0), (2, 6.0))),
        *(OpRule(op, ("activation",), output="same") for op in MOVEMENT),
    ),
    fused=tuple(
        (op, activation)
        for op in ("Conv", "Gemm", "MatMul", "Add", "Sub", "Mul")
        for activation in ("Relu", "Clip")
    ),
    on_codes=(*MOVEMENT, "MaxPool", "Pad", "Resize"),
    arithmetic=Arithmetic(
        requantize="double_rounding",
        add="double_rounding",
        multiply="double_rounding",
        leaky_relu="double_rounding",
        average_pool="away",
        global_average_pool="double_rounding",
        quantize="divide_away",
    ),
    refuses=tuple(
        (op, f"{FIXED}, on the CPU beside the NPU") for op in ("Sigmoid", "Tanh", "Softmax")
    ),
    passes=("whole_average_pool",),
    export=("vela",),
    source="ethos-u-vela 5.2, SUPPORTED_OPS.md; LiteRT, 8-bit quantization specification",
)
