"""Constants and shapes are computed at once, unless they would fill the file."""

from collections.abc import Callable

import numpy as np

from modelmill import ir
from modelmill.passes import fold_constants


def test_arithmetic_on_weights(graph_from_text: Callable, check: Callable) -> None:
    graph = graph_from_text(
        "g (float[N,2] x) => (float[N,3] y) {"
        " t = Transpose<perm=[1,0]>(w)  s = Mul(t, c)  y = MatMul(x, s) }",
        w=np.arange(6, dtype="f").reshape(3, 2), c=np.float32(0.3),
    )  # fmt: skip
    # ONNX Runtime packs a constant factor, and then adds the products in another order.
    assert check(fold_constants, graph, ulps=4 * 2) == ["MatMul"]


def test_flatten_with_dynamic_batch(graph_from_text: Callable, check: Callable) -> None:
    """What TorchScript writes for x.view(x.size(0), -1)."""
    graph = graph_from_text(
        "g (float[N,4,6,6] x) => (float[N,144] y) {"
        " s = Shape(x)  n = Gather<axis=0>(s, zero)  u = Unsqueeze(n, axes)"
        " t = Concat<axis=0>(u, m)  y = Reshape(x, t) }",
        zero=np.int64(0), axes=np.array([0]), m=np.array([-1]),
    )  # fmt: skip
    assert check(fold_constants, graph) == ["Reshape"]


def test_static_sizes_from_a_dynamic_shape(graph_from_text: Callable, check: Callable) -> None:
    """x.size(2), x.size(3) and x.shape[2:] are known although the batch is not."""
    graph = graph_from_text(
        "g (float[N,4,6,5] x) => (int64[2] y, int64[2] z, int64 u, int64[1] v) {"
        " s = Shape(x)  a = Gather<axis=0>(s, ij)  y = Neg(a)"
        " b = Slice(s, two, four)  z = Neg(b)"
        " c = Gather<axis=0>(s, last)  u = Neg(c)"
        " d = Shape<start=-1>(x)  v = Neg(d) }",
        ij=np.array([2, 3]), two=np.array([2]), four=np.array([4]), last=np.int64(-1),
    )  # fmt: skip
    after = fold_constants(graph)
    assert {node.op_type for node in ir.nodes(after)} == {"Neg"}
    check(fold_constants, graph)


def test_batch_stays_open(graph_from_text: Callable, check: Callable) -> None:
    graph = graph_from_text(
        "g (float[N,4] x) => (int64 y) { s = Shape(x)  a = Gather<axis=0>(s, zero)  y = Neg(a) }",
        zero=np.int64(0),
    )
    assert check(fold_constants, graph) == ["Shape", "Gather", "Neg"]


def test_large_results_are_left_to_the_engine(graph_from_text: Callable) -> None:
    graph = graph_from_text(
        "g (float[1000,1000] x) => (float[1000,1000] y) { e = Expand(c, s)  y = Add(x, e) }",
        c=np.float32(1), s=np.array([1000, 1000]),
    )  # fmt: skip
    assert len(ir.nodes(fold_constants(graph))) == 2


def test_quantized_constants_stay(graph_from_text: Callable, check: Callable) -> None:
    graph = graph_from_text(
        "g (float[N,2] x) => (float[N,3] y) { w = DequantizeLinear(q, s)  y = MatMul(x, w) }",
        q=np.arange(6, dtype=np.int8).reshape(2, 3), s=np.float32(0.1),
    )  # fmt: skip
    assert check(fold_constants, graph) == ["DequantizeLinear", "MatMul"]


def test_random_stays(graph_from_text: Callable) -> None:
    graph = graph_from_text(
        "g (float[2] x) => (float[2] y) { r = RandomNormalLike(c)  y = Add(x, r) }",
        c=np.ones(2, "f"),
    )
    assert len(ir.nodes(fold_constants(graph))) == 2


def test_constant_output_stays(graph_from_text: Callable, check: Callable) -> None:
    graph = graph_from_text(
        "g (float[N] x) => (float[N] y, float[2] z) { y = Relu(x)  z = Neg(c) }", c=np.ones(2, "f")
    )
    assert check(fold_constants, graph) == ["Relu", "Neg"]
