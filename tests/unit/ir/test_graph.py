"""Walking and editing a graph."""

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest

from modelmill import ir

TWO = "g (float[N,3] x) => (float[N,2] y) { h = MatMul(x, w)  r = Relu(h)  y = Add(r, b) }"


@pytest.fixture
def two(graph_from_text: Callable) -> ir.Graph:
    return graph_from_text(TWO, w=np.arange(6, dtype="f").reshape(3, 2), b=np.ones(2, "f"))


def run(graph: ir.Graph, **feeds: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_bytes(graph), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


X = np.array([[1, -2, 3], [-1, 1, -1]], np.float32)


def test_interface(two: ir.Graph) -> None:
    assert ir.inputs(two) == {"x": ir.ValueInfo("x", ("N", 3), np.dtype("f"))}
    assert ir.outputs(two) == {"y": ir.ValueInfo("y", ("N", 2), np.dtype("f"))}
    assert list(ir.values(two)) == ["x", "w", "b", "h", "r", "y"]
    assert ir.opset(two) == 20


def test_constants_are_read_only(two: ir.Graph) -> None:
    w = ir.constants(two)["w"]
    with pytest.raises(ValueError, match="read-only"):
        w[0, 0] = 1


def test_unknown_value_names_the_nearest(two: ir.Graph) -> None:
    with pytest.raises(ir.ModelError, match=r"no value 'hh'\. Nearest: h"):
        ir.value(two, "hh")


def test_attributes(graph_from_text: Callable) -> None:
    graph = graph_from_text(
        "g (float[1,1,4,4] x) => (float[1,1,2,2] y) {"
        ' y = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=0, auto_pad="VALID">(x) }'
    )
    assert ir.attributes(ir.nodes(graph)[0]) == {
        "kernel_shape": (2, 2), "strides": (2, 2), "ceil_mode": 0, "auto_pad": "VALID",
    }  # fmt: skip


def test_expose(two: ir.Graph) -> None:
    before = ir.to_bytes(two)
    shown = ir.expose(two, ["h", "y", "x", "w"])
    assert list(ir.outputs(shown)) == ["y", "h", "x", "w"] and ir.to_bytes(two) == before
    y, h, x, w = run(shown, x=X)
    np.testing.assert_array_equal(h, X @ ir.constants(two)["w"])
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(w, ir.constants(two)["w"])
    np.testing.assert_array_equal(y, run(two, x=X)[0])
    with pytest.raises(ir.ModelError, match="no value 'zzz'"):
        ir.expose(two, ["zzz"])


def test_batch(two: ir.Graph) -> None:
    assert ir.is_batch_dynamic(two)
    fixed = ir.with_batch(two, 4)
    assert not ir.is_batch_dynamic(fixed) and ir.is_batch_dynamic(two)
    assert ir.outputs(fixed)["y"].shape == (4, 2) and ir.shape(ir.value(fixed, "h")) == (4, 2)
    assert ir.to_bytes(ir.with_batch(fixed, 4)) == ir.to_bytes(fixed)
    with pytest.raises(ir.ModelError, match="'x' has the fixed batch 4, 2 was asked for"):
        ir.with_batch(fixed, 2)
    with pytest.raises(ir.ModelError, match="at least 1"):
        ir.with_batch(two, 0)


def test_batch_without_a_name(graph_from_text: Callable) -> None:
    graph = graph_from_text("g (float[?,3] x) => (float[?,3] y) { y = Relu(x) }")
    assert ir.inputs(graph)["x"].shape == (None, 3)
    assert ir.outputs(ir.with_batch(graph, 2))["y"].shape == (2, 3)


def test_edits_leave_the_original_alone(two: ir.Graph) -> None:
    before = ir.to_bytes(two)
    copy = ir.clone(two)
    relu = next(node for node in ir.nodes(copy) if node.op_type == "Relu")
    ir.set_constant(copy, ir.nodes(copy)[0], 1, np.zeros((3, 2), "f"))
    made = ir.add_node(copy, "Neg", [relu.inputs[0]], before=relu)
    relu.replace_input_with(0, made)
    ir.add_constant(copy, "w", np.ones(1, "f"))
    assert ir.to_bytes(two) == before
    assert sorted(ir.constants(copy)) == ["b", "w", "w_1"]
    np.testing.assert_array_equal(run(copy, x=X)[0], np.ones((2, 2), "f"))


def test_set_constant_on_a_shared_one_adds_another(graph_from_text: Callable) -> None:
    graph = graph_from_text(
        "g (float[N] x) => (float[N] y) { a = Add(x, w)  y = Add(a, w) }", w=np.ones(1, "f")
    )
    ir.set_constant(graph, ir.nodes(graph)[0], 1, np.full(1, 5, "f"))
    assert sorted(ir.constants(graph)) == ["w", "w_1"]
    np.testing.assert_array_equal(run(graph, x=np.zeros(1, "f"))[0], [6])


def test_set_constant_where_nothing_was(graph_from_text: Callable) -> None:
    graph = graph_from_text("g (float[N] x) => (float[N] y) { y = Clip(x) }")
    ir.set_constant(graph, ir.nodes(graph)[0], 2, np.float32(1.0), "top")
    np.testing.assert_array_equal(run(graph, x=np.array([3, -3], "f"))[0], [1, -3])


def test_redirect_keeps_the_name_of_an_output(graph_from_text: Callable) -> None:
    graph = graph_from_text("g (float[N] x) => (float[N] y) { a = Relu(x)  y = Identity(a) }")
    relu, identity = ir.nodes(graph)
    assert ir.redirect(graph, identity.outputs[0], relu.outputs[0])
    ir.prune(graph)
    assert list(ir.outputs(graph)) == ["y"] and len(ir.nodes(graph)) == 1
    assert not ir.redirect(graph, relu.outputs[0], graph.graph.inputs[0])  # x cannot be called y
    np.testing.assert_array_equal(run(graph, x=np.array([3, -3], "f"))[0], [3, 0])


def test_prune(graph_from_text: Callable) -> None:
    graph = graph_from_text(
        "g (float[N] x) => (float[N] y) { a = Add(x, w)  b = Neg(a)  y = Relu(x) }",
        w=np.ones(1, "f"),
    )
    ir.prune(graph)
    assert [n.op_type for n in ir.nodes(graph)] == ["Relu"] and not ir.constants(graph)


def test_evaluate(graph_from_text: Callable) -> None:
    graph = graph_from_text(
        "g (float[N] x) => (float[N] y) { a = Mul(v, w)  y = Add(x, a) }",
        v=np.full(1, 2, "f"), w=np.full(1, 3, "f"),
    )  # fmt: skip
    first, second = ir.nodes(graph)
    assert ir.evaluate(graph, first) == [np.float32(6)]
    assert ir.evaluate(graph, second) is None
