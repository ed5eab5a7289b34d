"""LiteRT on CPU, w8a8: a .tflite file in int8, run by XNNPACK through the default interpreter.

Int8 operators write int8, so a layer cannot hand floats on as OpenVINO's can. What the 8-bit
specification wants of one encoding on both sides (pools, paddings, concatenation, movement) keeps
the encoding of its input. Sigmoid, Tanh and Softmax have int8 kernels, but with an output scale
that the specification fixes; they stay float, as they stand at the end of networks.

XNNPACK needs no narrower weights without dot-product instructions: its kernels for such CPUs
multiply in 16 bits and add in 32.
"""

from modelmill.numerics import Arithmetic
from modelmill.targets.formats import BIAS_PER_CHANNEL, NARROW_PER_CHANNEL, S8
from modelmill.targets.patterns import LAYER, MOVES, NEAREST_RESIZE, NO_PADS, PLAIN_GEMM, ZERO_PAD
from modelmill.targets.target import Limit, OpRule, Scheme, Target

FIXED = (
    "its int8 kernel fixes the scale of the output (1/256, Tanh 1/128), which no calibration may "
    "change; it stays float"
)
MOVEMENT = (*MOVES, "Split", "MaxPool")
# Kernels by their name in the schema, and the operator that a float one of them means.
KERNELS = (
    ("CONV_2D", "Conv"),
    ("DEPTHWISE_CONV_2D", "Conv"),
    ("TRANSPOSE_CONV", "ConvTranspose"),
    ("FULLY_CONNECTED", "Gemm"),
    ("ADD", "Add"),
    ("SUB", "Sub"),
    ("MUL", "Mul"),
    ("LEAKY_RELU", "LeakyRelu"),
    ("MEAN", "GlobalAveragePool"),
    ("AVERAGE_POOL_2D", "AveragePool"),
    ("MAX_POOL_2D", "MaxPool"),
    ("CONCATENATION", "Concat"),
    ("RESIZE_NEAREST_NEIGHBOR", "Resize"),
)
COUNTED = Limit(
    "count_include_pad",
    low=1,
    why="LiteRT pads by itself only as TensorFlow's SAME does, which leaves the padding out",
)
FLOOR = Limit("ceil_mode", high=0, why="LiteRT's pools have no windows that reach beyond the end")

PLUGIN = Target(
    name="litert",
    runtime="litert",
    # "int8 weights ... restricted to [-127, 127]": 8-bit quantization specification.
    schemes=(Scheme("w8a8", activation=S8, weight=NARROW_PER_CHANNEL, bias=BIAS_PER_CHANNEL),),
    rules=(
        OpRule("Conv", LAYER, anchor=True),
        OpRule(
            "ConvTranspose",
            LAYER,
            anchor=True,
            limits=(
                Limit("group", high=1, why="TRANSPOSE_CONV has no groups"),
                Limit("dilations", high=1, why="TRANSPOSE_CONV has no dilation"),
            ),
        ),
        OpRule("Gemm", LAYER, anchor=True, attributes=PLAIN_GEMM),
        OpRule("MatMul", ("activation", "weight"), anchor=True),
        OpRule("Add", ("activation", "activation")),
        OpRule("Sub", ("activation", "activation")),
        OpRule("Mul", ("activation", "activation")),
        OpRule("LeakyRelu", ("activation",)),
        OpRule("GlobalAveragePool", ("activation",)),
        OpRule("AveragePool", ("activation",), output="same", attributes=NO_PADS, limits=(FLOOR,)),
        OpRule("AveragePool", ("activation",), output="same", limits=(COUNTED, FLOOR)),
        OpRule("Concat", ("activation",), output="same", variadic=True),
        NEAREST_RESIZE,
        ZERO_PAD,
        OpRule("Relu", ("activation",), output="same"),
        OpRule("Clip", ("activation",), output="same", constants=((1, 0.0), (2, 6.0))),
        *(OpRule(op, ("activation",), output="same") for op in MOVEMENT),
    ),
    fused=tuple(
        (op, activation)
        for op in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul")
        for activation in ("Relu", "Clip")
    ),
    on_codes=(*MOVEMENT, "Pad", "Resize"),
    arithmetic=Arithmetic(
        requantize="multiply",
        add="fixed_point",
        multiply="ratio_alone",
        leaky_relu="fixed_point",
        average_pool="away",
        global_average_pool="bias",
        quantize="reciprocal",
        float_products="from_bias",
    ),
    float_kernels=tuple(
        (f"{kernel}{where}", op) for kernel, op in KERNELS for where in ("", " (builtin)")
    ),
    refuses=tuple((op, FIXED) for op in ("Sigmoid", "Tanh", "Softmax")),
    passes=("whole_average_pool",),
    source="ai.google.dev/edge/litert, 8-bit quantization specification; "
    "tflite/delegates/xnnpack/xnnpack_delegate.cc; ai-edge-litert 2.3",
)
