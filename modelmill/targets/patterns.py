"""What the rules of several targets say in the same words: roles, conditions, whole rules.

Here is what is one fact for all of them, such as that a padding by zeros moves codes. What two
engines happen to share is said by each in its own file, with its own source.
"""

from typing import Any

from modelmill.targets.target import OpRule, Role

# What a convolution or a fully connected layer reads: with an integer bias, or its sums alone, to
# which a bias is added in float.
LAYER: tuple[Role, ...] = ("activation", "weight", "bias")
PRODUCT: tuple[Role, ...] = ("activation", "weight")

# A Gemm that is a fully connected layer: integer kernels know no factors and no turned activations.
PLAIN_GEMM: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("alpha", (1.0,)),
    ("beta", (1.0,)),
    ("transA", (0,)),
)
# A pool over height and width of which every window has the same number of elements.
NO_PADS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("pads", ((0, 0, 0, 0),)),
    ("auto_pad", ("NOTSET", "VALID")),
)

# Operators that move elements and never compute with them: codes pass as they are.
MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather")

NEAREST_RESIZE = OpRule(
    "Resize", ("activation",), output="same", attributes=(("mode", ("nearest",)),)
)
LINEAR_RESIZE = OpRule("Resize", ("activation",), attributes=(("mode", ("linear",)),))
# Zero has a code in every encoding, its zero point.
ZERO_PAD = OpRule(
    "Pad",
    ("activation",),
    output="same",
    attributes=(("mode", ("constant",)),),
    constants=((2, 0.0),),
)
