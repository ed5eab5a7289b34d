"""Padding moves into the layer where the layer pads with the same zeros."""

from collections.abc import Callable

import numpy as np
import pytest

from modelmill.passes import fuse_pad

EDGE = np.array([0, 0, 1, 2, 0, 0, 1, 0])


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, shape).astype("f")


@pytest.mark.parametrize(
    ("body", "out", "fused"),
    [
        ("p = Pad(x, e)  y = Conv(p, w)", "N,3,9,9", True),
        ("p = Pad(x, e, zero)  y = Conv<pads=[0,1,2,1]>(p, w)", "N,3,11,11", True),
        ("p = Pad(x, hw, , ax)  y = Conv(p, w)", "N,3,9,9", True),
        ("p = Pad(x, e, one)  y = Conv(p, w)", "N,3,9,9", False),
        ('p = Pad<mode="reflect">(x, e)  y = Conv(p, w)', "N,3,9,9", False),
        ("p = Pad(x, minus)  y = Conv(p, w)", "N,3,5,6", False),
        ('p = Pad(x, e)  y = Conv<auto_pad="SAME_UPPER">(p, w)', "N,3,11,11", False),
        ("p = Pad(x, e)  y = AveragePool<kernel_shape=[3,3]>(p)", "N,4,9,9", True),
        ("p = Pad(x, e)  y = AveragePool<kernel_shape=[3,3], strides=[2,2]>(p)", "N,4,5,5", True),
        ("p = Pad(x, e)  y = AveragePool<kernel_shape=[3,3], pads=[1,0,1,0],"
         " count_include_pad=1>(p)", "N,4,11,9", True),
        ("p = Pad(x, e)  y = AveragePool<kernel_shape=[3,3], pads=[1,0,1,0]>(p)",
         "N,4,11,9", False),
        ("p = Pad(x, e)  y = AveragePool<kernel_shape=[2,2]>(p)", "N,4,10,10", False),
        ("p = Pad(x, e)  y = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(p)",
         "N,4,5,5", False),
        ("p = Pad(x, e)  y = MaxPool<kernel_shape=[3,3]>(p)", "N,4,9,9", False),
        ("p = Pad(x, deep)  y = Conv(p, v)", "N,3,7,7", False),
    ],
)  # fmt: skip
def test_pad(body: str, out: str, fused: bool, graph_from_text: Callable, check: Callable) -> None:
    graph = graph_from_text(
        f"g (float[N,4,9,9] x) => (float[{out}] y) {{ {body} }}",
        e=EDGE, hw=np.array([1, 2, 1, 0]), ax=np.array([2, 3]),
        minus=np.array([0, 0, -1, -1, 0, 0, -1, 0]),
        deep=np.array([0, 1, 0, 0, 0, 0, 0, 0]),
        zero=np.float32(0), one=np.float32(1), w=weight(3, 4, 3, 3), v=weight(3, 5, 3, 3),
    )  # fmt: skip
    ops = check(fuse_pad, graph, ulps=4 * 36)  # the engine may sum 36 products in another order
    assert ("Pad" not in ops) == fused


def test_another_reader_keeps_its_pad(graph_from_text: Callable, check: Callable) -> None:
    graph = graph_from_text(
        "g (float[N,4,9,9] x) => (float[N,3,9,9] y, float[N,4,11,11] z) {"
        " p = Pad(x, e)  y = Conv(p, w)  z = Relu(p) }",
        e=EDGE, w=weight(3, 4, 3, 3),
    )  # fmt: skip
    assert check(fuse_pad, graph, ulps=4 * 36) == ["Pad", "Conv", "Relu"]
