"""What the database keeps of a model, of this machine as a platform, and of a latency."""

from __future__ import annotations

from collections.abc import Mapping

from modelmill import ir
from modelmill.latency import Latency
from modelmill.records import Measurement, ModelFacts, Platform, this_machine, utc_now
from modelmill.records.measurement import CALM


def described(graph: ir.Graph, name: str, family: str = "") -> ModelFacts:
    """What the database keeps of a model."""
    fixed = ir.with_batch(graph, 1) if ir.is_batch_dynamic(graph) else graph
    counted = ir.statistics(fixed)
    facts = {"params": float(counted.params), "nodes": float(len(counted.nodes))}
    if counted.macs is not None:
        facts["macs"] = float(counted.macs)
    return ModelFacts(ir.structure(graph), name, family, ir.skeleton(graph), facts)


def platform_of(target: str, version: str, precision: str, threads: int, batch: int) -> Platform:
    """This machine, as a platform. version: of the engine."""
    machine = this_machine()
    return Platform(
        target=target,
        version=version,
        device=machine.cpu,
        isa=machine.isa,
        threads=threads,
        precision=precision,
        batch=batch,
    )


def measurement(
    model: str,
    platform: Platform,
    latency: Latency,
    extra: Mapping[str, object],
    reference_ms: float | None = None,
) -> Measurement:
    """A latency as it is stored; model: its structure."""
    machine = this_machine()
    return Measurement(
        model=model,
        platform=platform,
        p50_ms=latency.p50_ms,
        p90_ms=latency.p90_ms,
        p99_ms=latency.p99_ms,
        n=latency.n,
        noise=latency.noise,
        when=utc_now(),
        machine=f"{machine.cpu}, {machine.cores} cores, {machine.os}",
        reference_ms=reference_ms,
        samples_ms=latency.samples_ms,
        extra={
            **extra,
            CALM: latency.calm_ms,
            "rounds": latency.rounds,
            "warmup": latency.warmup,
        },
    )
