"""Cambricon (MagicMind), w8a8: simulated.

Only products of matrices are quantized, weights asymmetric per output channel, activations
asymmetric per tensor; biases and everything between the layers are floats.
"""

from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets.formats import S8
from modelmill.targets.patterns import PLAIN_GEMM, PRODUCT
from modelmill.targets.target import OpRule, Scheme, Target

S8_PER_CHANNEL = QuantSpec(8, signed=True, symmetric=False, axis=0)

PLUGIN = Target(
    name="cambricon",
    runtime=None,
    schemes=(Scheme("w8a8", activation=S8, weight=S8_PER_CHANNEL),),
    rules=(
        OpRule("Conv", PRODUCT, float_output=True, anchor=True),
        OpRule("ConvTranspose", PRODUCT, float_output=True, anchor=True),
        OpRule("Gemm", PRODUCT, float_output=True, anchor=True, attributes=PLAIN_GEMM),
        OpRule("MatMul", PRODUCT, float_output=True, anchor=True),
    ),
    fused=(
        ("Conv", "Add", "Relu"),
        ("Conv", "Add"),
        ("Conv", "Relu"),
        ("Conv", "Clip"),
        ("Conv", "LeakyRelu"),
        ("Gemm", "Relu"),
    ),
    arithmetic=Arithmetic(requantize="dequantize"),
    export=("magicmind",),
    source="Dipoorlet's magicmind (scheme, operators, file); what is fused is assumed, as it "
    "changes no number: between layers everything is float",
)
