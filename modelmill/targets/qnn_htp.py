"""QNN on the emulator of the Hexagon processor: the rules of `qnn`, run by the vendor's own code.

ONNX Runtime's QNN provider takes the QDQ model; codes that only move are written between Q and DQ.
"""

from dataclasses import replace

from modelmill.targets.qnn import PLUGIN as QNN

CPU_KERNELS = ("Conv", "FusedConv", "Gemm", "MatMul", "Add", "Mul", "AveragePool", "Concat")

PLUGIN = replace(
    QNN,
    name="qnn_htp",
    runtime="qnn",
    emulated=True,
    export=(),
    schemes=tuple(scheme for scheme in QNN.schemes if scheme.precision == "w8a8"),
    float_kernels=tuple((kernel, kernel.removeprefix("Fused")) for kernel in CPU_KERNELS),
)
