"""Latency of models on engines, measured in turns, and who is faster.

The first model is the reference of the others on the same engine; the first engine is the reference
of that model on the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from modelmill import ir, tasks
from modelmill.latency import Effort, Latency, Speedup, compare, measure
from modelmill.line.artifact import engine_file, engines_of, find_card
from modelmill.line.filing import check_database
from modelmill.line.inspect import Model, label, open_graph
from modelmill.line.measured import described, measurement, platform_of
from modelmill.line.report import FLOAT
from modelmill.line.show import SILENT, Show
from modelmill.line.source import DataSource
from modelmill.records.engine import masked
from modelmill.records.machine import Machine, this_machine
from modelmill.records.spool import deliver
from modelmill.runtimes import RemoteSession, SessionOptions, open_session
from modelmill.targets import load_target
from modelmill.tasks import Card

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Contender:
    """One model on one engine.

    speedup: over the one called `against`, which shares the engine, or else the model.
    """

    name: str
    model: str
    runtime: str
    version: str
    latency: Latency
    peak_memory_mib: float
    against: str | None = None
    same_engine: bool = False
    speedup: Speedup | None = None

    @property
    def regressed(self) -> bool:
        """Whether it is slower than the reference model on the same engine."""
        return self.same_engine and self.speedup is not None and self.speedup.verdict == "slower"


@dataclass(frozen=True)
class Bench:
    """All contenders, engine by engine. fed: what they computed on. batch: images per inference.
    database: where the latencies were stored, None: nowhere.
    """

    rows: tuple[Contender, ...]
    fed: str
    batch: int
    machine: Machine
    database: str | None = None

    @property
    def accepted(self) -> bool:
        """Whether no model is slower than the first."""
        return not any(row.regressed for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """All facts, raw samples included."""
        return {
            "fed": self.fed,
            "batch": self.batch,
            "accepted": self.accepted,
            "machine": asdict(self.machine),
            "database": self.database,
            "rows": [_row(row) for row in self.rows],
        }


@dataclass(frozen=True)
class _Loaded:
    """A session and what it is fed with: contenders may name and shape their inputs differently."""

    session: RemoteSession
    feeds: Feeds

    @property
    def options(self) -> SessionOptions:
        return self.session.options

    def time(self, feeds: Mapping[str, np.ndarray], warmup: int, n: int) -> list[float]:
        """Milliseconds of `n` inferences on its own input."""
        return self.session.time(self.feeds, warmup, n)


def bench(  # noqa: PLR0913 (keyword arguments are the interface)
    models: Model | Sequence[Model],
    targets: str | Sequence[str] = (),
    *,
    runtimes: str | Sequence[str] = (),
    data: DataSource | None = None,
    card: str | Path | Card | None = None,
    batch: int = 1,
    threads: int = 1,
    seed: int = 0,
    timeout_s: float = 300.0,
    effort: Effort | None = None,
    db: str | None = None,
    show: Show = SILENT,
) -> Bench:
    """Time models on engines, all of them in turns.

    Args:
        models: one or several; the first is the reference. ONNX files, PyTorch networks or graphs.
        targets: whose engines are taken; or name the engines with `runtimes`.
        runtimes: engines, or paths of adapter files.
        data: images, the first of which is the input; None: normal random numbers.
        card: needed with `data` or for open sizes; None: the one beside each model.
        batch: images per inference; a model with a fixed batch has its own.
        threads: of the engine.
        seed: of the random numbers and of the bootstrap.
        timeout_s: of a request.
        effort: how much measuring is done; None: the usual.
        db: path or URL of a database that keeps the latencies; None: nothing is kept.
        show: who watches.

    Raises:
        ValueError: wrong input.
        DeploymentError: an engine failed.
    """
    listed = [models] if isinstance(models, str | Path | ir.Graph) else list(models)
    engines = engines_of(targets, runtimes)
    if not listed or not engines:
        raise ValueError("nothing to measure: give a model and an engine, for example -t ort_cpu")
    check_database(db)
    graphs = [open_graph(model, card) for model in listed]
    feeds = [_feeds(*pair, data, card, batch, seed) for pair in zip(listed, graphs, strict=True)]
    options = SessionOptions(threads, timeout_s, batch=_common_batch(feeds))
    names = _names([label(model) for model in listed])
    with ExitStack() as stack:
        paths = [
            stack.enter_context(engine_file(*pair)) for pair in zip(listed, graphs, strict=True)
        ]
        loaded = {
            (engine, name): _Loaded(stack.enter_context(open_session(engine, path, options)), feed)
            for engine in dict.fromkeys(engines)
            for name, path, feed in zip(names, paths, feeds, strict=True)
        }
        with show.step(f"time {len(loaded)} in turns"):
            turns = {f"{name} on {engine}": held for (engine, name), held in loaded.items()}
            found = measure(turns, feeds[0], effort or Effort())
        rows = _contenders(loaded, found, seed)
    db = _file(db, rows, dict(zip(names, graphs, strict=True)), targets, show)
    fed = "normal random numbers" if data is None else f"the first image of {data}"
    return Bench(tuple(rows), fed, options.batch or 1, this_machine(), db)


def _common_batch(feeds: Sequence[Feeds]) -> int:
    sizes = {next(iter(f.values())).shape[0] for f in feeds}
    if len(sizes) > 1:
        raise ValueError(f"the models have different batches, {sorted(sizes)}; time them apart")
    return int(sizes.pop())


def _file(
    db: str | None,
    rows: Sequence[Contender],
    graphs: Mapping[str, ir.Graph],
    targets: str | Sequence[str],
    show: Show,
) -> str | None:
    """Keep the latencies: the database they are in, None if it cannot be reached. An engine that no
    target was named for is a platform of its own name.
    """
    if db is None:
        return None
    asked = [load_target(t) for t in ((targets,) if isinstance(targets, str) else targets)]
    of_engine = {t.runtime: t.name for t in reversed(asked)}
    models = {name: described(graph, name) for name, graph in graphs.items()}
    measured = []
    for row in rows:
        graph = graphs[row.model]
        coded = any(node.op_type == "DequantizeLinear" for node in ir.nodes(graph))
        latency = row.latency if ir.is_batch_dynamic(graph) else replace(row.latency, batch=1)
        target = of_engine.get(row.runtime) or Path(row.runtime).stem
        precision = "qdq" if coded else FLOAT
        platform = platform_of(target, row.version, precision, latency.threads, latency.batch)
        extra: dict[str, Any] = {"batch": row.latency.batch}
        measured.append(measurement(models[row.model].structure, platform, latency, extra))
    try:
        done = deliver(db, measured, list(models.values()))
    except ValueError as error:  # what was measured is worth telling all the same
        show.say(f"not stored: {error}")
        return None
    if done.warning:
        show.say(done.warning)
    return None if done.waiting else masked(db)


def _contenders(
    loaded: Mapping[tuple[str, str], _Loaded], found: Mapping[str, Latency], seed: int
) -> list[Contender]:
    (first_engine, first_model), *_ = loaded
    rows = []
    for (engine, model), held in loaded.items():
        name = f"{model} on {engine}"
        same_engine = model != first_model
        against = f"{first_model} on {engine if same_engine else first_engine}"
        speedup = compare(found[against], found[name], seed) if against != name else None
        rows.append(
            Contender(
                name=name,
                model=model,
                runtime=engine,
                version=held.session.version,
                latency=found[name],
                peak_memory_mib=round(held.session.peak_memory_mib(), 1),
                against=against if speedup is not None else None,
                same_engine=same_engine,
                speedup=speedup,
            )
        )
    return rows


def _feeds(
    model: Model,
    graph: ir.Graph,
    data: DataSource | None,
    card: str | Path | Card | None,
    batch: int,
    seed: int,
) -> Feeds:
    """One batch for a model: the first image, repeated, or random numbers in its input's shape."""
    inputs = ir.inputs(graph)
    first = next(iter(inputs.values()))
    n = first.shape[0] if first.shape and isinstance(first.shape[0], int) else batch
    if data is not None:
        found = find_card(model, card)
        shapes = {name: o.shape for name, o in ir.outputs(graph).items()}
        tasks.check_card(found, first.shape, shapes)
        x = tasks.prepare(found)(tasks.open_data(data, found).sample(0).image)
        return {first.name: np.repeat(x[None], n, axis=0)}
    random = np.random.default_rng(seed)
    feeds: Feeds = {}
    for info in inputs.values():
        shape = _shape(info, n, model, card)
        numbers = random.standard_normal(shape) * (info.dtype.kind == "f")  # 0 is a valid index
        feeds[info.name] = numbers.astype(info.dtype)
    return feeds


