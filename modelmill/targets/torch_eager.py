"""torch operator by operator, w8a8 as fake quantization: codes between the layers, float32 inside.

A reference, not an integer engine: every operator that has a rule reads and gives numbers that
codes can express, and computes in float32 what an engine computes on integers. Its scores are those
of the plan under ideal arithmetic; its latency is that of float layers with conversions around
them.
"""

from modelmill.numerics import Arithmetic
from modelmill.targets.formats import S8_PER_CHANNEL, U8
from modelmill.targets.patterns import MOVES, NEAREST_RESIZE, PLAIN_GEMM, PRODUCT, ZERO_PAD
from modelmill.targets.target import OpRule, Scheme, Target

MOVEMENT = (*MOVES, "MaxPool", "Split", "Expand", "Tile")

PLUGIN = Target(
    name="torch_eager",
    runtime="torch_eager",
    schemes=(Scheme("w8a8", activation=U8, weight=S8_PER_CHANNEL),),
    rules=(
        OpRule("Conv", PRODUCT, float_output=True, anchor=True),
        OpRule("ConvTranspose", PRODUCT, float_output=True, anchor=True),
        OpRule("Gemm", PRODUCT, float_output=True, anchor=True, attributes=PLAIN_GEMM),
        OpRule("MatMul", PRODUCT, float_output=True, anchor=True),
        OpRule("Add", ("activation", "activation"), float_output=True),
        OpRule("Concat", ("activation",), float_output=True, variadic=True),
        NEAREST_RESIZE,
        ZERO_PAD,
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
