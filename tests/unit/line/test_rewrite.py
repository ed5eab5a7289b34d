"""Passes that a target names: applied to its own graph, and checked."""

from dataclasses import replace

import numpy as np
import pytest

from modelmill import ir
from modelmill.line import rewrite
from modelmill.line.quantize import Recipe, Where, prepare_graph, quantize_all
from modelmill.targets import load_target


@pytest.fixture
def residual(graph_from_text):
    weights = {
        "w": np.random.default_rng(0).normal(size=(2, 2, 1, 1)).astype(np.float32),
        "v": np.random.default_rng(1).normal(size=(2, 2, 1, 1)).astype(np.float32),
    }
    text = """g (float[N,2,4,4] x) => (float[N,2,4,4] y) {
        a = Conv(x, w)
        b = Relu(a)
        c = Conv(b, v)
        y = Add(b, c)
    }"""
    return prepare_graph(graph_from_text(text, 13, **weights))


def test_the_plan_speaks_of_the_rewritten_graph(residual):
    ncnn, openvino = load_target("ncnn"), load_target("openvino_cpu")
    values = {p.value for p in Where().plan(residual, ncnn).plan}
    assert "b_read" in " ".join(values) and "b" not in values
    assert rewrite.rewritten(residual, openvino) is residual
    x = np.random.default_rng(2).normal(size=(4, 2, 4, 4)).astype(np.float32)
    chosen = {"openvino_cpu": openvino, "ncnn": ncnn}
    found = quantize_all(residual, chosen, Where(), [{"x": x}], Recipe(protect=None))
    ops = {name: [n.op_type for n in ir.nodes(q.graph)] for name, q in found.items()}
    assert "Identity" in ops["ncnn"] and "Identity" not in ops["openvino_cpu"]
    assert [e.scale for e in found["ncnn"].plan.encodings().values()]


def test_a_pass_that_does_not_exist(residual):
    target = replace(load_target("ncnn"), passes=("no_such_pass",))
    with pytest.raises(ValueError, match="'no_such_pass', which does not exist"):
        Where().plan(residual, target)


def test_a_pass_that_changes_an_output_is_noticed(residual):
    wrong = ir.clone(residual)
    node = next(n for n in ir.nodes(wrong) if n.op_type == "Relu")
    ir.redirect(wrong, node.outputs[0], node.inputs[0])
    target = load_target("ncnn")
    feeds = {"x": np.random.default_rng(2).normal(size=(1, 2, 4, 4)).astype(np.float32)}
    rewrite.check_equal(residual, ir.clone(residual), target, feeds)
    with pytest.raises(ValueError, match=r"ncnn: its passes \(own_reads\) changed the output 'y'"):
        rewrite.check_equal(residual, wrong, target, feeds)
