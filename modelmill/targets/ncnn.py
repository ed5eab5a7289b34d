"""ncnn on x86 CPUs, w8a8: int8 convolutions and fully connected layers between float layers.

An int8 layer of ncnn quantizes what it reads, accumulates in int32 and hands real numbers on, after
its bias and activation; all other layers compute in float. So only what such a layer reads is
quantized, for that layer alone: an Add of the same tensor goes on with the real numbers, which is
what the pass `own_reads` says in the graph. The file holds factors, not scales: v * (1 / s),
rounded half away from zero to -127..127, and acc * (1 / (1/s_x * 1/s_w)) + bias, one fused
multiply-add in a convolution, two roundings in a fully connected layer.

The accumulators are exact on every CPU (16-bit products summed in 32 bits, or VNNI), so no weight
needs fewer bits. Winograd is used where its sums stay exact, which the writer bounds.
"""

from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets.formats import NARROW_PER_CHANNEL
from modelmill.targets.patterns import PLAIN_GEMM, PRODUCT
from modelmill.targets.target import Limit, OpRule, Scheme, Target

# quantize.cpp: float2int8 gives -127..127; there is no zero point.
S8 = QuantSpec(8, signed=True, symmetric=True, narrow=True)

PLUGIN = Target(
    name="ncnn",
    runtime="ncnn",
    # convolution.cpp: weight_data_int8_scales has one number for each output channel.
    schemes=(Scheme("w8a8", activation=S8, weight=NARROW_PER_CHANNEL),),
    rules=(
        OpRule(
            "Conv",
            PRODUCT,
            output="float",
            anchor=True,
            limits=(
                Limit("rank", 4, 4, "ncnn has int8 convolutions over height and width only"),
                # convolutiondepthwise_x86.cpp: _mm_rcp_ps; measured, docs/targets
                Limit(
                    "group",
                    1,
                    1,
                    "ncnn's depthwise int8 kernel takes the scale from a 12-bit reciprocal and is "
                    "slower than the float one; other groups have one weight scale each",
                ),
            ),
        ),
        OpRule("Gemm", PRODUCT, output="float", anchor=True, attributes=PLAIN_GEMM),
        OpRule("MatMul", PRODUCT, output="float", anchor=True),
    ),
    fused=(
        ("Conv", "Relu"),
        ("Conv", "Clip"),
        ("Conv", "LeakyRelu"),
        ("Gemm", "Relu"),
        ("Gemm", "Clip"),
        ("Gemm", "LeakyRelu"),
    ),
    arithmetic=Arithmetic(requantize="factors", quantize="away"),
    passes=("own_reads",),
    float_kernels=(
        ("Convolution", "Conv"),
        ("ConvolutionDepthWise", "Conv"),
        ("Convolution1D", "Conv"),
        ("ConvolutionDepthWise1D", "Conv"),
        ("InnerProduct", "Gemm"),
    ),
    source="github.com/Tencent/ncnn, src/layer: convolution.cpp, innerproduct.cpp, quantize.cpp, "
    "x86/convolution_x86.cpp, x86/dequantize_fp32.h; ncnn 1.0.20261020",
)
