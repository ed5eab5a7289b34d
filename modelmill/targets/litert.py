"""LiteRT on CPU, w8a8: a .tflite file in int8, run by XNNPACK through the default interpreter."""

from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets.target import PLAIN_GEMM, OpRule, Scheme, Target

S8 = QuantSpec(8, signed=True, symmetric=False)
S8_PER_CHANNEL = QuantSpec(8, signed=True, symmetric=True, axis=0, narrow=True)
BIAS = QuantSpec(32, signed=True, symmetric=True, axis=0)

MOVEMENT = (
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Slice",
    "Gather",
    "Split",
    "MaxPool",
)

PLUGIN = Target(
    name="litert",
    runtime="litert",
    schemes=(Scheme("w8a8", activation=S8, weight=S8_PER_CHANNEL, bias=BIAS),),
    rules=(
        OpRule("Conv", ("activation", "weight", "bias"), anchor=True),
        OpRule("Gemm", ("activation", "weight", "bias"), anchor=True, attributes=PLAIN_GEMM),
        OpRule("MatMul", ("activation", "weight"), anchor=True),
        OpRule("Add", ("activation", "activation")),
        OpRule("Mul", ("activation", "activation")),
        OpRule("LeakyRelu", ("activation",)),
        OpRule("GlobalAveragePool", ("activation",)),
        OpRule("AveragePool", ("activation",), output="same"),
        OpRule("Concat", ("activation",), output="same", variadic=True),
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
    fused=(("Conv", "Relu"), ("Gemm", "Relu"), ("Add", "Relu"), ("Mul", "Relu")),
    on_codes=(*MOVEMENT, "Pad", "Resize"),
    arithmetic=Arithmetic(requantize="multiply"),
    source="ai.google.dev/edge/litert, 8-bit quantization specification; ai-edge-litert 2.3",
)
