"""What every target must keep: its table is known to the executor, its plans are its own, and what
it calls integer runs as integer on its engine."""

from dataclasses import replace

import numpy as np
import pytest

from modelmill import executor, ir, plugins, targets
from modelmill.executor.integer import IntegerModule
from modelmill.ir import Plan, Point
from modelmill.line.deploy import fallbacks
from modelmill.line.quantize import Where, prepare_graph
from modelmill.line.rewrite import rewritten
from modelmill.numerics import Arithmetic, Encoding, choose_encoding
from modelmill.records.machine import this_machine

NAMES = plugins.names("modelmill.targets")
MODELS = ("resnet20_cifar10", "mobilenetv1_025_imagenet", "fastestdet_coco")
SMALL = {
    "residual": """c = Conv<pads=[1,1,1,1]>(x, w, b)  r = Relu(c)
        d = Conv<pads=[1,1,1,1]>(r, v, d0)  a = Add(d, r)  s = Relu(a)
        p = GlobalAveragePool(s)  f = Flatten(p)  y = Gemm<transB=1>(f, u, e)""",
    "shared": """c = Conv<pads=[1,1,1,1]>(x, w, b)  r = Relu(c)
        d = Conv<pads=[1,1,1,1]>(r, w, b)
        p = GlobalAveragePool(d)  f = Flatten(p)  y = Gemm<transB=1>(f, u, e)""",
    "depthwise": """c = Conv<pads=[1,1,1,1], group=16>(x, k, b)  r = Clip(c, low, high)
        d = Conv(r, o, d0)  p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(d)
        f = GlobalAveragePool(p)  g = Flatten(f)  y = Gemm<transB=1>(g, u, e)""",
    "branches": """c = Conv(x, o, b)  l = LeakyRelu<alpha=0.1>(c)  d = Conv(l, o2, d0)
        t = Concat<axis=1>(l, d)  q = Conv(t, q0, b2)  p = AveragePool<kernel_shape=[2,2]>(q)
        f = GlobalAveragePool(p)  g = Flatten(f)  y = Gemm<transB=1>(g, u, e)""",
}
SHAPES = {
    "w": (16, 16, 3, 3), "b": (16,), "b2": (16,), "v": (16, 16, 3, 3), "d0": (16,),
    "u": (10, 16), "e": (10,),
    "k": (16, 1, 3, 3), "o": (16, 16, 1, 1), "o2": (16, 16, 1, 1), "q0": (16, 32, 1, 1),
}  # fmt: skip
NUMBERS = {"low": np.float32(0), "high": np.float32(6)}


@pytest.fixture(scope="module", params=NAMES)
def target(request):
    return plugins.load("modelmill.targets", request.param)


@pytest.fixture(scope="module")
def prepared(graph_from_text, data_dir_or_none):
    """Name of a small graph or of a real model -> the graph as a build plans it."""
    kept = {}

    def get(name):
        if name not in kept:
            kept[name] = prepare_graph(make(name))
        return kept[name]

    def make(name):
        if name in SMALL:
            rng = np.random.default_rng(0)
            words = SMALL[name].replace("(", " ").replace(")", " ").replace(",", " ").split()
            arrays = {
                n: (rng.normal(size=s) / np.sqrt(np.prod(s[1:]))).astype("f")
                for n, s in SHAPES.items()
                if n in words
            }
            arrays |= {n: number for n, number in NUMBERS.items() if n in words}
            return graph_from_text(
                f"g (float[N,16,12,12] x) => (float[N,10] y) {{ {SMALL[name]} }}", **arrays
            )
        if data_dir_or_none is None:
            pytest.skip("no real models; set MODELMILL_DATA")
        return ir.load(data_dir_or_none / "models" / f"{name}.onnx")

    return get


@pytest.fixture(scope="module")
def data_dir_or_none(request):
    try:
        return request.getfixturevalue("data_dir")
    except pytest.skip.Exception:
        return None