def _shape(
    info: ir.ValueInfo, batch: int, model: Model, card: str | Path | Card | None
) -> tuple[int, ...]:
    first, *rest = info.shape or (batch,)
    shape = (first if isinstance(first, int) else batch, *rest)
    if all(isinstance(d, int) for d in shape):
        return tuple(int(d) for d in shape if d is not None)
    wanted = find_card(model, card).input.shape(batch)
    if len(wanted) != len(shape):
        raise ValueError(
            f"input {info.name!r} has the open shape {shape}, which no card can fill; fix its "
            "sizes at export"
        )
    return wanted


def _names(labels: Sequence[str]) -> list[str]:
    """Labels made unique by a number."""
    seen: dict[str, int] = {}
    unique = []
    for text in labels:
        seen[text] = seen.get(text, 0) + 1
        unique.append(text if seen[text] == 1 else f"{text} ({seen[text]})")
    return unique


def _row(row: Contender) -> dict[str, Any]:
    latency, speedup = row.latency, row.speedup
    return {
        "name": row.name,
        "model": row.model,
        "runtime": row.runtime,
        "version": row.version,
        "latency_ms": {
            "p50": latency.p50_ms,
            "p90": latency.p90_ms,
            "p99": latency.p99_ms,
            "n": latency.n,
            "threads": latency.threads,
            "batch": latency.batch,
            "noise": latency.noise,
            "warmup": latency.warmup,
            "samples": latency.samples_ms,
        },
        "peak_memory_mib": row.peak_memory_mib,
        "against": row.against,
        "speedup": {**asdict(speedup), "verdict": speedup.verdict} if speedup is not None else None,
    }
