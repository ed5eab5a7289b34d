"""torch operator by operator, w8a8 as fake quantization: codes between the layers, float32 inside.

A reference, not an integer engine: every operator that has a rule reads and gives numbers that
codes can express, and computes in float32 what an engine computes on integers. Its scores are those
of the plan under ideal arithmetic; its latency is that of float layers with conversions around
them.
"""

from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets.target import PLAIN_GEMM, OpRule, Scheme, Target

U8 = QuantSpec(8, signed=False, symmetric=False)
S8_PER_CHANNEL = QuantSpec(8, signed=True, symmetric=True, axis=0)

MOVEMENT = (
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "MaxPool"),
    *("Split", "Expand", "Tile"),
)

PLUGIN = Target(
    name="torch_eager",
    runtime="torch_eager",
    schemes=(Scheme("w8a8", activation=U8, weight=S8_PER_CHANNEL),),
    rules=(
        OpRule("Conv", ("activation", "weight"), float_output=True, anchor=True),
        OpRule("ConvTranspose", ("activation", "weight"), float_output=True, anchor=True),
        OpRule(
            "Gemm",
            ("activation", "weight"),
            float_output=True,
            anchor=True,
            attributes=PLAIN_GEMM,
        ),
        OpRule("MatMul", ("activation", "weight"), float_output=True, anchor=True),
        OpRule("Add", ("activation", "activation"), float_output=True),
        OpRule("Concat", ("activation",), float_output=True, variadic=True),
        OpRule("Resize", ("activation",), output="same", attributes=(("mode", ("nearest",)),)),
        OpRule(
            "Pad",
            ("activation",),
            output="same",
            attributes=(("mode", ("constant",)),),
            constants=((2, 0.0),),
        ),
        *(OpRule(op, ("activation",), output="same") for op in MOVEMENT),
    ),
    fused=(
        ("Conv", "Relu"),
        ("Conv", "Clip"),
        ("Conv", "LeakyRelu"),
        ("Gemm", "Relu"),
        ("Add", "Relu"),
    ),
    arithmetic=Arithmetic(requantize="float"),
    source="modelmill.executor, which is what runs; torch 2.13",
)