def planned(graph, target, precision=None, flags=None):
    machine = this_machine()
    flags = frozenset(machine.flags if flags is None else flags)
    precision = precision or target.schemes[0].precision
    return targets.plan(graph, target, precision, machine.arch, flags)


def numbered(graph, plan):
    """The plan with plausible numbers: ranges that differ by name, above 0 behind a ReLU or Clip,
    ties and bias scales kept.
    """
    constants, tied = ir.constants(graph), {p: g[0] for g in plan.ties for p in g}
    groups = {p: g for g in plan.ties for p in g}
    positive = {
        Point(o.name) for n in ir.nodes(graph) for o in n.outputs if n.op_type in ("Relu", "Clip")
    }
    found = {}
    for point in plan:
        spec = plan.spec(point)
        if spec.bits == 32:
            continue
        array = constants.get(point.value)
        if array is not None and (spec.axis is not None or spec.symmetric):
            rows = array if spec.axis is None else np.moveaxis(array, spec.axis, 0)
            rows = rows.reshape(1 if spec.axis is None else len(rows), -1)
            low, high = rows.min(1), rows.max(1)
            ends = (low[0], high[0]) if spec.axis is None else (low, high)
        else:
            salt = sum(map(ord, tied.get(point, point).value)) % 97
            from_relu = positive & set(groups.get(point, (point,)))
            ends = (0.0 if from_relu else -1.0 - salt / 50, 2.0 + salt / 30)
        found[point] = choose_encoding(spec, *ends)
    for node in ir.nodes(graph):
        for point in plan:
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            if bias is None or plan.spec(point).bits != 32 or point.value != bias.name:
                continue
            if point.node in ("", node.name):
                x, w = (found[p] for p in points_of(node, found))
                spec, numbers = plan.spec(point), x.scale * w.scale
                if spec.axis is not None:
                    numbers = np.broadcast_to(numbers, constants[point.value].shape)
                found[point] = Encoding(spec, numbers, np.zeros(numbers.shape, np.int32))
    return Plan(found, plan.ties)


FAKE = ("torch_eager",)  # float arithmetic between codes, and it says so


def skip_without_engine(target):
    if target.runtime is None:
        pytest.skip(f"no engine here runs {target.name}: it is simulated")


def points_of(node, found):
    for index in (0, 1):
        name = node.inputs[index].name
        own = Point(name, node.name, index)
        yield own if own in found else Point(name)


# ------------------------------------------------------------ the table


def test_every_operator_is_known_to_the_executor(target):
    ops = {r.op for r in target.rules} | {op for chain in target.fused for op in chain}
    ops |= {*target.on_codes, *target.shield, *(op for _, op in target.float_kernels)}
    assert ops <= set(executor.operators())


def test_every_claim_has_a_source_and_the_engine_an_adapter(target):
    assert target.source and all(guard.source and guard.why for guard in target.guards)
    if target.runtime is None:
        assert target.export, "a chip that is not here takes a file, or nobody can use the target"
        return
    runtime = plugins.load("modelmill.runtimes", target.runtime)
    assert runtime.name == target.runtime


def test_its_name_is_its_file_and_every_rule_can_be_meant(target):
    assert targets.load_target(target.name) is target
    targets.validate(target)


def test_chains_and_movement_have_rules(target):
    ops = {rule.op for rule in target.rules}
    assert all(chain[0] in ops for chain in target.fused)
    assert set(target.on_codes) <= {r.op for r in target.rules if r.output == "same"}
    for rule in target.rules:
        if rule.op in ("Conv", "Gemm", "MatMul") and "weight" in rule.inputs:
            assert rule.anchor, f"{rule.op} would never start a quantized region"


# ------------------------------------------------------------ plans


