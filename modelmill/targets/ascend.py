"""Huawei Ascend (Atlas), w8a8: simulated.

The compiler quantizes what layers read: int8 weights symmetric per output channel, activations
asymmetric per tensor, bias int32. What a layer hands on is float16, which is quantized again where
the next layer reads it; float16 in between is not simulated, float32 stands for it.
"""

from modelmill.numerics import Arithmetic
from modelmill.targets.formats import BIAS_PER_CHANNEL, S8, S8_PER_CHANNEL
from modelmill.targets.patterns import LAYER, PLAIN_GEMM
from modelmill.targets.target import Limit, OpRule, Scheme, Target

PLUGIN = Target(
    name="ascend",
    runtime=None,
    schemes=(Scheme("w8a8", activation=S8, weight=S8_PER_CHANNEL, bias=BIAS_PER_CHANNEL),),
    rules=(
        OpRule("Conv", LAYER, float_output=True, anchor=True),
        OpRule(
            "ConvTranspose",
            LAYER,
            float_output=True,
            anchor=True,
            limits=(Limit("dilations", 1, 1), Limit("rank", 4, 4)),
        ),
        OpRule("Gemm", LAYER, float_output=True, anchor=True, attributes=PLAIN_GEMM),
        OpRule("MatMul", ("activation", "weight"), float_output=True, anchor=True),
        OpRule("AveragePool", ("activation",), float_output=True),
        OpRule("Add", ("activation", "activation"), float_output=True),
        OpRule("MaxPool", ("activation",), output="same"),
    ),
    fused=(("Conv", "Relu"), ("Conv", "Clip"), ("Conv", "LeakyRelu"), ("Gemm", "Relu")),
    arithmetic=Arithmetic(requantize="dequantize"),
    export=("atlas",),
    refuses=(("GlobalAveragePool", "average pools are quantized unless they are global"),),
    source="hiascend.com, CANN: layers that support quantization and restrictions; Dipoorlet's "
    "atlas (scheme, file)",
)
