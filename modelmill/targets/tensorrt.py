"""NVIDIA TensorRT (Jetson Orin and other GPUs), w8a8: simulated.

TensorRT reads an ONNX file with Q and DQ nodes and must honour them (explicit quantization); older
versions take ranges from a calibration cache instead (implicit quantization). Codes are symmetric,
weights in -127..127. A convolution takes its inputs as codes and, fused with the addition, bias and
activation behind it, hands on codes or floats: so what is wanted are Q and DQ in front of layers
with weights and on the other branch of a residual addition.
"""

from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets.formats import NARROW_PER_CHANNEL
from modelmill.targets.patterns import MOVES, NEAREST_RESIZE, PLAIN_GEMM, PRODUCT
from modelmill.targets.target import OpRule, Scheme, Target

S8 = QuantSpec(8, signed=True, symmetric=True)

# Q and DQ commute with these: "Q/DQ layer-placement", Q/DQ propagation.
MOVEMENT = (*MOVES, "MaxPool")

PLUGIN = Target(
    name="tensorrt",
    runtime=None,
    schemes=(Scheme("w8a8", activation=S8, weight=NARROW_PER_CHANNEL),),
    rules=(
        OpRule("Conv", PRODUCT, float_output=True, anchor=True),
        OpRule("ConvTranspose", PRODUCT, float_output=True, anchor=True),
        OpRule("Gemm", PRODUCT, float_output=True, anchor=True, attributes=PLAIN_GEMM),
        OpRule("MatMul", PRODUCT, float_output=True, anchor=True),
        OpRule("MatMul", ("activation", "activation"), float_output=True),
        OpRule("Add", ("activation", "activation"), float_output=True),
        OpRule("AveragePool", ("activation",), float_output=True),
        OpRule("GlobalAveragePool", ("activation",), float_output=True),
        OpRule("Concat", ("activation",), float_output=True, variadic=True),
        NEAREST_RESIZE,
        *(OpRule(op, ("activation",), output="same") for op in MOVEMENT),
    ),
    fused=(
        ("Conv", "Add", "Relu"),
        ("Conv", "Add"),
        ("Conv", "Relu"),
        ("Conv", "Clip"),
        ("Conv", "LeakyRelu"),
        ("ConvTranspose", "Relu"),
        ("Gemm", "Relu"),
        ("Add", "Relu"),
    ),
    arithmetic=Arithmetic(requantize="dequantize"),
    export=("qdq", "tensorrt_cache"),
    source="docs.nvidia.com/deeplearning/tensorrt, working with quantized types (symmetric codes, "
    "half to even; explicit quantization); scheme as MQBench's BackendType.Tensorrt and "
    "Dipoorlet's trt",
)
