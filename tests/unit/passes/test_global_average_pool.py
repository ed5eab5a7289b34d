"""Spatial means become GlobalAveragePool, and nothing else does."""

from collections.abc import Callable

import numpy as np
import pytest

from modelmill.passes import global_average_pool

# A mean of k numbers summed in two orders: at most k roundings of the sum each.
ULPS = 2 * 5 * 7


@pytest.mark.parametrize("axes", [(2, 3), (3, 2), (-1, -2)])
def test_dims_kept(axes: tuple, graph_from_text: Callable, check: Callable) -> None:
    graph = graph_from_text(
        "g (float[N,3,5,7] x) => (float[N,3,1,1] y) { y = ReduceMean(x, a) }",
        a=np.array(axes, np.int64),
    )
    assert check(global_average_pool, graph, ulps=ULPS) == ["GlobalAveragePool"]


def test_dims_gone(graph_from_text: Callable, check: Callable) -> None:
    graph = graph_from_text(
        "g (float[N,3,5,7] x) => (float[N,3] y) { y = ReduceMean <keepdims=0> (x, a) }",
        a=np.array((2, 3), np.int64),
    )
    assert check(global_average_pool, graph, ulps=ULPS) == ["GlobalAveragePool", "Flatten"]


@pytest.mark.parametrize(
    ("shape", "axes", "out"),
    [("N,3,5,7", (1,), "N,1,5,7"), ("N,3,5,7", (1, 2), "N,1,1,7"), ("N,5,7", (1, 2), "N,1,1")],
)
def test_stays(
    shape: str, axes: tuple, out: str, graph_from_text: Callable, check: Callable
) -> None:
    graph = graph_from_text(
        f"g (float[{shape}] x) => (float[{out}] y) {{ y = ReduceMean(x, a) }}",
        a=np.array(axes, np.int64),
    )
    assert check(global_average_pool, graph, ulps=ULPS) == ["ReduceMean"]
