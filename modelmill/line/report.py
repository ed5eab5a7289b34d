"""The report of a build as values, and its JSON form. Scores are fractions between 0 and 1, times
milliseconds.

`report.json` holds what a reader decides by; raw samples, per-tensor agreement and per-layer SQNR
lie in `details/TARGET.json`. Fields beyond the house's schema are marked with (+).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

VERSION = 1


@dataclass(frozen=True)
class Finding:
    """Something the reader must know: what, where (a target or a layer), why, and the next
    command.
    """

    what: str
    where: str
    why: str
    next: str


@dataclass(frozen=True)
class ScoreReport:
    """deployed: on the real engine, n images. simulated (+ deployed_same): both on the first
    `simulated_n` of them.
    """

    deployed: float
    simulated: float
    n: int
    simulated_n: int
    deployed_same: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class AgreementReport:
    """Codes compared at every quantized tensor; first_divergence is a node, None where all codes
    are equal. own_* (+): the same with every layer simulated on the engine's own codes, counted
    only where something differed: what remains arises in the layers themselves.
    """

    elements: int
    mismatched: int
    max_codes: int
    first_divergence: str | None
    images: int
    own_elements: int = 0
    own_mismatched: int = 0
    own_max_codes: int = 0


@dataclass(frozen=True)
class LatencyReport:
    """Quantiles over n single inferences."""

    p50: float
    p90: float
    p99: float
    n: int
    threads: int
    batch: int
    noise: float


@dataclass(frozen=True)
class SpeedupReport:
    """float p50 / int8 p50 with its 95 % interval, and what may be said."""

    ratio: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class Deployment:
    """One target's outcome. failed (+): None, or why there is no result; then the other facts are
    None.
    """

    target: str
    runtime: str
    version: str
    precision: str
    artifact: str
    bytes: int
    score: ScoreReport | None = None
    agreement: AgreementReport | None = None
    latency_ms: LatencyReport | None = None
    float_latency_ms: LatencyReport | None = None
    speedup: SpeedupReport | None = None
    peak_memory_mib: float | None = None
    fallback_ops: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    failed: str | None = None


@dataclass(frozen=True)
class Report:
    """One build."""

    model: dict[str, Any]
    task: str
    metric: str
    float_score: dict[str, Any]
    deployments: tuple[Deployment, ...]
    accepted: bool
    findings: tuple[Finding, ...]
    max_drop: float
    peak_memory_mib: float
    seconds: float
    folder: str = ""

    def to_json(self) -> dict[str, Any]:
        """As written to report.json."""
        return {
            "version": VERSION,
            "model": self.model,
            "task": self.task,
            "metric": self.metric,
            "float": self.float_score,
            "deployments": [asdict(d) for d in self.deployments],
            "accepted": self.accepted,
            "findings": [asdict(f) for f in self.findings],
            "max_drop": self.max_drop,
            "peak_memory_mib": self.peak_memory_mib,
            "seconds": self.seconds,
        }


def deployment_from_json(data: dict[str, Any]) -> Deployment:
    """The inverse of `asdict` for a Deployment."""
    kinds = {
        "score": ScoreReport,
        "agreement": AgreementReport,
        "latency_ms": LatencyReport,
        "float_latency_ms": LatencyReport,
        "speedup": SpeedupReport,
    }
    held = dict(data)
    for key, kind in kinds.items():
        if held.get(key) is not None:
            held[key] = kind(**held[key])
    held["fallback_ops"] = tuple(held["fallback_ops"])
    return Deployment(**held)
