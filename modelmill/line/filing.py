"""File the facts of a build in the database: one Record a number, each with where it was
measured.
"""

from __future__ import annotations

from typing import Any

from modelmill.line.options import BuildOptions
from modelmill.line.report import Deployment, Report
from modelmill.line.store import Json, Store
from modelmill.records.database import Database
from modelmill.records.machine import this_machine
from modelmill.records.record import Record, Where, utc_now


def file_records(report: Report, options: BuildOptions, store: Store, build: str) -> list[Record]:
    """Write the build's facts; a resumed build that measured nothing anew writes nothing anew.

    Raises:
        ValueError: the database cannot be opened or written.
    """
    measured = {name.removeprefix("deploy-") for name in store.redone if name.startswith("deploy-")}
    found = []
    for deployment in report.deployments:
        if deployment.failed is None and deployment.target in measured:
            found += _facts(report, deployment, build, store)
    Database(options.db if options.db is not None else store.path("records.db")).add(found)
    return found


def _facts(report: Report, d: Deployment, build: str, store: Store) -> list[Record]:
    assert d.score is not None and d.agreement is not None and d.speedup is not None
    assert d.latency_ms is not None and d.float_latency_ms is not None
    machine, when = this_machine(), utc_now()
    extra: dict[str, Any] = {
        "target": d.target,
        "precision": d.precision,
        "model": report.model["name"],
    }

    def record(
        what: str, value: float, unit: str, n: int, threads: int, more: Json | None = None
    ) -> Record:
        where = Where(
            device=machine.cpu,
            engine=d.runtime,
            version=d.version,
            threads=threads,
            isa=machine.isa,
        )
        return Record(
            what=what,
            value=value,
            unit=unit,
            n=n,
            subject=report.model["fingerprint"],
            where=where,
            when=when,
            build=build,
            extra={**extra, **(more or {})},
        )

    latency, reference = d.latency_ms, d.float_latency_ms
    quantiles = {
        "p90": latency.p90,
        "p99": latency.p99,
        "batch": latency.batch,
        "noise": latency.noise,
    }
    reference_quantiles = {
        "p90": reference.p90,
        "p99": reference.p99,
        "batch": reference.batch,
        "noise": reference.noise,
    }
    return [
        record(
            report.metric, d.score.deployed, "fraction", d.score.n, 0, {"metrics": d.score.metrics}
        ),
        record(f"simulated_{report.metric}", d.score.simulated, "fraction", d.score.simulated_n, 0),
        record(
            f"float_{report.metric}",
            report.float_score["score"],
            "fraction",
            report.float_score["n"],
            0,
        ),
        record(
            "mismatched_codes",
            float(d.agreement.mismatched),
            "elements",
            max(d.agreement.elements, 1),
            0,
        ),
        record("latency_p50_ms", latency.p50, "ms", latency.n, latency.threads, quantiles),
        record(
            "float_latency_p50_ms",
            reference.p50,
            "ms",
            reference.n,
            reference.threads,
            reference_quantiles,
        ),
        record(
            "speedup",
            d.speedup.ratio,
            "ratio",
            latency.n,
            latency.threads,
            {"verdict": d.speedup.verdict},
        ),
        record("peak_memory_mib", d.peak_memory_mib or 0.0, "MiB", 1, latency.threads),
        record("artifact_bytes", float(d.bytes), "bytes", 1, 0),
    ]
