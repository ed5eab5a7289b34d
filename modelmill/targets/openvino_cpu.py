"""OpenVINO on CPU, w8a8: QDQ ONNX that its low-precision transformations turn into int8
convolutions.

The ONNX front end reads Q/DQ pairs as FakeQuantize; the low-precision transformations then move the
scales behind the convolutions, whose kernels (oneDNN) accumulate in int32 and add the bias, the
residual and the activation in float32 before
they quantize. Quantizing what a convolution reads is therefore enough: its output may stay float up
to the next convolution, and a residual Add needs no tensor of its own between the convolution and
the ReLU.
"""

from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets.target import PLAIN_GEMM, IsaGuard, OpRule, Scheme, Target

U8 = QuantSpec(8, signed=False, symmetric=False)
# docs.openvino.ai, low precision transformations: weights int8 symmetric per channel; NNCF's CPU
# table says narrow.
S8_PER_CHANNEL = QuantSpec(8, signed=True, symmetric=True, axis=0, narrow=True)

MOVEMENT = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "MaxPool")

PLUGIN = Target(
    name="openvino_cpu",
    runtime="openvino",
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
        OpRule("MatMul", ("activation", "weight"), float_output=True, anchor=True),
        OpRule("MatMul", ("activation", "activation"), float_output=True),
        OpRule("Add", ("activation", "activation"), float_output=True),
        # OpenVINO 2026.4 counts padding as code 0 where the zero point is meant: leave it float.
        OpRule(
            "AveragePool",
            ("activation",),
            float_output=True,
            attributes=(("count_include_pad", (0,)),),
        ),
        OpRule(
            "AveragePool",
            ("activation",),
            float_output=True,
            attributes=(("pads", ((0, 0, 0, 0),)), ("auto_pad", ("NOTSET", "VALID"))),
        ),
        OpRule("GlobalAveragePool", ("activation",), float_output=True),
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
        ("Conv", "Add", "Relu"),
        ("Conv", "Add"),
        ("Conv", "Relu"),
        ("Conv", "Clip"),
        ("Conv", "LeakyRelu"),
        ("Gemm", "Relu"),
        ("Add", "Relu"),
    ),
    arithmetic=Arithmetic(
        requantize="range", add="in_steps", quantize="range", float_products="in_turn"
    ),
    guards=(
        IsaGuard(
            architectures=("x86_64", "AMD64"),
            needs_one_of=("avx512_vnni", "avx_vnni"),
            weight_bits=7,
            why="without VNNI oneDNN's u8 x s8 kernels add pairs of products in 16 bits, which "
            "saturate with 8-bit weights",
            source="NNCF, OverflowFix; oneDNN developer guide, 'Nuances of int8 computations'",
        ),
    ),
    float_kernels=(("Convolution", "Conv"), ("FullyConnected", "Gemm"), ("MatMul", "MatMul")),
    source="docs.openvino.ai, low precision transformations, and NNCF's CPU configuration; "
    "openvino 2026.4",
)
