"""The report of a build as values, and its JSON form. Scores are fractions between 0 and 1, times
milliseconds.

`report.json` holds what a reader decides by; raw samples, per-tensor agreement and per-layer SQNR
lie in `details/TARGET.json`. Fields beyond the house's schema are marked with (+).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

VERSION = 2
SIMULATED = "simulated"
FLOAT = "float"  # what the float model is called among the deployments and the attempts


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
    """deployed: on the real engine, n images; None where no engine here runs the target. simulated
    (+ deployed_same): both on the first `simulated_n` of them. metrics: of the deployed score, or
    of the simulated one where that is all there is.
    """

    deployed: float | None
    simulated: float
    n: int
    simulated_n: int
    deployed_same: float | None
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
class AttemptReport:
    """(+) One way of quantizing that was tried. score: on the engine, or simulated, over the same
    images as the deployment's; drop: below float; gained: over the best one before it, None for the
    first. failed: None, or why there is no score. kept: the deployment is this one.
    """

    name: str
    score: float | None
    drop: float | None
    gained: float | None
    seconds: float
    kept: bool = False
    failed: str | None = None


@dataclass(frozen=True)
class ReconstructionReport:
    """(+) Roundings that were learned: by which algorithm, in how many units. kept_rounding: units
    that plain rounding suited better, which kept it. cache_mib: peak of the values kept in memory,
    spilled_mib: of those on disk.
    """

    algorithm: str
    units: int
    kept_rounding: tuple[str, ...]
    cache_mib: float
    spilled_mib: float
    seconds: float


@dataclass(frozen=True)
class Deployment:
    """One target's outcome. runtime is "simulated" where no engine here runs the target; then
    everything an engine would tell is None. qdq (+): the ONNX file with the plan, which `artifact`,
    the engine's own file, was made from; exports (+): files for the target's toolchain. failed (+):
    None, or why there is no result; then the other facts are None. attempts (+): what was tried, in
    order, at least one. reconstruction (+): of the kept one, None where it rounds to the nearest.
    precision "float": the float model is the fastest here; then there are no codes, and the two
    latencies are one.
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
    qdq: str | None = None
    exports: tuple[str, ...] = ()
    attempts: tuple[AttemptReport, ...] = ()
    reconstruction: ReconstructionReport | None = None

    @property
    def simulated(self) -> bool:
        """Whether no engine here runs the target."""
        return self.runtime == SIMULATED


@dataclass(frozen=True)
class CrossAgreement:
    """(+) How alike the deployments answer: rows[i][j] is `metric` of names[i] on the first `n`
    pictures with the answers of names[j] as truth; None where these hold nothing to find. The first
    name is "float", the float model.
    """

    metric: str
    n: int
    names: tuple[str, ...]
    rows: tuple[tuple[float | None, ...], ...]

    def least(self, *among: str) -> tuple[float, str, str] | None:
        """The smallest agreement of two different ones of `among`, and their names."""
        pairs = [
            (share, a, b)
            for a, row in zip(self.names, self.rows, strict=True)
            for b, share in zip(self.names, row, strict=True)
            if a != b and a in among and b in among and share is not None
        ]
        return min(pairs) if pairs else None

    def to_json(self) -> dict[str, Any]:
        """As in report.json."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> CrossAgreement:
        """The inverse of `to_json`."""
        rows = tuple(map(tuple, data["rows"]))
        return CrossAgreement(data["metric"], data["n"], tuple(data["names"]), rows)


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
    cross_agreement: CrossAgreement | None = None

    def drop(self, deployment: Deployment) -> float:
        """What a deployment loses against float; a simulated one on the images it was simulated on.

        It must have a score.
        """
        score = deployment.score
        assert score is not None
        if score.deployed is not None:
            return float(self.float_score["score"]) - score.deployed
        return float(self.float_score["score_same"]) - score.simulated

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
            "cross_agreement": self.cross_agreement and self.cross_agreement.to_json(),
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
    for key in ("fallback_ops", "exports"):
        held[key] = tuple(held[key])
    held["attempts"] = tuple(AttemptReport(**a) for a in held.get("attempts", ()))
    learned = held.get("reconstruction")
    if learned is not None:
        kept = tuple(learned["kept_rounding"])
        held["reconstruction"] = ReconstructionReport(**{**learned, "kept_rounding": kept})
    return Deployment(**held)
