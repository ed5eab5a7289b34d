"""HiSilicon NNIE (Hi35xx), 8-bit logarithmic codes: simulated.

A number is a sign and an exponent in sixteenths of an octave, for weights and activations alike,
one range per layer. How the hardware multiplies and adds them is not public; the simulation rounds
every tensor to what the codes express and computes in float32 between. No engine reads such codes
from a QDQ file: the mapper takes clip values and a float model.
"""

from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets.patterns import NEAREST_RESIZE, PLAIN_GEMM, PRODUCT
from modelmill.targets.target import OpRule, Scheme, Target

LOG8 = QuantSpec(8, signed=False, symmetric=True, logarithmic=True)
MOVEMENT = ("Reshape", "Flatten", "Transpose", "Slice", "Split")
FUNCTIONS = ("Relu", "PRelu", "LeakyRelu", "Sigmoid", "Tanh", "Softmax")

PLUGIN = Target(
    name="nnie",
    runtime=None,
    schemes=(Scheme("w8a8", activation=LOG8, weight=LOG8),),
    rules=(
        OpRule("Conv", PRODUCT, anchor=True),
        OpRule("ConvTranspose", PRODUCT, anchor=True),
        OpRule("Gemm", PRODUCT, anchor=True, attributes=PLAIN_GEMM),
        OpRule("Add", ("activation", "activation")),
        OpRule("Mul", ("activation", "activation")),
        OpRule("MaxPool", ("activation",), output="same"),
        OpRule("AveragePool", ("activation",)),
        OpRule("GlobalAveragePool", ("activation",)),
        OpRule("Concat", ("activation",), variadic=True),
        NEAREST_RESIZE,
        *(OpRule(op, ("activation",)) for op in FUNCTIONS),
        *(OpRule(op, ("activation",), output="same") for op in MOVEMENT),
    ),
    fused=(("Conv", "Relu"), ("Conv", "LeakyRelu"), ("Gemm", "Relu"), ("Add", "Relu")),
    arithmetic=Arithmetic(),
    export=("gfpq",),
    refuses=(("Gather", "no layer of the HiSVP guide"),),
    host="CPU",
    source="MQBench's documentation of NNIE (format, table of codes; it advises against depthwise "
    "convolutions, wants pools with ceil_mode and knows nearest Resize by 2 only) and deploy_nnie "
    "(file); HiSVP development guide (layers)",
)
