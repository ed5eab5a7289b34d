"""File the facts of a build in the database: one Record a number, each with where it was
measured.
"""

from __future__ import annotations

from dataclasses import asdict

from modelmill.line.options import BuildOptions
from modelmill.line.report import Deployment, Report
from modelmill.line.store import Json, Store
from modelmill.records.database import Database
from modelmill.records.machine import this_machine
from modelmill.records.record import Record, Where, utc_now

Number = tuple[str, float, str, int, Json]  # what, value, unit, n, more
TIMED = ("latency_p50_ms", "float_latency_p50_ms", "speedup")


def file_records(report: Report, options: BuildOptions, store: Store, build: str) -> list[Record]:
    """Write the build's facts; a resumed build that measured nothing anew writes nothing anew.

    Raises:
        ValueError: the database cannot be opened or written.
    """
    measured = {name.removeprefix("deploy-") for name in store.redone if name.startswith("deploy-")}
    found = []
    for deployment in report.deployments:
        if deployment.failed is None and deployment.target in measured:
            found += _facts(report, deployment, build)
    Database(options.db if options.db is not None else store.path("records.db")).add(found)
    return found


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
