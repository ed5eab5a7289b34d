"""The report of an audit as values, and its JSON form. Scores are fractions between 0 and 1;
differences are option minus card, so a loss is negative. It holds no times: the same seed gives the
same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from modelmill.line.report import Finding

VERSION = 1


@dataclass(frozen=True)
class Outcome:
    """What one option did.

    n        pictures that it could read; on these both sides are scored
    score    on them; delta: minus the card's score on the same, with its 95 % interval low, high
             (paired bootstrap); all None without labels
    changed  share of what is said that is said by one side only: classes, or boxes that are sure
    largest  largest absolute change of an output of the network; None: not finite
    refused  (picture, why) that it could not read
    same     not one number of outputs and predictions differs from the card's
    """

    stage: str
    noise: str
    option: str
    about: str
    mistake: bool
    n: int
    score: float | None
    delta: float | None
    low: float | None
    high: float | None
    changed: float
    largest: float | None
    refused: tuple[tuple[str, str], ...] = ()
    same: bool = False

    @property
    def harm(self) -> float:
        """What it costs: score lost, or without labels the share of changed predictions."""
        return self.changed if self.delta is None else 0.0 - self.delta


@dataclass(frozen=True)
class Summary:
    """All options of one noise but the mistakes: their mean difference, and the worst of them."""

    noise: str
    stage: str
    options: int
    mean: float | None
    mean_changed: float
    worst: Outcome


@dataclass(frozen=True)
class Together:
    """Several options at once. steps: (noise, option, what is lost with it and all before it)."""

    steps: tuple[tuple[str, str, float], ...]
    outcome: Outcome


@dataclass(frozen=True)
class StageReport:
    """A stage in which a device's card differs. differing of elements are not the same behind it
    (with the device's stages before it), by `largest` at most, None: other shapes. alone: the
    training pipeline with this stage of the device; until: with all up to this one.
    """

    stage: str
    trained: str
    device: str
    elements: int
    differing: int
    largest: float | None
    alone: Outcome
    until: Outcome


@dataclass(frozen=True)
class Fix:
    """What `--fix` wrote, and what it does about each stage that differs: (stage, words)."""

    files: tuple[str, ...]
    mended: tuple[tuple[str, str], ...]
    left: tuple[tuple[str, str], ...]
    outcome: Outcome | None = None


@dataclass(frozen=True)
class AuditReport:
    """One audit. score: of the card's own pipeline, None without labels. stages, device: of
    `--deployed`.
    """

    model: dict[str, Any]
    task: str
    metric: str
    engine: str
    n: int
    score: float | None
    seed: int
    outcomes: tuple[Outcome, ...] = ()
    left_out: tuple[tuple[str, str, str], ...] = ()  # noise, option, why
    combined: Together | None = None
    greedy: Together | None = None
    stages: tuple[StageReport, ...] = ()
    device: Outcome | None = None
    fix: Fix | None = None
    tolerance: float | None = None
    accepted: bool = True
    findings: tuple[Finding, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    folder: str = ""

    @property
    def labelled(self) -> bool:
        """Whether there is a score."""
        return self.score is not None

    @property
    def summaries(self) -> tuple[Summary, ...]:
        """Per noise, in the order of the stages; of mistakes alone there is no summary."""
        names = dict.fromkeys(o.noise for o in self.outcomes if not o.mistake)
        return tuple(summary([o for o in self.outcomes if o.noise == name]) for name in names)

    def to_json(self) -> dict[str, Any]:
        """As written to audit.json."""
        held = asdict(self)
        del held["folder"]
        return {"version": VERSION, **held, "summaries": [asdict(s) for s in self.summaries]}


def summary(outcomes: Sequence[Outcome]) -> Summary:
    """Of the outcomes of one noise, of which at least one is no mistake."""
    counted = [o for o in outcomes if not o.mistake]
    worst = max(counted, key=lambda o: (o.harm, o.changed))
    deltas = [o.delta for o in counted if o.delta is not None]
    mean = fmean(deltas) if deltas else None
    changed = fmean(o.changed for o in counted)
    return Summary(worst.noise, worst.stage, len(counted), mean, changed, worst)
