"""Kernels of an engine, laid on the nodes of a graph."""

import numpy as np
import pytest

from modelmill import ir, plugins
from modelmill.latency import zoo
from modelmill.latency.collect import random_feeds
from modelmill.latency.features import features
from modelmill.latency.profile import shares, spent
from modelmill.runtimes import ExecutedOp, SessionOptions


def op(name: str, us: float | None) -> ExecutedOp:
    return ExecutedOp(name, "Conv", "float32", "float", us)


@pytest.fixture(scope="module")
def graph() -> ir.Graph:
    return zoo.draw("mobilenetv2", 0)[1]


def test_a_kernel_belongs_to_the_node_or_value_that_its_name_begins_with(graph: ir.Graph) -> None:
    nodes = [node for node in graph.graph if node.name]
    first, second, third = nodes[:3]
    value = third.outputs[0].name
    ops = [
        op("a change of layout", 1.0),
        op(f"{first.name}_token_1", 2.0),
        op(f"{second.name}/WithoutBiases", 4.0),
        op("Reorder", 8.0),
        op(f"{value}_nchwc", 16.0),
    ]
    assert spent(graph, ops) == {first.name: 3.0, second.name: 12.0, third.name: 16.0}


def test_a_name_is_not_the_beginning_of_a_longer_number(graph: ir.Graph) -> None:
    names = {node.name for node in graph.graph}
    assert {"Conv_0", "Conv_2"} <= names
    assert "Conv_29999" not in names
    found = spent(graph, [op("Conv_0", 1.0), op("Conv_29999", 2.0), op("Conv_2", 4.0)])
    assert found == {"Conv_0": 3.0, "Conv_2": 4.0}


@pytest.mark.parametrize("ops", [[], [op("fused", 1.0)], [op("Conv_0", None), op("Conv_2", 1.0)]])
def test_an_engine_that_does_not_tell_leaves_nothing(
    graph: ir.Graph, ops: list[ExecutedOp]
) -> None:
    assert spent(graph, ops) == {}


def test_parts_are_of_the_time_and_every_unit_is_in_one(graph: ir.Graph) -> None:
    found = features(graph)
    heads = {found.names[int(np.flatnonzero(found.kernels == k)[0])] for k in found.kernels}
    told = {name: float(i + 1) for i, name in enumerate(sorted(heads))}
    laid = shares(found, told)
    assert laid is not None
    assert laid.parts.sum() == pytest.approx(1)
    for kernel in np.unique(found.kernels):  # what was fused stays together
        assert len(set(laid.kernels[found.kernels == kernel])) == 1
    assert shares(found, {"elsewhere": 1.0, "too": 2.0}) is None


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_real_engine_names_what_costs(engine: str, graph: ir.Graph, tmp_path) -> None:
    pytest.importorskip(engine, reason=f"modelmill[{engine}]")
    ir.save(graph, tmp_path / "m.onnx")
    session = plugins.load("modelmill.runtimes", engine).open(
        str(tmp_path / "m.onnx"), SessionOptions()
    )
    session.run(random_feeds(graph))
    told = spent(graph, session.executed())
    convolutions = {n.name for n in graph.graph if n.op_type == "Conv"}
    found = features(graph)
    laid = shares(found, told)
    assert laid is not None
    owners = {found.names[i]: laid.kernels[i] for i in range(len(found.names))}
    assert len({owners[name] for name in convolutions}) == len(convolutions)