@pytest.mark.parametrize("name", [*SMALL, *MODELS])
def test_its_own_plans_are_accepted(target, prepared, name):
    graph = prepared(name)
    before = ir.to_bytes(graph)
    for scheme in target.schemes:
        for flags in ((), None):
            found = planned(graph, target, scheme.precision, flags)
            targets.check(graph, target, scheme.precision, found.plan)
            convs = [v for v in found.verdicts if v.op in ("Conv", "Gemm")]
            assert len(found.verdicts) == len(ir.nodes(graph))
            explained = [v.runs == "integer" or " refuses: " in v.why for v in convs]
            assert found.plan and convs and all(explained)
            assert not {p.value for p in found.plan} & found.inner
    assert ir.to_bytes(graph) == before


@pytest.mark.parametrize("name", [*SMALL, *MODELS])
def test_the_file_gives_the_plan_back(target, prepared, name):
    graph = prepared(name)
    plan = numbered(graph, planned(graph, target).plan)
    if any(plan.spec(point).logarithmic for point in plan):
        with pytest.raises(ValueError, match="cannot be written as QDQ"):
            ir.to_qdq(graph, plan)
        return
    artifact = ir.to_qdq(graph, plan, target.on_codes, target.shield)
    made, read = ir.from_qdq(artifact)
    if not any(point.node for point in plan):  # a shared constant comes back once per reader
        assert dict(read) == dict(plan)
    assert sorted(map(hash, read.values())) == sorted(map(hash, plan.values()))
    again = ir.to_qdq(made, read, target.on_codes, target.shield)
    assert ir.fingerprint(again) == ir.fingerprint(artifact)


@pytest.mark.parametrize("name", [*SMALL, "resnet20_cifar10", "fastestdet_coco"])
def test_what_is_planned_as_integer_runs_as_integer(target, prepared, name, tmp_path, open_shared):
    skip_without_engine(target)
    missing = plugins.load("modelmill.runtimes", target.runtime).missing()
    if missing:
        pytest.skip(f"{target.runtime} is not installed: {missing}")
    if target.name in FAKE:
        pytest.skip(f"{target.name} has no integer kernels, by design")
    graph = prepared(name)
    found = planned(graph, target)
    plan = numbered(graph, found.plan)
    path = tmp_path / "artifact.onnx"
    ir.save(ir.to_qdq(graph, plan, target.on_codes, target.shield), path)
    with open_shared(target.runtime, path) as session:
        executed = tuple(session.executed())
    verdicts = [vars(v) for v in found.verdicts]
    assert fallbacks(target, verdicts, executed) == ()
    anchors = [v for v in found.verdicts if v.runs == "integer" and v.op in ("Conv", "Gemm")]
    assert sum(op.kind == "integer" for op in executed) >= len(anchors)


def test_a_float_layer_is_noticed(target, prepared, tmp_path, open_shared):
    """The counter-check: nothing is quantized, all of it was planned."""
    skip_without_engine(target)
    if plugins.load("modelmill.runtimes", target.runtime).missing():
        pytest.skip(f"{target.runtime} is not installed")
    if target.name in FAKE:
        pytest.skip(f"{target.name} has no integer kernels, by design")
    graph = prepared("residual")
    path = tmp_path / "float.onnx"
    ir.save(graph, path)
    with open_shared(target.runtime, path) as session:
        executed = tuple(session.executed())
    verdicts = [vars(v) for v in planned(graph, target).verdicts]
    layers = [v for v in verdicts if v["runs"] == "integer" and v["op"] in ("Conv", "Gemm")]
    assert len(fallbacks(target, verdicts, executed)) >= len(layers) >= 2
    in_float = [vars(replace(v, runs="float")) for v in planned(graph, target).verdicts]
    assert fallbacks(target, in_float, executed) == ()


# ------------------------------------------------------------ what has no engine here


