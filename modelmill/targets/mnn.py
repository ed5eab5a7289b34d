"""MNN."""

from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets.target import PLAIN_GEMM, OpRule, Scheme, Target

S8 = QuantSpec(8, signed=True, symmetric=False)
S8_PER_CHANNEL = QuantSpec(8, signed=True, symmetric=True, axis=0, narrow=True)

MOVEMENT = (
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Slice",
    "Gather",
    "Pad",
)

PLUGIN = Target(
    name="mnn",
    runtime="mnn",
    schemes=(Scheme("w8a8", activation=S8, weight=S8_PER_CHANNEL),),
    rules=(
        OpRule("Conv", ("activation", "weight"), anchor=True),
        OpRule("Gemm", ("activation", "weight"), anchor=True, attributes=PLAIN_GEMM),
        OpRule("Add", ("activation", "activation")),
        OpRule(
            "AveragePool",
            ("activation",),
            output="same",
            attributes=(("pads", ((0, 0, 0, 0),)), ("auto_pad", ("NOTSET",)), ("ceil_mode", (0,))),
        ),
        OpRule(
            "AveragePool",
            ("activation",),
            output="same",
            attributes=(
                ("count_include_pad", (0,)),
                ("auto_pad", ("NOTSET",)),
                ("ceil_mode", (0,)),
            ),
        ),
        OpRule("GlobalAveragePool", ("activation",), output="same"),
        OpRule("Concat", ("activation",), output="same", variadic=True),
        *(OpRule(op, ("activation",), output="same") for op in MOVEMENT),
    ),
    fused=(("Conv", "Relu"), ("Gemm", "Relu"), ("Add", "Relu")),
    arithmetic=Arithmetic(
        requantize="unsigned",
        add="reciprocal",
        average_pool="floor",
        global_average_pool="floor",
        quantize="away",
    ),
)
