"""A transformer goes the whole way: trained, planned, quantized, run by the engine."""

import numpy as np
import pytest
import tiny_vit

from modelmill import executor, ir
from modelmill.line.quantize import Where, prepare_graph, quantize
from modelmill.targets import load_target

pytestmark = pytest.mark.slow  # trains


def accuracy(run):
    _, _, x, y = tiny_vit.digits()
    return float((np.asarray(run({"x": x})).argmax(1) == y).mean())


def calibration():
    x = tiny_vit.digits()[0]
    return [{"x": x[i : i + 64]} for i in range(0, 512, 64)]


@pytest.fixture(scope="module")
def graph():
    return prepare_graph(tiny_vit.trained())


def first(module):
    """A module as a function that gives its one output."""
    return lambda feeds: next(iter(module(feeds).values())).detach()


def test_it_learned_the_digits(graph):
    assert accuracy(first(executor.Module(graph))) > 0.95


def test_the_engine_multiplies_codes_and_normalises_floats(graph):
    planned = Where("w8a8", flags=("avx512_vnni",)).plan(graph, load_target("ort_cpu"))
    kinds = {}
    for verdict in planned.verdicts:
        kinds.setdefault(verdict.op, set()).add(verdict.runs)
    assert kinds["Conv"] == kinds["Gemm"] == {"integer"}
    assert kinds["LayerNormalization"] == kinds["Softmax"] == kinds["Gelu"] == {"float"}
    # of the two products of activations one reads the softmax
    products = [v.runs for v in planned.verdicts if v.op == "MatMul"]
    assert products == ["integer", "integer", "float", *["integer"] * 3] * tiny_vit.DEPTH


def test_engine_and_simulation_keep_the_accuracy(graph):
    ort = pytest.importorskip("onnxruntime")
    made = quantize(graph, calibration(), "ort_cpu", "w8a8")
    session = ort.InferenceSession(ir.to_bytes(made.to_qdq()), providers=["CPUExecutionProvider"])
    deployed = accuracy(lambda feeds: session.run(None, feeds)[0])
    assert deployed > accuracy(first(executor.Module(graph))) - 0.01
    assert abs(deployed - accuracy(first(made.simulate()))) <= 0.004
