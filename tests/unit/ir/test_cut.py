"""A piece cut out computes what it computed inside."""

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from modelmill import ir


def test_a_piece_computes_the_same(graph_from_text):
    rng = np.random.default_rng(0)
    graph = graph_from_text(
        "g (float[2,3] x) => (float[2,3] y) { a = Relu(x)  b = MatMul(a, w)  c = Add(b, a)"
        "  y = Neg(c) }",
        w=rng.normal(size=(3, 3)).astype("f"),
    )
    piece = ir.cut(graph, ["a"], ["c"])
    assert [n.op_type for n in ir.nodes(piece)] == ["MatMul", "Add"]
    assert list(ir.inputs(piece)) == ["a"] and list(ir.outputs(piece)) == ["c"]
    a = rng.normal(size=(2, 3)).astype("f")
    want = a @ ir.constants(graph)["w"] + a
    found = ReferenceEvaluator(onnx.load_from_string(ir.to_bytes(piece))).run(None, {"a": a})[0]
    np.testing.assert_allclose(found, want, rtol=1e-6)
    assert len(ir.nodes(graph)) == 4  # the graph itself is as it was


def test_an_output_that_needs_more_is_refused(graph_from_text):
    graph = graph_from_text(
        "g (float[2] x, float[2] z) => (float[2] y) { a = Relu(x) y = Add(a, z) }"
    )
    with pytest.raises(ir.ModelError, match="'a'"):
        ir.cut(graph, ["a"], ["y"])
    with pytest.raises(ir.ModelError, match="nothing"):
        ir.cut(graph, ["nothing"], ["y"])
