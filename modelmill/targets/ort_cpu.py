"""ONNX Runtime on CPU, w8a8: QDQ models that its optimiser turns into QLinear kernels.

Which patterns become integer kernels is read from ONNX Runtime's QDQ selectors
(qdq_selector_action_transformer.cc): Conv, Gemm and MatMul need Q/DQ on every input, a convolution
also an int32 bias and a Q behind it; Gemm and MatMul may hand floats on. Relu and Clip disappear
into the Q that follows. Ops that move data run on codes when both sides share an encoding. Pad has
no QDQ rule, so it is written on codes, which the ONNX standard allows for 8-bit types.
"""

from modelmill.numerics import Arithmetic
from modelmill.targets.formats import BIAS_PER_CHANNEL, S8_PER_CHANNEL, U8
from modelmill.targets.guards import needs_vnni
from modelmill.targets.patterns import LAYER, MOVES, NEAREST_RESIZE, PLAIN_GEMM, ZERO_PAD
from modelmill.targets.target import OpRule, Scheme, Target

MOVEMENT = (*MOVES, "Expand", "Tile")
CODES = (*MOVEMENT, "Pad", "MaxPool", "Resize")

PLUGIN = Target(
    name="ort_cpu",
    runtime="onnxruntime",
    # "U8S8 ... is the fastest on x86 with AVX2 or better; on Arm either": onnxruntime.ai, quantize
    # ONNX models, data types.
    schemes=(Scheme("w8a8", activation=U8, weight=S8_PER_CHANNEL, bias=BIAS_PER_CHANNEL),),
    rules=(
        OpRule("Conv", LAYER, anchor=True),
        OpRule("Gemm", LAYER, float_output=True, anchor=True, attributes=PLAIN_GEMM),
        OpRule("MatMul", ("activation", "weight"), float_output=True, anchor=True),
        OpRule("MatMul", ("activation", "activation"), float_output=True),
        OpRule("Add", ("activation", "activation")),
        OpRule("Mul", ("activation", "activation")),
        OpRule("AveragePool", ("activation",), attributes=(("ceil_mode", (0,)),)),
        OpRule("GlobalAveragePool", ("activation",)),
        OpRule("LeakyRelu", ("activation",)),  # a table of 256 codes
        OpRule("Concat", ("activation",), variadic=True),
        OpRule("MaxPool", ("activation",), output="same"),
        NEAREST_RESIZE,
        ZERO_PAD,
        *(OpRule(op, ("activation",), output="same") for op in MOVEMENT),
    ),
    fused=(("Conv", "Relu"), ("Conv", "Clip"), ("Add", "Relu"), ("Gemm", "Relu"), ("Mul", "Relu")),
    on_codes=CODES,
    # WeightBiasQuantization (weight_bias_quantization.cc): a float Conv between a DQ with a scalar
    # scale and a Q gets int8 weights, per tensor, whatever the file says.
    shield=("Conv", "ConvTranspose", "Gemm"),
    # mlas: MlasRequantizeOutput, MlasQLinearAddKernel; QLinearPool2DTask
    arithmetic=Arithmetic(
        requantize="multiply",
        add="fma",
        multiply="ratio",
        average_pool="sequential",
        global_average_pool="ratio",
    ),
    guards=(
        needs_vnni(
            "the", "onnxruntime.ai, quantize ONNX models, 'When and why do I need to try U8U8?'"
        ),
    ),
    float_kernels=(
        ("Conv", "Conv"),
        ("FusedConv", "Conv"),
        *((op, op) for op in ("Gemm", "MatMul", "Add", "Mul", "AveragePool", "GlobalAveragePool")),
        *((op, op) for op in ("LeakyRelu", "Concat", *CODES)),
    ),
    # A layer behind a DequantizeLinear of INT4 is computed in float; with a Cast to int8 before it,
    # which is folded at load, in the integer kernels: the optimised model of onnxruntime 1.32.
    packed_weights=True,
    source="onnxruntime.ai/docs/performance/model-optimizations/quantization.html; "
    "onnxruntime 1.32",
)