@pytest.mark.parametrize("name", [*SMALL, "fastestdet_coco"])
def test_the_simulation_takes_its_plans(target, prepared, name):
    """In its own arithmetic, with codes that its formats can hold."""
    graph = prepared(name)
    plan = numbered(graph, planned(graph, target).plan)
    encodings = plan.encodings()
    seen = []

    def look(value, codes):
        spec = encodings[Point(value)].spec
        assert spec.qmin <= codes.min() and codes.max() <= spec.qmax
        seen.append(value)

    (fed,) = (v for v in graph.graph.inputs if not v.is_initializer())
    shape = [d if isinstance(d, int) else 2 for d in ir.shape(fed)]
    x = np.random.default_rng(0).normal(size=shape).astype("f")
    outputs = IntegerModule(graph, plan, target.arithmetic)({fed.name: x}, look)
    assert seen and all(np.isfinite(y.numpy()).all() for y in outputs.values())


def narrowed(graph, target, precision):
    """Target, graph after its passes and numbered plan at a precision it does not list, all layers
    alike."""
    made = targets.at_precision(target, precision)
    plan = Where(precision, first_last=0).plan(graph, made).plan
    return made, rewritten(graph, made), plan


def skip_if_it_cannot(target, precision):
    try:
        targets.at_precision(target, precision)
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("precision", ["w4a4", "w2a8", "w3a2"])
@pytest.mark.parametrize("name", SMALL)
def test_fewer_bits_are_its_arithmetic_still(target, prepared, name, precision):
    """Every layer, given the same codes, is within one code of the arithmetic of real numbers, and
    within the range of its own few codes. Two codes for MNN: its depthwise kernel cuts the bias and
    the zero point to steps of the accumulator, which two-bit weights make as long as a code."""
    skip_if_it_cannot(target, precision)
    made, graph, plan = narrowed(prepared(name), target, precision)
    targets.check(graph, made, precision, plan)
    plan = numbered(graph, plan)
    encodings, ideal = plan.encodings(), {}
    x = np.random.default_rng(0).normal(size=(2, 16, 12, 12)).astype("f")
    IntegerModule(graph, plan, Arithmetic())({"x": x}, lambda v, codes: ideal.update({v: codes}))

    def compare(value, codes):
        spec = encodings[Point(value)].spec
        assert spec.qmin <= codes.min() and codes.max() <= spec.qmax
        assert (codes - ideal[value]).abs().max() <= (2 if target.name == "mnn" else 1)
        return ideal[value]

    IntegerModule(graph, plan, target.arithmetic)({"x": x}, compare)
    assert ideal and any(plan.spec(point).bits < 8 for point in plan)


def test_narrow_weights_run_on_integers(target, prepared, tmp_path, open_shared):
    """Packed or not, as the target wants it; codes as in the simulation."""
    skip_without_engine(target)
    skip_if_it_cannot(target, "w2a8")
    if plugins.load("modelmill.runtimes", target.runtime).missing():
        pytest.skip(f"{target.runtime} is not installed")
    made, graph, plan = narrowed(prepared("branches"), target, "w2a8")
    plan = numbered(graph, plan)
    path = tmp_path / "artifact.onnx"
    artifact = ir.to_qdq(graph, plan, made.on_codes, made.shield, made.packed_weights)
    packed = [a for a in ir.constants(artifact).values() if a.dtype.name == "int4"]
    assert bool(packed) == target.packed_weights and dict(ir.from_qdq(artifact)[1]) == dict(plan)
    ir.save(artifact, path)
    with open_shared(target.runtime, path) as session:
        executed = tuple(session.executed())
    found = Where("w2a8", first_last=0).plan(prepared("branches"), made)
    if target.name not in FAKE:
        assert fallbacks(target, [vars(v) for v in found.verdicts], executed) == ()


@pytest.mark.parametrize("name", [*SMALL, "resnet20_cifar10", "fastestdet_coco"])
def test_its_files_are_written(target, prepared, name):
    graph = prepared(name)
    plan = numbered(graph, planned(graph, target).plan)
    before = ir.to_bytes(graph)
    for form in target.export:
        files = plugins.load("modelmill.export", form)(graph, plan)
        assert files and all(suffix.startswith(".") and data for suffix, data in files.items())
    assert ir.to_bytes(graph) == before
