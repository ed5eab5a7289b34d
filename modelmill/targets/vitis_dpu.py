"""Xilinx / AMD DPU for FPGAs (DPUCZDX8G, Vitis AI), w8a8: simulated.

Every scale is a power of two, one per tensor; biases have 8 bits and a scale of their own, and are
shifted to the accumulator. Half is rounded up. What the DPU does not take is left to the CPU.
"""

from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets.patterns import LAYER, NEAREST_RESIZE, PLAIN_GEMM
from modelmill.targets.target import Limit, OpRule, Scheme, Target

S8 = QuantSpec(8, signed=True, symmetric=True, power_of_two=True)
SEEN = "refused by the compiler on an Ultra96"
KERNEL = Limit("kernel_shape", high=8, why=f"9x9 was {SEEN}")
CHANNELS = Limit("output_channels", high=4096, why="256 * channel_parallel, PG338, B4096")
# Kernel elements times ceil(input channels / 16) fit the weight bank.
BANK = Limit("weights_per_output", high=2048 * 16, why="depth of the weight bank, PG338, B4096")
STRIDES = Limit("strides", high=8, why="PG338")
POOL = Limit("kernel_shape", high=8, why="PG338")

PLUGIN = Target(
    name="vitis_dpu",
    runtime=None,
    schemes=(Scheme("w8a8", activation=S8, weight=S8, bias=S8),),
    rules=(
        OpRule(
            "Conv",
            LAYER,
            anchor=True,
            attributes=(("group", (1,)),),
            limits=(KERNEL, STRIDES, CHANNELS, BANK),
        ),
        OpRule(
            "Conv",
            LAYER,
            anchor=True,
            limits=(
                Limit("channels_per_group", 1, 1, f"a group of more than one channel was {SEEN}"),
                KERNEL,
                CHANNELS,
            ),
        ),
        OpRule(
            "ConvTranspose",
            LAYER,
            anchor=True,
            attributes=(("group", (1,)),),
            limits=(KERNEL, CHANNELS),
        ),
        OpRule(
            "Gemm",
            LAYER,
            anchor=True,
            attributes=PLAIN_GEMM,
            limits=(
                Limit("input_channels", high=3072, why=f"wider was {SEEN}"),
                Limit("output_channels", high=3072, why=f"wider was {SEEN}"),
            ),
        ),
        OpRule("Add", ("activation", "activation")),
        OpRule("Mul", ("activation", "activation")),
        OpRule("MaxPool", ("activation",), output="same", limits=(POOL,)),
        OpRule("AveragePool", ("activation",), limits=(POOL,)),
        OpRule("GlobalAveragePool", ("activation",)),
        OpRule("Relu", ("activation",)),
        OpRule(
            "LeakyRelu",
            ("activation",),
            attributes=(("alpha", (26 / 256,)),),
            note="the one slope of the DPU, 26/256",
        ),
        OpRule("Concat", ("activation",), variadic=True),
        NEAREST_RESIZE,
        *(OpRule(op, ("activation",), output="same") for op in ("Reshape", "Flatten")),
    ),
    fused=(("Conv", "LeakyRelu"), ("Conv", "Relu"), ("Conv", "Clip"), ("Add", "Relu")),
    arithmetic=Arithmetic(requantize="shift", quantize="half_up"),
    export=("vitis", "qdq"),
    refuses=(
        ("Sigmoid", f"it was {SEEN}"),
        ("Softmax", "an option that the default configuration lacks, PG338"),
    ),
    host="CPU",
    source="docs.amd.com, PG338 DPUCZDX8G and UG1414 Vitis AI (operators, limits, powers of two); "
    "MQBench's documentation of Vitis (rounding, operators, file)",
)
