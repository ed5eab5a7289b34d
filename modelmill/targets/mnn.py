"""MNN on CPU: layers on signed asymmetric codes, one scale per tensor, weights per channel.

MNN's x86 kernels work on codes plus 128, accumulate in int32 and scale in float32, half away from
zero. It runs an operator on codes where every tensor around it has them, and hands the scale of a
tensor on through whatever only moves elements: those share one encoding here too. The adapter puts
a fence where the plan wants float.

The wheel's kernels are those for AVX2, without dot-product instructions: a layer multiplies 16-bit
numbers, which cannot saturate and is slower than float. The faster kernel for 7-bit weights is not
used: in 3.6.1 it leaves out the scale of what it reads.
"""

from modelmill.numerics import Arithmetic
from modelmill.targets.formats import NARROW_PER_CHANNEL, S8
from modelmill.targets.patterns import MOVES, PLAIN_GEMM, PRODUCT, ZERO_PAD
from modelmill.targets.target import Limit, OpRule, Scheme, Target

MOVEMENT = (*MOVES, "Relu")
SUMS = ("Add", "Sub", "Mul")
NOT_NAMED = (("auto_pad", ("NOTSET", "VALID")),)
IMAGES = Limit("rank", low=4, high=4, why="its layers on codes are two-dimensional")
COMPUTED = Limit("constant_inputs", high=0, why="a constant has no codes in its file")
WHOLE = Limit("ceil_mode", high=0, why="a window over the edge is counted another way")

PLUGIN = Target(
    name="mnn",
    runtime="mnn",
    schemes=(Scheme("w8a8", activation=S8, weight=NARROW_PER_CHANNEL),),
    rules=(
        OpRule(
            "Conv",
            PRODUCT,
            anchor=True,
            attributes=(("group", (1,)), *NOT_NAMED),
            limits=(IMAGES,),
        ),
        OpRule(
            "Conv",
            PRODUCT,
            anchor=True,
            attributes=NOT_NAMED,
            limits=(
                IMAGES,
                Limit("channels_per_group", high=1, why="the converter splits other groups"),
                Limit("outputs_per_group", high=1, why="depthwise kernels write what they read"),
            ),
        ),
        OpRule("Gemm", PRODUCT, anchor=True, attributes=PLAIN_GEMM),
        OpRule("MatMul", PRODUCT, anchor=True),
        *(OpRule(op, ("activation", "activation"), limits=(COMPUTED,)) for op in SUMS),
        OpRule(
            "AveragePool",
            ("activation",),
            output="same",
            attributes=(("pads", ((0, 0, 0, 0),)), ("auto_pad", ("NOTSET",))),
            limits=(WHOLE,),
            note="the average is cut to a code, not rounded",
        ),
        OpRule(
            "AveragePool",
            ("activation",),
            output="same",
            attributes=(("count_include_pad", (0,)), ("auto_pad", ("NOTSET",))),
            limits=(WHOLE,),
            note="the average is cut to a code, not rounded",
        ),
        OpRule("GlobalAveragePool", ("activation",), output="same"),
        OpRule("Concat", ("activation",), output="same", variadic=True),
        ZERO_PAD,
        *(OpRule(op, ("activation",), output="same") for op in MOVEMENT),
    ),
    fused=tuple(
        (op, activation)
        for op in ("Conv", "Gemm", "MatMul", *SUMS)
        for activation in ("Relu", "Clip")
    ),
    arithmetic=Arithmetic(
        requantize="unsigned",
        add="reciprocal",
        multiply="reciprocal",
        average_pool="floor",
        global_average_pool="floor",
        quantize="away",
    ),
    float_kernels=(
        ("Convolution", "Conv"),
        ("ConvolutionDepthwise", "Conv"),
        ("FullyConnected", "Gemm"),
    ),
    refuses=(
        ("MaxPool", "its x86 kernel takes codes plus 128 for signed, so 0 and more for negative"),
        ("Resize", "its kernel on codes takes a hundred times as long as the one on floats"),
        ("LeakyRelu", "it has a ReLU on codes only"),
        ("ConvTranspose", "its converter gives no scales to it"),
    ),
    source="MNN 3.6.1: source/core/Pipeline.cpp, source/backend/cpu/CPUConvolution.cpp, "
    "CPUBinaryInt8.cpp, CPUPoolInt8.cpp, CPUCast.cpp, x86_x64/avx/GemmInt8.cpp; and measured",
)
