"""The whole search: bits within a limit, and on the engine nothing slower than float."""

from dataclasses import replace

import numpy as np
import pytest

from modelmill import ir, targets
from modelmill.latency import Effort, Latency
from modelmill.line.quantize import Where
from modelmill.quant.calibrate import Calibrate, encode
from modelmill.quant.observe import observe
from modelmill.search import Bench, Goal, Notebook, choose
from modelmill.search.precision import settle
from modelmill.search.sensitivity import Probe, in_db
from modelmill.targets import load_target

QUICK = Effort(blocks=3, block_ms=2.0, warmups=1, rounds=1)
SIZE = Goal(limit_db=25.0, first_last=0, images=12, candidates=1000)


@pytest.fixture
def packed(target):
    return replace(target, packed_weights=True)


def test_the_smallest_within_the_limit(net, packed, planner, batches):
    found = choose(net, packed, planner, batches, SIZE)
    front = found.pareto
    assert found.answer == "mixed" and found.chosen in front
    assert [c.bytes for c in front] == sorted(c.bytes for c in front)
    assert [c.noise_db for c in front] == sorted(c.noise_db for c in front)
    assert found.chosen == next(c for c in front if c.noise_db >= 25)
    assert not front[-1].integer and front[-1].noise_db == 200
    names = [n.name for n in ir.nodes(net) if n.op_type in ("Conv", "Gemm")]
    for c in front:
        assert sorted([*(name for name, *_ in c.layers), *c.keep_float]) == sorted(names)
        assert {w for _, w, _ in c.layers} <= {4, 8}  # 2 and 3 bits take as much as 4 in the file
        assert all(c.ms is None and a == 8 for _, _, a in c.layers)


def test_bits_of_a_chip_and_of_activations(net, planner, batches, target):
    """Without an engine 2 and 3 bits are worth something, and activations have their bits too."""
    chip = replace(target, runtime=None)
    goal = replace(SIZE, limit_db=12.0, activation_bits=(4, 8))
    found = choose(net, chip, planner, batches, goal)
    bits = {(w, a) for c in found.pareto for _, w, a in c.layers}
    assert {w for w, _ in bits} >= {2, 3, 8} and {a for _, a in bits} <= {4, 8}
    assert found.chosen.bytes < found.uniform.bytes


def test_first_and_last_layer_keep_their_bits(net, packed, planner, batches):
    found = choose(net, packed, planner, batches, replace(SIZE, first_last=8))
    first, *_, last = (n.name for n in ir.nodes(net) if n.op_type in ("Conv", "Gemm"))
    assert {w for c in found.pareto for n, w, _ in c.layers if n in (first, last)} == {8}
    assert {w for c in found.pareto for n, w, _ in c.layers if n not in (first, last)} == {4, 8}


def test_prediction_is_near_the_whole_model(net, packed, planner, batches):
    found = choose(net, packed, planner, batches, SIZE)
    plan = planner(frozenset(found.chosen.keep_float)).plan
    plan = targets.with_bits(net, plan, {n: (w, a) for n, w, a in found.chosen.layers})
    names = {p.value for p in plan if p.value not in ir.constants(net)}
    encoded = encode(net, plan, observe(net, sorted(names), batches), Calibrate())
    assert abs(in_db(Probe(net, batches, 12).noise(encoded)) - found.chosen.noise_db) < 5


def test_a_limit_out_of_reach_is_float(net, packed, planner, batches):
    found = choose(net, packed, planner, batches, replace(SIZE, limit_db=150.0))
    assert found.answer == "float" and not found.chosen.integer
    assert "150.0 dB" in found.notes[0]


def test_resuming_gives_the_same_without_measuring(net, packed, planner, batches):
    first = choose(net, packed, planner, batches, SIZE)
    measured: list[str] = []
    book = Notebook(first.sensitivity, lambda name, noise: measured.append(name))
    assert choose(net, packed, planner, batches, SIZE, notebook=book) == first
    assert not measured


def test_few_candidates_keep_the_ends_and_the_chosen_one(net, packed, planner, batches):
    whole = choose(net, packed, planner, batches, SIZE)
    few = choose(net, packed, planner, batches, replace(SIZE, candidates=5))
    assert len(few.pareto) <= 6 < len(whole.pareto)
    assert few.pareto[0] == whole.pareto[0] and few.pareto[-1] == whole.pareto[-1]
    assert few.chosen == whole.chosen and few.chosen in few.pareto


