"""OpenVINO on CPU, w8a8: QDQ ONNX that its low-precision transformations turn into int8
convolutions.

The ONNX front end reads Q/DQ pairs as FakeQuantize; the low-precision transformations then move the
scales behind the convolutions, whose kernels (oneDNN) accumulate in int32 and add the bias, the
residual and the activation in float32 before
they quantize. Quantizing what a convolution reads is therefore enough: its output may stay float up
to the next convolution, and a residual Add needs no tensor of its own between the convolution and
the ReLU.
"""

from modelmill.numerics import Arithmetic
from modelmill.targets.formats import NARROW_PER_CHANNEL, U8
from modelmill.targets.guards import needs_vnni
from modelmill.targets.patterns import MOVES, NEAREST_RESIZE, NO_PADS, PLAIN_GEMM, PRODUCT, ZERO_PAD
from modelmill.targets.target import OpRule, Scheme, Target

MOVEMENT = (*MOVES, "MaxPool")

PLUGIN = Target(
    name="openvino_cpu",
    runtime="openvino",
    # docs.openvino.ai, low precision transformations: weights int8 symmetric per channel; NNCF's
    # CPU table says narrow.
    schemes=(Scheme("w8a8", activation=U8, weight=NARROW_PER_CHANNEL),),
    rules=(
        OpRule("Conv", PRODUCT, float_output=True, anchor=True),
        OpRule("Gemm", PRODUCT, float_output=True, anchor=True, attributes=PLAIN_GEMM),
        OpRule("MatMul", PRODUCT, float_output=True, anchor=True),
        OpRule("MatMul", ("activation", "activation"), float_output=True),
        OpRule("Add", ("activation", "activation"), float_output=True),
        # OpenVINO 2026.4 counts padding as code 0 where the zero point is meant: leave it float.
        OpRule(
            "AveragePool",
            ("activation",),
            float_output=True,
            attributes=(("count_include_pad", (0,)),),
        ),
        OpRule("AveragePool", ("activation",), float_output=True, attributes=NO_PADS),
        OpRule("GlobalAveragePool", ("activation",), float_output=True),
        OpRule("Concat", ("activation",), float_output=True, variadic=True),
        NEAREST_RESIZE,
        ZERO_PAD,
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
        needs_vnni(
            "oneDNN's", "NNCF, OverflowFix; oneDNN developer guide, 'Nuances of int8 computations'"
        ),
    ),
    packed_weights=True,  # the Cast is folded at load; the kernels stay int8: openvino 2026.4
    float_kernels=(("Convolution", "Conv"), ("FullyConnected", "Gemm"), ("MatMul", "MatMul")),
    source="docs.openvino.ai, low precision transformations, and NNCF's CPU configuration; "
    "openvino 2026.4",
)
