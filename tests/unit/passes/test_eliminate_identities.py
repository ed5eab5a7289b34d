"""Each rewrite of eliminate_identities, and each look-alike that must stay."""

from collections.abc import Callable

import numpy as np
import pytest

from modelmill import ir
from modelmill.passes import eliminate_identities

HEAD = "g (float[N,4,6,6] x) => (float[{}] y) {{ {} }}"
LAST = np.iinfo(np.int64).max


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize(
    ("body", "arrays", "ops"),
    [
        ("a = Identity(x)  y = Relu(a)", {}, ["Relu"]),
        ("a = Relu(x)  y = Identity(a)", {}, ["Relu"]),
        ("y = Identity(x)", {}, ["Identity"]),
        ("a = Dropout(x)  y = Relu(a)", {}, ["Relu"]),
        ("a, m = Dropout(x, r, t)  y = Relu(a)", {"r": np.float32(0.5), "t": False}, ["Relu"]),
        ("a = Concat<axis=1>(x)  y = Relu(a)", {}, ["Relu"]),
        ("a = Cast<to=1>(x)  y = Relu(a)", {}, ["Relu"]),
        ("a = Clip(x)  y = Relu(a)", {}, ["Relu"]),
        ("a = Clip(x, m)  y = Relu(a)", {"m": np.float32(0.5)}, ["Clip", "Relu"]),
        ("a = Pad(x, p)  y = Relu(a)", {"p": ints(*[0] * 8)}, ["Relu"]),
        ("a = Transpose<perm=[0,1,2,3]>(x)  y = Relu(a)", {}, ["Relu"]),
        ("a = Reshape(x, s)  y = Relu(a)", {"s": ints(-1, 4, 6, 6)}, ["Relu"]),
        ("a = Reshape(x, s)  y = Relu(a)", {"s": ints(0, 4, 6, 6)}, ["Relu"]),
        ("a = Slice(x, s, e, a1)  y = Relu(a)",
         {"s": ints(0), "e": ints(LAST), "a1": ints(2)}, ["Relu"]),
        ("a = Slice(x, s, e)  y = Relu(a)", {"s": ints(0, 0), "e": ints(LAST, 4)}, ["Relu"]),
        ("a = Slice(x, s, e, a1)  y = Relu(a)",
         {"s": ints(0), "e": ints(6), "a1": ints(-1)}, ["Relu"]),
        ("a = Transpose<perm=[0,2,3,1]>(x)  b = Relu(a)  y = Transpose<perm=[0,3,1,2]>(b)", {},
         ["Transpose", "Relu", "Transpose"]),
        ("a = Transpose<perm=[0,2,3,1]>(x)  b = Transpose<perm=[0,3,1,2]>(a)  y = Relu(b)", {},
         ["Relu"]),
    ],
)  # fmt: skip
def test_no_change(
    body: str, arrays: dict, ops: list[str], graph_from_text: Callable, check: Callable
) -> None:
    graph = graph_from_text(HEAD.format("N,4,6,6", body), **arrays)
    assert check(eliminate_identities, graph) == ops


@pytest.mark.parametrize(
    ("body", "arrays", "shape", "ops"),
    [
        ("a = Transpose<perm=[0,2,3,1]>(x)  y = Transpose<perm=[0,2,3,1]>(a)", {}, "N,6,4,6",
         ["Transpose"]),
        ("a = Reshape(x, s)  y = Reshape(a, t)", {"s": ints(-1, 144), "t": ints(-1, 12, 12)},
         "N,12,12", ["Reshape"]),
        ("a = Flatten(x)  y = Reshape(a, t)", {"t": ints(-1, 12, 12)}, "N,12,12", ["Reshape"]),
        # A 0 copies from the first Reshape's output, so the two cannot be one.
        ("a = Reshape(x, s)  y = Reshape(a, t)", {"s": ints(-1, 72), "t": ints(0, 8, 9)},
         "M,8,9", ["Reshape", "Reshape"]),
        ("a = Slice(x, s, e, b)  y = Slice(a, s, e, c)",
         {"s": ints(1), "e": ints(4), "b": ints(2), "c": ints(3)}, "N,4,3,3", ["Slice"]),
        ("a = Slice(x, s, e, b, t)  y = Slice(a, s, e, c, t)",
         {"s": ints(0), "e": ints(LAST), "b": ints(2), "c": ints(-1), "t": ints(2)},
         "N,4,3,3", ["Slice"]),
        ("a = Slice(x, s, e, b)  y = Slice(a, s, e, b)",
         {"s": ints(1), "e": ints(4), "b": ints(2)}, "N,4,2,6", ["Slice", "Slice"]),
        ("a = Slice(x, s, e, b)  c = Slice(a, s, e, b2)  d = ReduceMean<keepdims=1>(a)"
         "  y = Add(c, d)",
         {"s": ints(1), "e": ints(4), "b": ints(2), "b2": ints(3)}, "N,4,3,3",
         ["Slice", "Slice", "ReduceMean", "Add"]),
        ("a = Slice(x, s, e, b)  y = Relu(a)", {"s": ints(-3), "e": ints(LAST), "b": ints(2)},
         "N,4,3,6", ["Slice", "Relu"]),
        ("a = Slice(x, s, e, b, t)  y = Relu(a)",
         {"s": ints(-1), "e": ints(-LAST), "b": ints(2), "t": ints(-1)}, "N,4,6,6",
         ["Slice", "Relu"]),
    ],
)  # fmt: skip
def test_joins(
    body: str, arrays: dict, shape: str, ops: list[str],
    graph_from_text: Callable, check: Callable,
) -> None:  # fmt: skip
    graph = graph_from_text(HEAD.format(shape, body), **arrays)
    assert check(eliminate_identities, graph) == ops


def test_two_open_dimensions_are_not_trusted(graph_from_text: Callable, check: Callable) -> None:
    graph = graph_from_text(
        "g (float[N,M] x) => (float[A,B] y) { a = Reshape(x, s)  y = Relu(a) }", s=ints(3, -1)
    )
    assert len(ir.nodes(eliminate_identities(graph))) == 2


def test_dropout_in_training_stays(graph_from_text: Callable) -> None:
    graph = graph_from_text(
        "g (float[N] x) => (float[N] y) { a = Dropout(x, r, t)  y = Relu(a) }",
        r=np.float32(0.5), t=np.array(True),
    )  # fmt: skip
    assert len(ir.nodes(eliminate_identities(graph))) == 2


def test_two_outputs_of_one_value_stay_two(graph_from_text: Callable, check: Callable) -> None:
    graph = graph_from_text(
        "g (float[N] x) => (float[N] y, float[N] z) { y = Relu(x)  z = Identity(y) }"
    )
    assert check(eliminate_identities, graph) == ["Relu", "Identity"]
