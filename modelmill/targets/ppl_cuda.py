"""OpenPPL on NVIDIA GPUs (PPL CUDA), w8a8: simulated.

Weights asymmetric per output channel, activations asymmetric per tensor, as MQBench trains for it.
PPQ, OpenPPL's own tool, quantizes the same operators symmetrically, which is a special case.
"""

from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets.formats import BIAS_PER_CHANNEL, U8
from modelmill.targets.patterns import LAYER, LINEAR_RESIZE, NEAREST_RESIZE, PLAIN_GEMM
from modelmill.targets.target import OpRule, Scheme, Target

U8_PER_CHANNEL = QuantSpec(8, signed=False, symmetric=False, axis=0)

MOVEMENT = ("Reshape", "Flatten", "Transpose", "Slice", "Gather", "Split", "MaxPool")
FUNCTIONS = ("Relu", "PRelu", "LeakyRelu", "Clip", "Sigmoid", "ReduceMean")

PLUGIN = Target(
    name="ppl_cuda",
    runtime=None,
    schemes=(Scheme("w8a8", activation=U8, weight=U8_PER_CHANNEL, bias=BIAS_PER_CHANNEL),),
    rules=(
        OpRule("Conv", LAYER, anchor=True),
        OpRule("Gemm", LAYER, anchor=True, attributes=PLAIN_GEMM),
        OpRule("Add", ("activation", "activation")),
        OpRule("Mul", ("activation", "activation")),
        OpRule("AveragePool", ("activation",)),
        OpRule("GlobalAveragePool", ("activation",)),
        OpRule("Concat", ("activation",), variadic=True),
        NEAREST_RESIZE,
        LINEAR_RESIZE,
        *(OpRule(op, ("activation",)) for op in FUNCTIONS),
        *(OpRule(op, ("activation",), output="same") for op in MOVEMENT),
    ),
    fused=(
        ("Conv", "Relu"),
        ("Conv", "Clip"),
        ("Conv", "LeakyRelu"),
        ("Conv", "Sigmoid"),
        ("Gemm", "Relu"),
        ("Add", "Relu"),
    ),
    arithmetic=Arithmetic(requantize="dequantize"),
    export=("ppl_cuda",),
    source="MQBench, BackendType.PPLCUDA (scheme); github.com/OpenPPL/ppq, PPLQuantizer "
    "(operators, fused activations, half to even) and its PPL exporter (file)",
)
