"""What a layer costs: bytes of its constants, counted, and milliseconds on the target's engine,
measured.

Only whether a layer runs on integers matters to its time: weights of fewer than 8 bits are codes in
the same int8 kernels, and activations have 8 bits wherever an engine runs them. So two files of one
layer are timed, cut out of the model with its real shapes, batch 1:

    integer    Q - layer on integers - DQ
    float      Q - DQ - layer in float - Q - DQ

Each has the Q and DQ that the plan of the whole model says when the layer is on integers, and when
it is kept in float. The conversions at the two ends are in both, so that the difference is what
keeping this layer in float costs inside an integer model, its two conversions included, and what
the first layer saves by not quantizing the picture. An activation or an Add behind the layer that
leaves the integers with it belongs to the piece.

Not everything is in such a piece: two float layers in a row convert less than is counted, and
engines choose memory layouts for whole models. So the whole model is timed at the end.

Weights are drawn anew, since no kernel's time depends on them: layers of one shape are one
measurement, and one row of the database for all models.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from modelmill import ir
from modelmill.ir import Plan, Point
from modelmill.latency import Effort, Latency, compare, measure
from modelmill.quant.calibrate import Calibrate
from modelmill.records import Database, Record, Where, this_machine, utc_now
from modelmill.runtimes import DeploymentError, SessionOptions, find_platform, open_session
from modelmill.targets import Planned, Target

LAYER_EFFORT = Effort(blocks=10, block_ms=20.0, rounds=2)
WHOLE_EFFORT = Effort()
ONE_THREAD = SessionOptions(threads=1)
WHAT = "layer_p50_ms"
KINDS = ("integer", "float")
FLOAT_BITS = 32
SCALE_BYTES, ZERO_POINT_BYTES, BIAS_BYTES = 4, 1, 4
MARGIN = 0.01  # part of its time that a float layer is charged where it is not measurably slower

Planner = Callable[[frozenset[str]], Planned]  # nodes to keep in float -> the plan of the model


@dataclass(frozen=True)
class Bench:
    """Where layers are timed.

    database: keeps the times; None: nothing is kept. options: of the sessions, which have the
    batch of the files. layers, whole: effort for a layer, and for the model at the end.
    """

    database: Database | None = None
    options: SessionOptions = ONE_THREAD
    layers: Effort = LAYER_EFFORT
    whole: Effort = WHOLE_EFFORT


@dataclass(frozen=True)
class LayerTime:
    """One layer alone: p50 in ms of its integer and its float file (see above), their ratio as
    `latency.compare` words it for the integer one, and whether the database had it.
    """

    integer_ms: float
    float_ms: float
    verdict: str
    cached: bool

    @property
    def saved_ms(self) -> float:
        """What the layer costs more in float. Where neither is measurably faster, a little: then
        only accuracy can be a reason for float.
        """
        difference = self.float_ms - self.integer_ms
        if self.verdict != "no significant difference":
            return difference
        return max(difference, MARGIN * self.integer_ms)


# ---------------------------------------------------------------- bytes


def stored_bits(target: Target, bits: int) -> int:
    """Bits that a weight of `bits` bits takes in the file: two to a byte or one, where an engine
    reads it; what it needs where there is no engine.
    """
    if bits >= FLOAT_BITS or target.runtime is None:
        return bits
    return 4 if target.packed_weights and bits <= 4 else 8 if bits <= 8 else 16


def layer_bytes(node: ir.Node, plan: Plan, bits: int) -> int:
    """Bytes of the constants of a layer whose weight is stored with `bits` bits, 32 being float:
    weight, bias, scales and zero points.
    """
    total = 0
    for index, value in enumerate(node.inputs):
        array = ir.constant(value)
        if array is None or value is None:
            continue
        if index > 1:
            total += array.size * BIAS_BYTES
            continue
        total += -(-array.size * bits // 8)
        spec = plan.at(value.name or "", node.name or "", index)
        if bits < FLOAT_BITS and spec is not None:
            axis = getattr(spec, "axis", None)
            scales = 1 if axis is None else array.shape[axis]
            total += scales * (SCALE_BYTES + ZERO_POINT_BYTES)
    return total


# ---------------------------------------------------------------- time


def layer_times(
    graph: ir.Graph,
    target: Target,
    plan: Planner,
    layers: Sequence[str],
    bench: Bench,
    show: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, LayerTime | str]:
    """Times of the layers, by name; a text in place of one that the engine refused.

    Args:
        graph: float graph as the target's passes leave it.
        target: one with a runtime.
        plan: see `Planner`.
        layers: names of nodes that the plan has on integers.
        bench: where and how.
        show: told "time layers", how many are done, and of how many.
    """
    fixed = ir.with_batch(graph, 1) if ir.is_batch_dynamic(graph) else ir.infer_shapes(graph)
    planned = plan(frozenset())
    here: dict[tuple[str, str], LayerTime | str] = {}
    found: dict[str, LayerTime | str] = {}
    for done, name in enumerate(layers):
        plans = planned.plan, plan(frozenset({name})).plan
        piece = _piece(fixed, name, planned.inner, plans)
        x = _random_input(piece)
        files = {kind: _file(piece, target, p, x) for kind, p in zip(KINDS, plans, strict=True)}
        subjects = ir.fingerprint(files["integer"]), ir.fingerprint(files["float"])
        if subjects not in here:
            here[subjects] = _looked_up(target, subjects, bench) or _measured(
                target, files, subjects, x, bench
            )
        found[name] = here[subjects]
        show("time layers", done + 1, len(layers))
    return found


def _piece(graph: ir.Graph, name: str, inner: frozenset[str], plans: tuple[Plan, Plan]) -> ir.Graph:
    """The layer, what the engine fuses behind it, and what changes with it: nodes that run on
    integers in the first plan and not in the second, as an Add of its output. Weights drawn anew.
    """
    node = next(n for n in ir.nodes(graph) if n.name == name)
    members, output = [node], node.outputs[0]

    def ends(value: ir.Value) -> bool:
        first, second = (Point(value.name or "") in plan for plan in plans)
        return not ir.used_once(value) or (value.name not in inner and first == second)

    while not ends(output):
        members.append(next(iter(output.uses())).node)
        output = members[-1].outputs[0]
    made = {v.name for m in members for v in m.outputs}
    reads = [v for m in members for v in m.inputs if v is not None and ir.constant(v) is None]
    inputs = list(dict.fromkeys(v.name or "" for v in reads if v.name not in made))
    piece = ir.cut(graph, inputs, [output.name or ""])
    random = np.random.default_rng(0)
    for index, value in enumerate(ir.nodes(piece)[0].inputs):
        array = ir.constant(value)
        if array is not None:
            drawn = random.normal(size=array.shape) * (array.size / len(array)) ** -0.5
            ir.set_constant(piece, ir.nodes(piece)[0], index, drawn.astype(array.dtype))
    return piece


def _random_input(piece: ir.Graph) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    found = {}
    for name, info in ir.inputs(piece).items():
        shape = [d if isinstance(d, int) else 1 for d in info.shape]
        found[name] = np.abs(random.normal(size=shape)).astype(np.float32)
    return found


def _file(piece: ir.Graph, target: Target, plan: Plan, feeds: Mapping[str, np.ndarray]) -> ir.Graph:
    """The piece as the target's QDQ file, quantized where `plan`, of the whole model, says so."""
    values, nodes = set(ir.values(piece)), {n.name for n in ir.nodes(piece)}
    points = {
        point: plan.spec(point)
        for point in plan
        if point.value in values and (not point.node or point.node in nodes)
    }
    _, encoded = Calibrate("minmax", weights="minmax")(piece, Plan(points), [feeds])
    return ir.to_qdq(piece, encoded, target.on_codes, target.shield)


