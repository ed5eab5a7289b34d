"""Which operators fell back, and both scores on the same images."""

import pytest

from modelmill import plugins
from modelmill.line.deploy import fallbacks
from modelmill.runtimes import ExecutedOp

ORT = plugins.load("modelmill.targets", "ort_cpu")


def kernel(name, op, kind):
    return ExecutedOp(name, op, "uint8" if kind == "integer" else "float32", kind, 1.0)


def verdict(op, runs):
    return {"node": op.lower(), "op": op, "runs": runs, "why": ""}


@pytest.mark.parametrize(
    ("verdicts", "executed", "found"),
    [
        ([("Conv", "integer")], [("c", "QLinearConv", "integer")], ()),
        ([("Conv", "integer")], [("c", "FusedConv", "float")], ("c (FusedConv)",)),
        ([("Conv", "float")], [("c", "FusedConv", "float")], ()),
        (
            [("Conv", "float"), ("Conv", "integer")],
            [("a", "Conv", "float"), ("b", "Conv", "float")],
            ("b (Conv)",),
        ),
        ([("Conv", "integer")], [("q", "QuantizeLinear", "conversion")], ()),
        ([("Sigmoid", "float")], [("s", "Sigmoid", "float")], ()),
        ([("Conv", "float")], [("g", "Gemm", "float")], ("g (Gemm)",)),  # of another kind
    ],
)
def test_fallbacks(verdicts, executed, found):
    listed = [verdict(*v) for v in verdicts]
    assert fallbacks(ORT, listed, tuple(kernel(*e) for e in executed)) == found