def test_a_product_of_two_activations_has_no_bytes_to_save(graph_from_text, target):
    rng = np.random.default_rng(0)
    graph = graph_from_text(
        "g (float[N,4,6] x) => (float[N,4,4] y) {"
        "  q = MatMul(x, a)  k = MatMul(x, b)  t = Transpose<perm=[0,2,1]>(k)  y = MatMul(q, t) }",
        a=rng.normal(size=(6, 6)).astype("f"),
        b=rng.normal(size=(6, 6)).astype("f"),
    )
    where = Where("w8a8")
    found = choose(
        graph,
        target,
        lambda more: where.plan(graph, target, more),
        [{"x": rng.normal(size=(4, 4, 6)).astype("f")}],
        replace(SIZE, limit_db=200.0),
    )
    product = next(n.name for n in ir.nodes(graph) if n.outputs[0].name == "y")
    assert product not in {*found.chosen.keep_float, *(n for n, *_ in found.uniform.layers)}
    assert len(found.uniform.layers) == 2


def test_latency_on_the_engine(net, target, planner, batches):
    """Only 8 bits and float are in question; the answer was timed whole and is no slower."""
    shown: list[tuple[str, int, int]] = []
    goal = Goal("latency", limit_db=5.0, images=12)
    bench = Bench(layers=QUICK, whole=QUICK)
    book = Notebook(show=lambda *given: shown.append(given))
    found = choose(net, target, planner, batches, goal, bench, book)
    assert {(w, a) for c in found.pareto for _, w, a in c.layers} <= {(8, 8)}
    assert found.verified is not None and found.verified.over_float.ratio >= 1
    assert len(found.times) == 4 and all(c.ms for c in found.pareto)
    assert {what for what, *_ in shown} == {"sensitivity", "time layers", "time the model"}
    assert shown[-1] == ("time the model", 1, 1)
    assert found.chosen in found.pareto
    assert [c.ms for c in found.pareto[:-1]] == sorted(c.ms for c in found.pareto[:-1])
    assert found.pareto[-1].ms == found.verified.float_ms


def test_as_good_as_uniform(net, target, planner, batches):
    """Without a limit nothing is chosen that is predicted to be noisier than uniform 8 bits."""
    bench = Bench(layers=QUICK, whole=QUICK)
    found = choose(net, target, planner, batches, Goal("latency", None, images=12), bench)
    assert found.chosen.noise_db >= found.uniform.noise_db


def steady(ms):
    return Latency(tuple((ms,) for _ in range(4)), 1, 1)


@pytest.mark.parametrize(
    ("answer", "good", "times", "want"),
    [
        ("mixed", True, (2.0, 1.0, 0.9), "mixed"),
        ("mixed", True, (2.0, 1.0, 1.2), "uniform"),  # the sum of the layers was wrong
        ("mixed", True, (2.0, 1.0, 0.995), "uniform"),  # not measurably faster
        ("mixed", False, (2.0, 1.0, 1.2), "mixed"),  # uniform is too noisy
        ("mixed", False, (1.0, 2.0, 1.5), "float"),
        ("mixed", True, (1.0, 3.0, 0.8), "mixed"),
        ("uniform", True, (2.0, 1.0, None), "uniform"),
        ("uniform", True, (1.0, 2.9, None), "float"),
        ("float", True, (2.0, 1.0, None), "uniform"),
        ("float", True, (1.0, 2.0, None), "float"),
        ("float", False, (2.0, 1.0, None), "float"),
    ],
)
def test_the_whole_model_has_the_last_word(answer, good, times, want):
    held = {
        kind: steady(ms)
        for kind, ms in zip(("float", "uniform", "mixed"), times, strict=True)
        if ms is not None
    }
    found, notes = settle(answer, good, held)
    assert found == want
    if want not in (answer, "uniform" if answer == "float" else ""):
        assert notes and "times as fast" in notes[-1]


def test_what_cannot_be_searched_is_refused(graph_from_text, net, planner, batches, target):
    with pytest.raises(ValueError, match=r"latency: target .* cannot be timed"):
        chip = replace(target, runtime=None)
        choose(net, chip, planner, batches, Goal("latency"))
    with pytest.raises(ValueError, match="only emulates"):
        choose(net, replace(target, emulated=True), planner, batches, Goal("latency"))
    with pytest.raises(ValueError, match="Choices: size, latency"):
        Goal("speed")  # type: ignore[arg-type]
    relu = graph_from_text("g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }")
    empty = lambda more: targets.plan(relu, target, "w8a8", "x86_64", frozenset())  # noqa: E731
    with pytest.raises(ValueError, match="quantizes no layer"):
        choose(relu, load_target("ort_cpu"), empty, batches)
