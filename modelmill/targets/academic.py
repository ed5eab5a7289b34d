"""The setting in which papers on post-training quantization compare: simulated, as they do.

Only what a convolution or a matrix product reads is quantized, before it, and its weight: weights
asymmetric per output channel, activations asymmetric per tensor, both unsigned, biases in float.
Additions, pools, activations and normalisations compute in float32, and so does the product, on the
numbers that the codes stand for. It is no chip; scores here compare with tables of AdaRound, BRECQ
and QDrop at `--precision w4a4` and the like, not with an engine.
"""

from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets.formats import U8
from modelmill.targets.patterns import PLAIN_GEMM, PRODUCT
from modelmill.targets.target import OpRule, Scheme, Target

U8_PER_CHANNEL = QuantSpec(8, signed=False, symmetric=False, axis=0)

PLUGIN = Target(
    name="academic",
    runtime=None,
    schemes=(Scheme("w8a8", activation=U8, weight=U8_PER_CHANNEL),),
    rules=(
        OpRule("Conv", PRODUCT, output="float", anchor=True),
        OpRule("ConvTranspose", PRODUCT, output="float", anchor=True),
        OpRule("Gemm", PRODUCT, output="float", anchor=True, attributes=PLAIN_GEMM),
        OpRule("MatMul", PRODUCT, output="float", anchor=True),
        OpRule("MatMul", ("activation", "activation"), output="float", anchor=True),
    ),
    fused=(),
    arithmetic=Arithmetic(requantize="float"),
    export=("aimet",),
    source="MQBench, BackendType.Academic; github.com/wimh966/QDrop, quantization of weights and "
    "activations (first and last layer with 8 bits)",
)
