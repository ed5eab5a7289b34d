"""MatMul and Add become Gemm where Gemm can say the same."""

from collections.abc import Callable

import numpy as np
import pytest

from modelmill.passes import gemm_from_matmul_add

W = np.random.default_rng(0).normal(0, 1, (6, 8)).astype("f")


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (8,), (1, 8)])
@pytest.mark.parametrize("tail", ["Add(m, b)", "Add(b, m)"])
def test_joined(shape: tuple, tail: str, graph_from_text: Callable, check: Callable) -> None:
    graph = graph_from_text(
        f"g (float[N,6] x) => (float[N,8] y) {{ m = MatMul(x, w)  y = {tail} }}",
        w=W, b=np.full(shape, 0.3, "f"),
    )  # fmt: skip
    assert check(gemm_from_matmul_add, graph, ulps=4 * 7) == ["Gemm"]


@pytest.mark.parametrize(
    ("body", "inputs", "out"),
    [
        ("m = MatMul(x, w)  y = Add(m, b)", "float[N,5,6] x", "N,5,8"),
        ("m = MatMul(x, w)  y = Add(m, m)", "float[N,6] x", "N,8"),
        ("m = MatMul(x, w)  y = Add(m, wide)", "float[1,6] x", "3,8"),
        ("m = MatMul(x, w)  r = Add(m, b)  s = Relu(m)  y = Add(r, s)", "float[N,6] x", "N,8"),
        ("m = MatMul(x, z)  y = Add(m, b)", "float[N,6] x, float[6,8] z", "N,8"),
    ],
)
def test_stays(
    body: str, inputs: str, out: str, graph_from_text: Callable, check: Callable
) -> None:
    graph = graph_from_text(
        f"g ({inputs}) => (float[{out}] y) {{ {body} }}",
        w=W, b=np.ones(8, "f"), wide=np.ones((3, 8), "f"),
    )  # fmt: skip
    assert "Gemm" not in check(gemm_from_matmul_add, graph, ulps=4 * 7)
