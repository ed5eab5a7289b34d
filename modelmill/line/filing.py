"""File the facts of a build in the database: one Record a number, each with where it was measured,
and the latencies once more as Measurements, which predictors learn from.

A build has a database of its own in its folder, and writes to that of the user as well if there is
one. Of what cannot be written there now the latencies wait for the next time.

A latency is that of a platform only if the platform's name says all: not that of a model whose bits
were searched for, or some of whose layers were kept in float by name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from modelmill.latency import Latency
from modelmill.line.job import Job
from modelmill.line.measured import described, measurement, platform_of
from modelmill.line.options import SEARCHED, BuildOptions
from modelmill.line.report import FLOAT, Deployment, Report
from modelmill.line.show import SILENT, Show
from modelmill.line.store import Json, Store
from modelmill.records.database import Database
from modelmill.records.engine import UnreachableError
from modelmill.records.machine import this_machine
from modelmill.records.measurement import Measurement
from modelmill.records.record import Record, Where, utc_now
from modelmill.records.spool import deliver

Number = tuple[str, float, str, int, Json]  # what, value, unit, n, more
TIMED = ("latency_p50_ms", "float_latency_p50_ms", "speedup")


OWN = "records.db"  # of a build, in its folder


def check_database(location: str | None) -> None:
    """Raise ValueError if the user's database is none; that it cannot be reached is no reason."""
    if location is not None:
        with suppress(UnreachableError):
            Database(location)


def file_records(
    report: Report, options: BuildOptions, store: Store, build: str, show: Show = SILENT
) -> list[Record]:
    """Write the build's facts; a resumed build that measured nothing anew writes nothing anew.

    Raises:
        ValueError: the database cannot be opened or written.
    """
    found = []
    for deployment in _measured_anew(report, store):
        found += _facts(report, deployment, build)
    own = store.path(OWN)
    Database(own).add(found)
    for location in _others(options.db, own) if found else ():
        try:
            Database(location).add(found)
        except UnreachableError as error:
            show.say(f"{error}. The facts are in {own}; later: modelmill latency merge {own}")
    return found


def file_latencies(job: Job, report: Report, build: str) -> list[Measurement]:
    """Write the build's latencies, of what was measured anew.

    Raises:
        ValueError: the database cannot be opened or written.
    """
    measured: list[Measurement] = []
    # The float model is timed as the line leaves it, the quantized one stands for the model given.
    graphs = {FLOAT: job.graph, "quantized": job.source.graph}
    models = {kind: described(graph, report.model["name"]) for kind, graph in graphs.items()}
    for d in _measured_anew(report, job.store):
        if d.latency_ms is None:
            continue
        details = json.loads(job.store.path(f"details/{d.target}.json").read_bytes())
        for kind, samples in details["latency_samples_ms"].items():
            precision = FLOAT if kind == FLOAT else d.precision
            if kind != FLOAT and (d.precision == SEARCHED or job.options.keep_float):
                continue
            held = d.latency_ms
            latency = Latency(tuple(map(tuple, samples)), held.threads, held.batch)
            platform = platform_of(d.target, d.version, precision, held.threads, held.batch)
            measured.append(
                measurement(models[kind].structure, platform, latency, {"build": build})
            )
    structures = {m.model for m in measured}
    known = [model for model in models.values() if model.structure in structures]
    own = job.store.path(OWN)
    for location in (str(own), *_others(job.options.db, own)):
        if measured:
            done = deliver(location, measured, known)
            if done.warning:
                job.show.say(done.warning)
    return measured


def _others(db: str | None, own: Path) -> list[str]:
    """The user's database, unless it is that of the build."""
    return [] if db is None or Path(db).absolute() == own.absolute() else [db]


def _measured_anew(report: Report, store: Store) -> Sequence[Deployment]:
    redone = {name.removeprefix("deploy-") for name in store.redone if name.startswith("deploy-")}
    return [d for d in report.deployments if d.failed is None and d.target in redone]


def _facts(report: Report, d: Deployment, build: str) -> list[Record]:
    if d.simulated:
        return []  # nothing was measured
    assert d.score is not None
    latency, score = d.latency_ms, d.score
    metric, base = report.metric, report.float_score
    numbers: list[Number] = [
        (metric, score.deployed or 0.0, "fraction", score.n, {"metrics": score.metrics}),
        (f"simulated_{metric}", score.simulated, "fraction", score.simulated_n, {}),
        (f"float_{metric}", base["score"], "fraction", base["n"], {}),
        ("peak_memory_mib", d.peak_memory_mib or 0.0, "MiB", 1, {}),
        ("artifact_bytes", d.bytes, "bytes", 1, {}),
    ]
    if d.agreement is not None:
        codes = d.agreement
        numbers.append(("mismatched_codes", codes.mismatched, "elements", codes.elements, {}))
    numbers += _times(d)
    machine, when = this_machine(), utc_now()
    common = {"target": d.target, "precision": d.precision, "model": report.model["name"]}
    return [
        Record(
            what=what,
            value=float(value),
            unit=unit,
            n=max(n, 1),
            subject=report.model["fingerprint"],
            where=Where(
                device=machine.cpu,
                engine=d.runtime,
                version=d.version,
                threads=latency.threads if latency is not None and what in TIMED else 0,
                isa=machine.isa,
            ),
            when=when,
            build=build,
            extra={**common, **more},
        )
        for what, value, unit, n, more in numbers
    ]


def _times(d: Deployment) -> list[Number]:
    """Latencies, and their ratio where there are two; none of an emulator."""
    if d.latency_ms is None or d.float_latency_ms is None:
        return []
    latency, reference, speedup = d.latency_ms, d.float_latency_ms, d.speedup
    found: list[Number] = [
        ("latency_p50_ms", latency.p50, "ms", latency.n, asdict(latency)),
        ("float_latency_p50_ms", reference.p50, "ms", reference.n, asdict(reference)),
    ]
    if speedup is not None:
        found.append(("speedup", speedup.ratio, "ratio", latency.n, {"verdict": speedup.verdict}))
    return found
