"""Fill the database with latencies: networks of the zoo or a user's own, float and quantized.

The float file is the model as it is. The quantized one has the QDQ form that `build` deploys on the
target: the same clean graph, the same plan, the same writer. Its ranges come from one random
picture, as no kernel's time depends on them; so what only data can decide is not in it, such as a
layer that `build` keeps in float because quantizing it would cost too much.

Each measurement is stored when it is made. A run that was stopped goes on where it was, as what is
in the database is not measured again unless asked for.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import inf, log
from pathlib import Path

import numpy as np

from modelmill import ir
from modelmill.latency import zoo
from modelmill.latency.collect import Bench, random_feeds
from modelmill.latency.profile import spent
from modelmill.line import measured
from modelmill.line.quantize import Where, prepare_graph
from modelmill.line.rewrite import rewritten
from modelmill.quant.calibrate import Calibrate
from modelmill.records import Latencies, Measurement, ModelFacts, Platform, deliver
from modelmill.records.measurement import KERNELS
from modelmill.runtimes import DeploymentError, EngineMissing, SessionOptions, find_platform
from modelmill.targets import Target, at_precision, load_target

FLOAT = "float"
RANGES = Calibrate("minmax", weights="minmax")
Feeds = Mapping[str, np.ndarray]


class UnsuitableError(ValueError):
    """A model of which a target quantizes nothing."""


@dataclass(frozen=True)
class Subject:
    """A model to be measured: an ONNX file, network `number` of a family of the zoo, or one that
    the database holds, with weights drawn anew.
    """

    path: str = ""
    family: str = ""
    number: int = 0
    seed: int = 0
    stored: ModelFacts | None = None

    @property
    def name(self) -> str:
        if self.stored is not None:
            return self.stored.name
        return Path(self.path).stem if self.path else f"{self.family}-{self.seed}-{self.number}"

    def open(self) -> ir.Graph:
        """The graph.

        Raises:
            ValueError: no such file or family, or a file that is no model.
        """
        if self.stored is not None:
            return ir.from_skeleton(self.stored.skeleton)
        if self.path:
            return ir.load(self.path)
        return zoo.draw(self.family, self.number, self.seed)[1]


@dataclass(frozen=True)
class Asked:
    """What is measured of each model.

    platforms  (target, precision) pairs, "float" being the model as it is
    again      measure what is there once more
    noisier    of that, only what was never measured with as little noise as this, as a part
    options    threads, batch (of models whose own is open), time limit and processor of the engine
    """

    platforms: tuple[tuple[str, str], ...]
    again: bool = False
    noisier: float = -1.0
    options: SessionOptions = SessionOptions()  # noqa: RUF009 (frozen)

    def wants(self, noise: float | None) -> bool:
        """Whether to measure what is there with this least noise, None: what is not there."""
        if noise is None:
            return not self.again
        return self.again and noise > self.noisier


@dataclass(frozen=True)
class Done:
    """What became of one model on one platform: a measurement, or why there is none. before: the
    newest one that was there, where it was measured again. seconds: all it took. warning: it waits,
    as the database cannot be written.
    """

    subject: Subject
    platform: Platform
    measurement: Measurement | None = None
    before: Measurement | None = None
    failed: str = ""
    seconds: float = 0.0
    extra: Mapping[str, float] = field(default_factory=dict, hash=False)
    warning: str = ""


def zoo_subjects(families: Sequence[str], count: int, seed: int = 0) -> list[Subject]:
    """The first `count` networks of each family, in turns: a run that is stopped has some of all.

    Raises:
        ValueError: no such family (lists them).
    """
    known = zoo.families()
    chosen = known if "all" in families else tuple(dict.fromkeys(families))
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ValueError(f"--zoo: no family {unknown[0]!r}. Choices: all, {', '.join(known)}")
    return [Subject("", family, n, seed) for n in range(count) for family in chosen]


def platform_of(target: str, precision: str, options: SessionOptions) -> Platform:
    """The platform on this machine.

    Raises:
        ValueError: no such target or precision, or one without an engine whose time counts.
    """
    found = load_target(target)
    if precision != FLOAT:
        found = at_precision(found, precision)
    if found.runtime is None or found.emulated or found.simulated:
        raise ValueError(
            f"-t {target} --precision {precision}: no engine here runs it"
            + (", an emulator does; its times are not the chip's" if found.emulated else "")
            + "; choose another, for example -t ort_cpu"
        )
    version = find_platform(found.runtime).version
    return measured.platform_of(target, version, precision, options.threads, options.batch or 1)


def quantized(graph: ir.Graph, target: Target, precision: str, feeds: Feeds) -> ir.Graph:
    """The QDQ file of a clean graph for a target (as `at_precision` gives it), ranges of `feeds`.

    Raises:
        UnsuitableError: the target quantizes nothing in it.
        ValueError: it overflows.
    """
    planned = Where(precision).plan(graph, target)
    if not planned.plan:
        raise UnsuitableError(
            f"target {target.name} quantizes nothing in this model; see 'modelmill check MODEL -t "
            f"{target.name}'"
        )
    graph, encoded = RANGES(rewritten(graph, target), planned.plan, [feeds])
    return ir.to_qdq(graph, encoded, target.on_codes, target.shield, target.packed_weights)


def measure_all(
    subjects: Iterable[Subject],
    asked: Asked,
    latencies: Latencies,
) -> Iterator[tuple[int, Done | None]]:
    """Measure and store: how many models are behind us, and what was done; None: the next model.

    Raises:
        ValueError: a model, a target or the database cannot be used.
    """
    platforms = {pair: platform_of(*pair, asked.options) for pair in asked.platforms}
    rows = latencies.rows(tuple(platforms.values()))
    there: dict[tuple[str, str], float] = {}  # the least noise of each
    for row in rows:
        at = row.structure, row.platform
        there[at] = min(row.noise, there.get(at, row.noise))
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="modelmill-") as folder:
        benches: dict[str, Bench] = {}
        for target, _ in asked.platforms:
            runtime = load_target(target).runtime
            assert runtime is not None
            if runtime not in benches:
                options = replace(asked.options, batch=None)  # the files have their own
                own = {p.key for (name, _), p in platforms.items() if name == target}
                known = [r.reference_ms for r in rows if r.platform in own and r.reference_ms]
                bench = Bench(runtime, options, calmest_ms=min(known, default=inf))
                benches[runtime] = stack.enter_context(bench)
        for count, subject in enumerate(subjects):
            for done in _one(subject, asked, platforms, there, latencies, benches, Path(folder)):
                yield count, done
            yield count + 1, None


def _one(
    subject: Subject,
    asked: Asked,
    platforms: Mapping[tuple[str, str], Platform],
    there: dict[tuple[str, str], float],
    latencies: Latencies,
    benches: Mapping[str, Bench],
    folder: Path,
) -> Iterator[Done]:
    """Everything that is asked for of one model."""
    graph = subject.open()
    structure = ir.structure(graph)
    fixed = ir.with_batch(graph, asked.options.batch or 1) if ir.is_batch_dynamic(graph) else graph
    feeds = random_feeds(fixed)
    todo = {pair: p for pair, p in platforms.items() if asked.wants(there.get((structure, p.key)))}
    clean: ir.Graph | None = None
    facts = [measured.described(graph, subject.name, subject.family)] if todo else []
    for (target_name, precision), platform in todo.items():
        start = time.perf_counter()
        target = load_target(target_name)
        path = folder / "model.onnx"
        before = latencies.find(structure, [platform])[-1] if asked.again else None
        try:
            if precision == FLOAT:
                path.write_bytes(ir.to_bytes(fixed))
            else:
                clean = clean or (fixed if subject.family else prepare_graph(fixed))
                codes = quantized(clean, at_precision(target, precision), precision, feeds)
                path.write_bytes(ir.to_bytes(codes))
            ready = time.perf_counter()
            assert target.runtime is not None
            timing = benches[target.runtime].time(path, feeds)
        except EngineMissing:
            raise
        except (DeploymentError, UnsuitableError) as error:
            seconds = time.perf_counter() - start
            yield Done(subject, platform, None, before, str(error), seconds)
            continue
        told = {n: round(us, 1) for n, us in spent(fixed, timing.ops).items()}
        extra = {**timing.facts, KERNELS: told} if told else timing.facts
        made = measured.measurement(structure, platform, timing.latency, extra, timing.reference_ms)
        warning = deliver(latencies, [made], facts).warning
        there[structure, platform.key] = made.noise
        seconds_of = {"prepare": ready - start, "measure": time.perf_counter() - ready}
        seconds = sum(seconds_of.values())
        yield Done(subject, platform, made, before, "", seconds, seconds_of, warning)


# ---------------------------------------------------------------- again


@dataclass(frozen=True)
class Repeat:
    """How well measuring again agrees with what was stored. Shares of models.

    within_noise  the two p50 differ by no more than the noise of the two measurements together
    within_2, within_5  by no more than 2 and 5 percent
    median        median difference, as a part
    corrected     median difference after each p50 was divided by the reference beside it
    """

    n: int
    within_noise: float
    within_2: float
    within_5: float
    median: float
    corrected: float


def repeated(done: Iterable[Done]) -> Repeat | None:
    """The agreement of what was measured again; None where nothing was."""
    pairs = [(d.before, d.measurement) for d in done if d.before and d.measurement]
    if not pairs:
        return None
    changes = np.array([abs(log(new.p50_ms / old.p50_ms)) for old, new in pairs])
    noise = np.array([old.noise + new.noise for old, new in pairs])
    relative = [
        abs(log(new.p50_ms / old.p50_ms * old.reference_ms / new.reference_ms))
        for old, new in pairs
        if old.reference_ms and new.reference_ms
    ]
    return Repeat(
        len(pairs),
        float(np.mean(changes <= noise)),
        float(np.mean(changes <= 0.02)),
        float(np.mean(changes <= 0.05)),
        float(np.median(changes)),
        float(np.median(relative)) if relative else float("nan"),
    )