def _measured(
    target: Target,
    files: Mapping[str, ir.Graph],
    subjects: tuple[str, str],
    feeds: Mapping[str, np.ndarray],
    bench: Bench,
) -> LayerTime | str:
    options = replace(bench.options, batch=None)  # the file has its own
    try:
        times, version = time_files(target, files, feeds, options, bench.layers)
    except DeploymentError as error:
        return str(error)
    if bench.database is not None:
        bench.database.add(
            _record(target, kind, subjects, times[kind], version, bench) for kind in KINDS
        )
    return _layer_time(times, cached=False)


def _layer_time(times: Mapping[str, Latency], cached: bool) -> LayerTime:
    verdict = compare(times["float"], times["integer"]).verdict
    return LayerTime(times["integer"].p50_ms, times["float"].p50_ms, verdict, cached)


def time_files(
    target: Target,
    files: Mapping[str, ir.Graph],
    feeds: Mapping[str, np.ndarray],
    options: SessionOptions,
    effort: Effort,
) -> tuple[dict[str, Latency], str]:
    """Latency of each model on the target's engine, in turns, and the engine's version.

    Raises:
        DeploymentError: the engine refused, crashed or hung.
    """
    assert target.runtime is not None
    sessions = {}
    with tempfile.TemporaryDirectory(prefix="modelmill-") as folder:
        try:
            for name, graph in files.items():
                path = Path(folder) / f"{name}.onnx"
                ir.save(graph, path)
                sessions[name] = open_session(target.runtime, path, options)
            times = measure(sessions, feeds, effort)
            return times, next(iter(sessions.values())).version
        finally:
            for session in sessions.values():
                session.close()


# ---------------------------------------------------------------- database


def _record(
    target: Target,
    kind: str,
    subjects: tuple[str, str],
    latency: Latency,
    version: str,
    bench: Bench,
) -> Record:
    """The p50 of one of the two files, and which was the other: times are compared with those of
    the same turns only.
    """
    machine = this_machine()
    blocks = [round(float(np.median(block)), 6) for block in latency.samples_ms]
    return Record(
        what=WHAT,
        value=latency.p50_ms,
        unit="ms",
        n=latency.n,
        spread=latency.noise * latency.p50_ms,
        subject=subjects[KINDS.index(kind)],
        where=Where(machine.cpu, target.runtime or "", version, latency.threads, machine.isa),
        when=utc_now(),
        extra={"kind": kind, "pair": "-".join(subjects), "blocks_ms": blocks, "batch": 1},
    )


def _looked_up(target: Target, subjects: tuple[str, str], bench: Bench) -> LayerTime | None:
    """The newest times of this pair on this machine, engine, version and number of threads."""
    if bench.database is None or target.runtime is None:
        return None
    version = find_platform(target.runtime).version
    times: dict[str, Latency] = {}
    for kind, subject in zip(KINDS, subjects, strict=True):
        for r in bench.database.query(WHAT, subject, target.runtime, this_machine().cpu):
            same = (r.where.version, r.where.threads) == (version, bench.options.threads)
            blocks = r.extra.get("blocks_ms")
            if same and r.extra.get("pair") == "-".join(subjects) and isinstance(blocks, list):
                samples = tuple((float(block),) for block in blocks)
                times[kind] = Latency(samples, r.where.threads, 1)
    return _layer_time(times, cached=True) if len(times) == len(KINDS) else None
