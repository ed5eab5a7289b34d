"""Affine maps fold into linear layers; the output moves by rounding only.

Tolerance: a folded weight is rounded once more (half an epsilon), so a sum of n products moves by
at most about n epsilon times its largest product; relative to the largest output, 4 n epsilon are
allowed, n = inputs per output (here at most 54).
"""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill import ir
from modelmill.passes import fold_batchnorm

ULPS = 4 * 54


def norm(channels: int, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "gamma": rng.normal(1, 0.5, channels).astype("f"),
        "beta": rng.normal(0, 1, channels).astype("f"),
        "mean": rng.normal(0, 1, channels).astype("f"),
        "var": rng.uniform(0.1, 2, channels).astype("f"),
    }


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, shape).astype("f")


BN = "BatchNormalization<epsilon=0.001>({}, gamma, beta, mean, var)"
LAYERS = {
    "Conv": ("c = Conv<pads=[1,1,1,1]>(x, w, b)", (8, 6, 3, 3), 8, "N,8,9,9"),
    "Conv without bias": ("c = Conv<strides=[2,2]>(x, w)", (8, 6, 3, 3), 8, "N,8,4,4"),
    "grouped Conv": ("c = Conv<group=3>(x, w, b)", (9, 2, 3, 3), 9, "N,9,7,7"),
    "depthwise Conv": ("c = Conv<group=6>(x, w, b)", (6, 1, 3, 3), 6, "N,6,7,7"),
    "ConvTranspose": ("c = ConvTranspose(x, w, b)", (6, 8, 3, 3), 8, "N,8,11,11"),
    "grouped ConvTranspose": ("c = ConvTranspose<group=2>(x, w, b)", (6, 4, 3, 3), 8, "N,8,11,11"),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("tail", [BN.format("c"), "Mul(c, s)", "Add(s, c)", "Sub(c, s)",
                                  "Sub(s, c)", "Div(c, s)"])  # fmt: skip
def test_behind(layer: str, tail: str, graph_from_text: Callable, check: Callable) -> None:
    line, shape, channels, out = LAYERS[layer]
    arrays = {"w": weight(*shape), **norm(channels), "s": norm(channels)["var"].reshape(-1, 1, 1)}
    if ", b)" in line:
        arrays["b"] = weight(channels)
    graph = graph_from_text(
        f"g (float[N,6,9,9] x) => (float[{out}] y) {{ {line}  y = {tail} }}", **arrays
    )
    (op,) = check(fold_batchnorm, graph, ULPS)
    assert op == line.split("= ")[1].split("(")[0].split("<")[0]


@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("bias", ["", ", b"])
def test_behind_gemm(trans: int, bias: str, graph_from_text: Callable, check: Callable) -> None:
    arrays = {"w": weight(8, 6) if trans else weight(6, 8), "b": weight(1, 8), **norm(8)}
    graph = graph_from_text(
        f"g (float[N,6] x) => (float[N,8] y) {{"
        f" c = Gemm<transB={trans}>(x, w{bias})  y = {BN.format('c')} }}", **arrays
    )  # fmt: skip
    assert check(fold_batchnorm, graph, ULPS) == ["Gemm"]


@pytest.mark.parametrize(
    ("line", "shape", "out", "ops"),
    [
        ("y = Conv(a, w, b)", (8, 6, 3, 3), "N,8,7,7", ["Conv"]),
        ("y = Conv<group=3>(a, w)", (9, 2, 3, 3), "N,9,7,7", ["Conv"]),
        ("y = Conv<pads=[1,1,1,1]>(a, w, b)", (8, 6, 3, 3), "N,8,9,9",
         ["BatchNormalization", "Conv"]),
        ('y = Conv<auto_pad="SAME_UPPER">(a, w, b)', (8, 6, 3, 3), "N,8,9,9",
         ["BatchNormalization", "Conv"]),
        ("y = ConvTranspose(a, w)", (6, 8, 3, 3), "N,8,11,11",
         ["BatchNormalization", "ConvTranspose"]),
    ],
)  # fmt: skip
def test_before(
    line: str, shape: tuple, out: str, ops: list, graph_from_text: Callable, check: Callable
) -> None:
    graph = graph_from_text(
        f"g (float[N,6,9,9] x) => (float[{out}] y) {{ a = {BN.format('x')}  {line} }}",
        w=weight(*shape), b=weight(shape[0]), **norm(6),
    )  # fmt: skip
    assert check(fold_batchnorm, graph, ULPS) == ops


@pytest.mark.parametrize("trans", [0, 1])
def test_before_gemm(trans: int, graph_from_text: Callable, check: Callable) -> None:
    graph = graph_from_text(
        f"g (float[N,6] x) => (float[N,8] y) {{"
        f" a = {BN.format('x')}  y = Gemm<transB={trans}>(a, w) }}",
        w=weight(8, 6) if trans else weight(6, 8), **norm(6),
    )  # fmt: skip
    assert check(fold_batchnorm, graph, ULPS) == ["Gemm"]


def test_scale_goes_through_padding(graph_from_text: Callable, check: Callable) -> None:
    graph = graph_from_text(
        "g (float[N,6,9,9] x) => (float[N,8,9,9] y) {"
        " a = Div(x, s)  y = Conv<pads=[1,1,1,1]>(a, w) }",
        w=weight(8, 6, 3, 3), s=np.float32(255),
    )  # fmt: skip
    assert check(fold_batchnorm, graph, ULPS) == ["Conv"]


STAYS = {
    "another reader": "c = Conv(x, w)  n = {bn}  r = Relu(c)  y = Add(n, r)",
    "training": "c = Conv(x, w)  y = {bn}".replace("{bn}", "{training}"),
    "two inputs": "c = Conv(x, w)  d = Conv(x, v)  y = Add(c, d)",
    "spatial constant": "c = Conv(x, w)  y = Mul(c, plane)",
    "quotient of it": "c = Conv(x, w)  y = Div(gamma4, c)",
    "division by zero": "c = Conv(x, w)  y = Div(c, zero)",
}


@pytest.mark.parametrize("case", STAYS)
def test_stays(case: str, graph_from_text: Callable) -> None:
    training = BN.format("c").replace("epsilon", "training_mode=1, epsilon")
    body = STAYS[case].format(bn=BN.format("c"), training=training)
    graph = graph_from_text(
        f"g (float[N,6,9,9] x) => (float[N,8,7,7] y) {{ {body} }}",
        w=weight(8, 6, 3, 3), v=weight(8, 6, 3, 3), plane=weight(7, 7),
        gamma4=weight(8, 1, 1), zero=np.float32(0), **norm(8),
    )  # fmt: skip
    after = fold_batchnorm(graph)
    assert len(ir.nodes(after)) == len(ir.nodes(graph))


def test_a_shared_weight_is_changed_for_one_reader_only(
    graph_from_text: Callable, check: Callable
) -> None:
    graph = graph_from_text(
        f"g (float[N,6,9,9] x) => (float[N,8,7,7] y) {{"
        f" c = Conv(x, w)  n = {BN.format('c')}  d = Conv(x, w)  y = Max(n, d) }}",
        w=weight(8, 6, 3, 3), **norm(8),
    )  # fmt: skip
    assert check(fold_batchnorm, graph, ULPS) == ["Conv", "Conv", "Max"]
    assert {"w", "w_1"} < set(ir.constants(fold_batchnorm(graph)))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans(),
    st.integers(0, 2**16),
)  # fmt: skip
def test_any_convolution(
    graph_from_text: Callable, check: Callable,
    group: int, ins: int, outs: int, transposed: bool, first: bool, seed: int,
) -> None:  # fmt: skip
    """Random groups and widths, batch norm behind or before, Conv or ConvTranspose."""
    channels_in, channels_out = group * ins, group * outs
    shape = (channels_in, outs, 2, 2) if transposed else (channels_out, ins, 2, 2)
    op = "ConvTranspose" if transposed else "Conv"
    size = 6 if transposed else 4
    if first:
        body = f"a = {BN.format('x')}  y = {op}<group={group}>(a, w)"
    else:
        body = f"a = {op}<group={group}>(x, w)  y = {BN.format('a')}"
    graph = graph_from_text(
        f"g (float[N,{channels_in},5,5] x) => (float[N,{channels_out},{size},{size}] y)"
        f" {{ {body} }}",
        w=np.random.default_rng(seed).normal(0, 1, shape).astype("f"),
        **norm(channels_in if first else channels_out, seed),
    )
    ops = check(fold_batchnorm, graph, ULPS)
    assert len(ops) == (2 if transposed and first else 1)
