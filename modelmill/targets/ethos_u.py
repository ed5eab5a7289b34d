"""Arm Ethos-U55, U65 and U85 (NPU beside a Cortex-M or Cortex-A), w8a8: simulated; the LiteRT file
is compiled by Arm's Vela for real.

The NPU takes the same int8 LiteRT file as the CPU runtime; what it cannot take runs on the CPU
beside it. Its arithmetic is that of LiteRT's reference kernels, to which Arm verifies it: integer
factors of 31 bits, rounded twice. Limits are those of Vela's report of supported operators; the
narrower of U55/U65 and U85 holds.
"""

from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets.target import PLAIN_GEMM, Limit, OpRule, Role, Scheme, Target

FIXED = (
    "its int8 kernel fixes the scale of the output (1/256, Tanh 1/128), which no calibration may "
    "change; it stays float, on the CPU beside the NPU"
)
S8 = QuantSpec(8, signed=True, symmetric=False)
# "int8 weights ... restricted to [-127, 127]": LiteRT, 8-bit quantization specification.
S8_PER_CHANNEL = QuantSpec(8, signed=True, symmetric=True, axis=0, narrow=True)
BIAS = QuantSpec(32, signed=True, symmetric=True, axis=0)

MOVEMENT = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Split")
STRIDES = Limit("strides", high=3, why="Vela: kernel stride must be in the range (1,3)")
LAYER: tuple[Role, ...] = ("activation", "weight", "bias")
POOL = (STRIDES, Limit("ceil_mode", high=0, why="no windows that reach beyond the end"))
NOT_COUNTED = "LiteRT pads by itself only as TensorFlow's SAME does, which leaves the padding out"

PLUGIN = Target(
    name="ethos_u",
    runtime=None,
    schemes=(Scheme("w8a8", activation=S8, weight=S8_PER_CHANNEL, bias=BIAS),),
    rules=(
        OpRule("Conv", LAYER, anchor=True, limits=(STRIDES,)),
        OpRule("Gemm", LAYER, anchor=True, attributes=PLAIN_GEMM),
        OpRule("MatMul", ("activation", "weight"), anchor=True),
        *(OpRule(op, ("activation", "activation")) for op in ("Add", "Sub", "Mul")),
        OpRule("LeakyRelu", ("activation",)),
        OpRule("GlobalAveragePool", ("activation",)),
        OpRule(
            "AveragePool",
            ("activation",),
            output="same",
            attributes=(("pads", ((0, 0, 0, 0),)), ("auto_pad", ("NOTSET", "VALID"))),
            limits=POOL,
        ),
        OpRule(
            "AveragePool",
            ("activation",),
            output="same",
            limits=(Limit("count_include_pad", low=1, why=NOT_COUNTED), *POOL),
        ),
        OpRule("MaxPool", ("activation",), output="same", limits=(STRIDES,)),
        OpRule("Concat", ("activation",), output="same", variadic=True),
        OpRule("Resize", ("activation",), output="same", attributes=(("mode", ("nearest",)),)),
        OpRule(
            "Pad",
            ("activation",),
            output="same",
            attributes=(("mode", ("constant",)),),
            constants=((2, 0.0),),
        ),
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
    refuses=tuple((op, FIXED) for op in ("Sigmoid", "Tanh", "Softmax")),
    passes=("whole_average_pool",),
    export=("vela",),
    source="ethos-u-vela 5.2, SUPPORTED_OPS.md; LiteRT, 8-bit quantization specification",
)
