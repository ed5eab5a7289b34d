"""Bytes by hand; layers cut out and timed on ONNX Runtime, once."""

from dataclasses import replace

import numpy as np
import pytest

from modelmill import ir
from modelmill.latency import Effort, Latency
from modelmill.records import Database
from modelmill.runtimes import SessionOptions, open_session
from modelmill.search import cost
from modelmill.search.cost import Bench, LayerTime, layer_bytes, layer_times, stored_bits
from modelmill.targets import load_target

QUICK = Effort(blocks=3, block_ms=2.0, warmups=1, rounds=1)


def named(graph, output):
    return next(n for n in ir.nodes(graph) if n.outputs[0].name == output)


@pytest.fixture
def pieces(net, planner, target):
    """name of a layer's output -> (the piece, its two files)"""

    def make(output):
        name = named(net, output).name
        fixed, planned = ir.with_batch(net, 1), planner(frozenset())
        plans = planned.plan, planner(frozenset({name})).plan
        piece = cost._piece(fixed, name, planned.inner, plans)
        x = cost._random_input(piece)
        return piece, [cost._file(piece, target, plan, x) for plan in plans]

    return make


def test_bytes_by_hand(net, planner):
    plan = planner(frozenset()).plan
    c2 = named(net, "c2")
    assert layer_bytes(c2, plan, 32) == 4 * (8 * 8 * 9 + 8)
    assert layer_bytes(c2, plan, 8) == 8 * 8 * 9 + 4 * 8 + 5 * 8  # a scale and a zero point each
    assert layer_bytes(c2, plan, 4) == 8 * 8 * 9 // 2 + 4 * 8 + 5 * 8
    assert layer_bytes(c2, plan, 3) == 8 * 8 * 9 * 3 // 8 + 4 * 8 + 5 * 8


def test_what_a_file_holds(target):
    packed = replace(target, packed_weights=True)
    chip = load_target("tensorrt")
    assert [stored_bits(packed, b) for b in (2, 3, 4, 5, 8, 32)] == [4, 4, 4, 8, 8, 32]
    plain = replace(target, packed_weights=False)
    assert [stored_bits(plain, b) for b in (2, 4, 8, 32)] == [8, 8, 8, 32]
    assert [stored_bits(chip, b) for b in (2, 3, 4, 32)] == [2, 3, 4, 32]


def test_a_piece_reaches_as_far_as_its_integers(net, pieces):
    """A fused Relu; an Add that floats reach; a LeakyRelu that leaves the integers."""
    ops = {o: [n.op_type for n in ir.nodes(pieces(o)[0])] for o in ("c1", "c2", "c3", "y")}
    assert ops == {
        "c1": ["Conv", "Relu"],
        "c2": ["Conv", "Add", "Relu"],
        "c3": ["Conv", "LeakyRelu", "GlobalAveragePool", "Flatten"],
        "y": ["Gemm"],
    }
    assert list(ir.inputs(pieces("c2")[0])) == ["r1"]  # the shortcut as well


def test_engine_runs_what_the_files_say(tmp_path, pieces):
    for output, integer, real in (("c1", "QLinearConv", "Conv"), ("c2", "QLinearConv", "Conv")):
        for kind, file in zip(("integer", "float"), pieces(output)[1], strict=True):
            path = tmp_path / f"{output}-{kind}.onnx"
            ir.save(file, path)
            with open_session("onnxruntime", path) as session:
                ran = {op.op.removeprefix("Fused") for op in session.executed()}
            assert (integer if kind == "integer" else real) in ran
            assert (real if kind == "integer" else integer) not in ran


def test_first_layer_in_float_saves_a_conversion(pieces):
    """Nobody else reads the picture's codes; those of an inner value are read by the shortcut."""
    integer, real = pieces("c1")[1]
    assert next(n.op_type for n in ir.nodes(integer)) == "QuantizeLinear"
    assert [n.op_type for n in ir.nodes(real)][:2] == ["Conv", "Relu"]


def test_a_second_run_measures_nothing(tmp_path, net, target, planner, monkeypatch):
    bench = Bench(Database(tmp_path / "records.db"), layers=QUICK)
    layers = [n.name for n in ir.nodes(net) if n.op_type in ("Conv", "Gemm")]
    first = layer_times(net, target, planner, layers, bench)
    assert all(isinstance(t, LayerTime) and not t.cached for t in first.values())
    assert all(t.integer_ms > 0 and t.float_ms > 0 for t in first.values())

    def never(*given):
        raise AssertionError("measured again")

    monkeypatch.setattr(cost, "time_files", never)
    again = layer_times(net, target, planner, layers, bench)
    assert all(t.cached for t in again.values())
    for name, time in first.items():
        assert again[name].integer_ms == pytest.approx(time.integer_ms, rel=0.5)
    two = replace(bench, options=SessionOptions(threads=2))
    with pytest.raises(AssertionError, match="measured again"):  # other threads, other times
        layer_times(net, target, planner, layers, two)


def test_weights_do_not_matter(graph_from_text, target, tmp_path):
    """Two layers of one shape are one measurement: two records, not four."""
    from modelmill.line.quantize import Where

    rng = np.random.default_rng(0)
    graph = graph_from_text(
        "g (float[N,4,6,6] x) => (float[N,4,6,6] y) {"
        "  a = Conv(x, w1, b1)  b = Conv(a, w2, b2)  c = Conv(b, w3, b3)  y = Relu(c) }",
        **{f"w{i}": rng.normal(size=(4, 4, 1, 1)).astype("f") for i in (1, 2, 3)},
        **{f"b{i}": rng.normal(size=4).astype("f") for i in (1, 2, 3)},
    )
    database = Database(tmp_path / "records.db")
    layers = [named(graph, "a").name, named(graph, "b").name]
    bench, where = Bench(database, layers=QUICK), Where("w8a8")
    plan = lambda more: where.plan(graph, target, more)  # noqa: E731
    first, second = layer_times(graph, target, plan, layers, bench).values()
    assert first != second  # the first reads the picture
    assert len(database.query(cost.WHAT)) == 4
    third = layer_times(graph, target, plan, layers[1:], bench)[layers[1]]
    assert third.cached and len(database.query(cost.WHAT)) == 4


def test_a_refusal_is_a_text(net, target, planner):
    hasty = Bench(options=SessionOptions(timeout_s=0.001), layers=QUICK)
    name = named(net, "c2").name
    assert isinstance(layer_times(net, target, planner, [name], hasty)[name], str)


def test_what_float_costs_where_nothing_is_measurable():
    even = LayerTime(1.0, 0.99, "no significant difference", False)
    assert even.saved_ms == pytest.approx(0.01)
    assert LayerTime(1.0, 0.5, "slower", False).saved_ms == -0.5
    assert LayerTime(1.0, 1.5, "faster", False).saved_ms == 0.5
    times = {k: Latency(((v,), (v,), (v,)), 1, 1) for k, v in (("integer", 2.0), ("float", 1.0))}
    assert cost._layer_time(times, False).verdict == "slower"
