"""What every quantization step must keep: inputs untouched, the same again, plans that targets
take."""

import inspect
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from modelmill import executor, ir, plugins, targets
from modelmill.ir import Plan
from modelmill.line.quantize import load_target, prepare_graph
from modelmill.quant.calibrate import Calibrate
from modelmill.quant.equalize import Equalize

NAMES = plugins.names("modelmill.quant")
TEXT = """g (float[N,3,8,8] x) => (float[N,5] y) {
  c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)  r1 = Relu(c1)
  c2 = Conv<pads=[1,1,1,1], group=8>(r1, w2, b2)  r2 = LeakyRelu<alpha=0.1>(c2)
  c3 = Conv(r2, w3)  a = Add(c3, r1)  s = Relu(a)
  p = GlobalAveragePool(s)  f = Flatten(p)  y = Gemm<transB=1>(f, w4, b4)
}"""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=NAMES)
def step(request):
    return plugins.load("modelmill.quant", request.param)()


@pytest.fixture
def given(graph_from_text):
    """(graph, plan with encodings, batches) for ONNX Runtime's rules."""
    rng = np.random.default_rng(0)
    shapes = {
        "w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "b2": (8,), "w3": (8, 8, 1, 1),
        "w4": (5, 8), "b4": (5,),
    }  # fmt: skip
    arrays = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    graph = prepare_graph(graph_from_text(TEXT, **arrays))
    batches = [{"x": rng.normal(size=(8, 3, 8, 8)).astype(np.float32)} for _ in range(3)]
    target = load_target("ort_cpu")
    plan = targets.plan(graph, target, "w8a8", "x86_64", frozenset()).plan
    return *Calibrate()(graph, plan, batches), batches


def result(step, graph, plan, batches):
    graph, plan = step(graph, plan, batches)
    return ir.to_bytes(graph), plan.fingerprint()


def short(step):
    """The same step; where it learns, a few iterations only."""
    long = {f.name for f in fields(step)} & {"iterations", "steps", "tune"}
    return replace(step, **dict.fromkeys(long, 5))


def test_the_signature(step):
    assert list(inspect.signature(step).parameters) == ["graph", "plan", "batches"]
    assert step == type(step)() and inspect.getdoc(type(step))  # options are a value


def test_inputs_are_untouched(step, given):
    graph, plan, batches = given
    before = ir.to_bytes(graph), plan.fingerprint(), [f["x"].tobytes() for f in batches]
    short(step)(graph, plan, batches)
    assert before == (ir.to_bytes(graph), plan.fingerprint(), [f["x"].tobytes() for f in batches])


def test_the_same_again(step, given):
    step = short(step)
    assert result(step, *given) == result(step, *given)


def test_the_target_still_takes_the_plan(step, given):
    graph, plan, batches = given
    step = short(step)
    made, found = step(graph, plan, batches)
    for name in plugins.names("modelmill.targets"):
        target = load_target(name)
        precision = target.schemes[0].precision
        asked = targets.plan(graph, target, precision, "x86_64", frozenset()).plan
        _, numbers = Calibrate()(graph, asked, batches)
        after, theirs = step(graph, numbers, batches)
        targets.check(after, target, precision, theirs)
        if not any(spec.spec.logarithmic for spec in theirs.encodings().values()):
            ir.to_qdq(after, theirs, target.on_codes, target.shield)
    assert set(found) == set(plan) and found.ties == plan.ties
    assert {n.name for n in ir.nodes(made)} == {n.name for n in ir.nodes(graph)}


def test_the_float_output_hardly_moves(step, given):
    """A step may equalise, correct or choose; the float network it leaves is about the same."""
    graph, plan, batches = given
    made, _ = step(graph, plan, batches)
    want, got = (executor.Module(g)(batches[0])["y"] for g in (graph, made))
    assert float((got - want).abs().max()) < 0.05 * float(want.abs().max())


def test_sixteen_bits_reproduce_float(step, given):
    """With ranges that cut nothing off, what a step gives computes what the float network did."""
    graph, plan, batches = given
    specs = {p: replace(plan.spec(p), bits=16) for p in plan if plan.spec(p).bits < 16}
    asked = plan.replace(specs)
    wide = Calibrate(activations="minmax", before_leaky="minmax", weights="minmax")
    made, found = step(*wide(graph, asked, batches), batches)
    if isinstance(step, Equalize):  # the values are others now, and so are their ranges
        _, found = wide(made, asked, batches)
    want = executor.Module(graph)(batches[0])["y"]
    got = executor.Module(made, found)(batches[0])["y"]
    assert found and float((got - want).abs().max()) < 1e-3 * float(want.abs().max())


def test_it_can_be_given_an_empty_plan(step, given):
    graph, _, batches = given
    made, found = step(graph, Plan(), batches)
    assert len(found) == 0 and len(ir.nodes(made)) == len(ir.nodes(graph))
