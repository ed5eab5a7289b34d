"""ExecuTorch on CPU, w8a8: a .pte file whose layers XNNPACK runs in int8.

What becomes an integer kernel is decided by ExecuTorch's XNNPACK partitioner: a layer whose inputs
all come from a DequantizeLinear and whose only reader is a QuantizeLinear, with a ReLU or a clip
between at most. A layer therefore cannot hand floats on, as OpenVINO's can. What the partitioner
takes in float32 only (average pooling, sigmoid, softmax, ...) stays float by rule; what it does not
take at all (strided slices, nearest resizing, indexing) runs in ExecuTorch's portable kernels, on
codes where it only moves elements.

XNNPACK is one of the engines that need no narrower weights without dot-product instructions: its
kernels for such CPUs multiply in 16 bits and add in 32.
"""

from modelmill.numerics import Arithmetic
from modelmill.targets.formats import BIAS_PER_CHANNEL, NARROW_PER_CHANNEL, S8
from modelmill.targets.patterns import LAYER, MOVES, NEAREST_RESIZE, PLAIN_GEMM, ZERO_PAD
from modelmill.targets.target import OpRule, Scheme, Target

MOVEMENT = (*MOVES, "Split")

PLUGIN = Target(
    name="executorch",
    runtime="executorch",
    # XNNPACKQuantizer: weights -127..127
    schemes=(Scheme("w8a8", activation=S8, weight=NARROW_PER_CHANNEL, bias=BIAS_PER_CHANNEL),),
    rules=(
        OpRule("Conv", LAYER, anchor=True),
        OpRule("Gemm", LAYER, anchor=True, attributes=PLAIN_GEMM),
        OpRule("Add", ("activation", "activation")),
        OpRule("Sub", ("activation", "activation")),
        OpRule("Mul", ("activation", "activation")),
        OpRule("LeakyRelu", ("activation",)),
        OpRule("GlobalAveragePool", ("activation",)),
        OpRule("Concat", ("activation",), output="same", variadic=True),
        OpRule("MaxPool", ("activation",), output="same", attributes=(("ceil_mode", (0,)),)),
        NEAREST_RESIZE,
        ZERO_PAD,
        OpRule("Relu", ("activation",), output="same"),
        *(OpRule(op, ("activation",), output="same") for op in MOVEMENT),
    ),
    fused=(
        ("Conv", "Relu"),
        ("Conv", "Clip"),
        ("Gemm", "Relu"),
        ("Gemm", "Clip"),
        ("Add", "Relu"),
    ),
    arithmetic=Arithmetic(
        requantize="multiply",
        add="fixed_point",
        multiply="ratio_alone",
        leaky_relu="fixed_point",
        global_average_pool="bias",
        quantize="reciprocal",
        float_products="from_bias",
    ),
    float_kernels=(
        ("Convolution", "Conv"),
        ("Deconvolution", "ConvTranspose"),
        ("Fully Connected", "Gemm"),
        ("Fully Connected", "Conv"),  # 1x1
        ("Add", "Add"),
        ("Subtract", "Sub"),
        ("Multiply", "Mul"),
        ("LeakyReLU", "LeakyRelu"),
        ("Invalid Unary Op", "LeakyRelu"),
        ("Mean", "GlobalAveragePool"),
        ("Max Pooling", "MaxPool"),
        ("convolution.out", "Conv"),
        ("addmm.out", "Gemm"),
        ("add.out", "Add"),
        ("sub.out", "Sub"),
        ("mul.out", "Mul"),
    ),
    refuses=(
        ("AveragePool", "XNNPACK's partitioner takes avg_pool2d in float32 only"),
        ("MatMul", "XNNPACK's partitioner takes a product of two tensors in float32 only"),
        ("Sigmoid", "XNNPACK's partitioner takes sigmoid in float32 only"),
        ("Tanh", "XNNPACK's partitioner takes tanh in float32 only"),
        ("Softmax", "XNNPACK's partitioner takes softmax in float32 only"),
        ("ConvTranspose", "not tried"),
    ),
    passes=("whole_average_pool", "pool_as_convolution"),
    source="executorch 1.5: backends/xnnpack/partition/config; XNNPACK, src/configs",
)
