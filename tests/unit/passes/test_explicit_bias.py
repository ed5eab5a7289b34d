"""A bias of zeros is added where there is none, and changes nothing."""

import numpy as np
import pytest

from modelmill import ir
from modelmill.passes import explicit_bias

ort = pytest.importorskip("onnxruntime")
CASES = {
    "conv": ("y = Conv(x, w)", (2, 4, 6, 6), (6, 4, 3, 3), 6),
    "grouped conv": ("y = Conv<group=2>(x, w)", (2, 4, 6, 6), (6, 2, 3, 3), 6),
    "transposed": ("y = ConvTranspose(x, w)", (2, 4, 6, 6), (4, 5, 3, 3), 5),
    "grouped transposed": ("y = ConvTranspose<group=2>(x, w)", (2, 4, 6, 6), (4, 5, 3, 3), 10),
    "gemm": ("y = Gemm(x, w)", (2, 4), (4, 7), 7),
    "gemm, weight transposed": ("y = Gemm<transB=1>(x, w)", (2, 4), (7, 4), 7),
}


def make(graph_from_text, text, shape, **arrays):
    sizes = ",".join(map(str, shape))
    free = ",".join("ABCD"[: len(shape)])
    return graph_from_text(f"g (float[{sizes}] x) => (float[{free}] y) {{ {text} }}", **arrays)


def run(graph, x):
    session = ort.InferenceSession(ir.to_bytes(graph), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("name", CASES)
def test_the_output_stays(graph_from_text, name):
    text, shape, weight, channels = CASES[name]
    rng = np.random.default_rng(0)
    graph = make(graph_from_text, text, shape, w=rng.normal(size=weight).astype("f"))
    before = ir.to_bytes(graph)
    made = explicit_bias(graph)
    bias = ir.constant(ir.nodes(made)[0].inputs[2])
    assert bias.shape == (channels,) and not bias.any() and bias.dtype == np.float32
    x = rng.normal(size=shape).astype("f")
    np.testing.assert_array_equal(run(made, x), run(graph, x))
    assert ir.to_bytes(graph) == before
    assert ir.fingerprint(explicit_bias(made)) == ir.fingerprint(made)


def test_what_has_a_bias_keeps_it(graph_from_text):
    w, b = np.ones((6, 4, 3, 3), "f"), np.arange(6).astype("f")
    graph = make(graph_from_text, "y = Conv(x, w, b)", (2, 4, 6, 6), w=w, b=b)
    assert ir.fingerprint(explicit_bias(graph)) == ir.fingerprint(graph)


def test_a_weight_of_run_time_gets_none(graph_from_text):
    graph = graph_from_text(
        "g (float[2,4,6,6] x, float[6,4,3,3] w) => (float[2,6,4,4] y) { y = Conv(x, w) }"
    )
    assert len(ir.nodes(explicit_bias(graph))[0].inputs) == 2
