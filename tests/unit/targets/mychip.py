"""A target outside the package: integer Gemm, and nothing else."""

from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets import OpRule, Scheme, Target

PLUGIN = Target(
    name="mychip",
    runtime="onnxruntime",
    schemes=(
        Scheme("w8a8", QuantSpec(8, signed=False, symmetric=False), QuantSpec(8, axis=0)),
        Scheme("w8a16", QuantSpec(16), QuantSpec(8)),
    ),
    rules=(OpRule("Gemm", ("activation", "weight"), float_output=True, anchor=True),),
    fused=(),
    arithmetic=Arithmetic(),
    source="invented for a test",
)
