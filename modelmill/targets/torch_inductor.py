"""torch compiled by inductor on x86, w8a8: oneDNN's 8-bit kernels between codes.

Inductor's patterns want a dequantized input and 8-bit weights; the output may be codes or floats,
and a ReLU, a clip or the addition of a residual is fused. What is not a convolution or a matrix
product becomes C++ that inductor writes, in float32 between codes.
"""

from modelmill.numerics import Arithmetic
from modelmill.targets.formats import S8_PER_CHANNEL, U8
from modelmill.targets.guards import needs_vnni
from modelmill.targets.patterns import MOVES, NEAREST_RESIZE, PLAIN_GEMM, PRODUCT, ZERO_PAD
from modelmill.targets.target import Limit, OpRule, Scheme, Target

MOVEMENT = (*MOVES, "MaxPool", "Split")

# decompositions of aten.mm and aten.addmm, torch/_inductor/decomposition.py
SMALL = "inductor writes out a product of so few numbers as float C++"

PLUGIN = Target(
    name="torch_inductor",
    runtime="torch_inductor",
    # X86InductorQuantizer: uint8 per tensor, int8 symmetric per channel
    schemes=(Scheme("w8a8", activation=U8, weight=S8_PER_CHANNEL),),
    rules=(
        OpRule("Conv", PRODUCT, float_output=True, anchor=True),
        *(
            OpRule(
                "Gemm",
                PRODUCT,
                float_output=True,
                anchor=True,
                attributes=PLAIN_GEMM,
                limits=(Limit(what, low=17, why=SMALL), Limit("output_channels", low=2, why=SMALL)),
            )
            for what in ("weights_per_output", "output_channels")
        ),
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
    arithmetic=Arithmetic(
        requantize="scale_by_scale", quantize="reciprocal", float_products="in_turn"
    ),
    guards=(needs_vnni("oneDNN's", "oneDNN developer guide, 'Nuances of int8 computations'"),),
    float_kernels=(("_convolution_pointwise", "Conv"), ("_linear_pointwise", "Gemm")),
    source="torch/_inductor/fx_passes/quantization.py and mkldnn_fusion.py; torch 2.13",
)
