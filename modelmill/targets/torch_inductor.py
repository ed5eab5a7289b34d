"""torch compiled by inductor on x86, w8a8: oneDNN's 8-bit kernels between codes.

Inductor's patterns want a dequantized input and 8-bit weights; the output may be codes or floats,
and a ReLU, a clip or the addition of a residual is fused. What is not a convolution or a matrix
product becomes C++ that inductor writes, in float32 between codes.
"""

from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets.target import PLAIN_GEMM, IsaGuard, OpRule, Scheme, Target

# X86InductorQuantizer: uint8 per tensor, int8 symmetric per channel
U8 = QuantSpec(8, signed=False, symmetric=False)
S8_PER_CHANNEL = QuantSpec(8, signed=True, symmetric=True, axis=0)

MOVEMENT = (
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "MaxPool"),
    "Split",
)

PLUGIN = Target(
    name="torch_inductor",
    runtime="torch_inductor",
    schemes=(Scheme("w8a8", activation=U8, weight=S8_PER_CHANNEL),),
    rules=(
        OpRule("Conv", ("activation", "weight"), float_output=True, anchor=True),
        OpRule(
            "Gemm",
            ("activation", "weight"),
            float_output=True,
            anchor=True,
            attributes=PLAIN_GEMM,
        ),
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
    arithmetic=Arithmetic(
        requantize="scale_by_scale", quantize="reciprocal", float_products="in_turn"
    ),
    guards=(
        IsaGuard(
            architectures=("x86_64", "AMD64"),
            needs_one_of=("avx512_vnni", "avx_vnni"),
            weight_bits=7,
            why="without VNNI oneDNN's u8 x s8 kernels add pairs of products in 16 bits, which "
            "saturate with 8-bit weights",
            source="oneDNN developer guide, 'Nuances of int8 computations'",
        ),
    ),
    float_kernels=(("_convolution_pointwise", "Conv"), ("_linear_pointwise", "Gemm")),
    source="torch/_inductor/fx_passes/quantization.py and mkldnn_fusion.py; torch 2.13",
)
