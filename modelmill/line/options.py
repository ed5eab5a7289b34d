"""What a build was asked to do: one frozen value, which the manifest writes down and re-runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelmill.ir import Graph
from modelmill.line.quantize import Recipe, Where
from modelmill.line.source import DataSource
from modelmill.numerics import parse_precision
from modelmill.tasks import Card

SEARCHED = "auto"  # the precision that a search finds, and the algorithm that escalates by itself
BASE_PRECISION = "w8a8"  # where a search starts
ALGORITHMS = (SEARCHED, "round", "adaround", "brecq", "qdrop")
OBJECTIVES = ("size", "latency")
EFFORTS = ("quick", "normal", "high")
CHOICES = (("algorithm", ALGORITHMS), ("objective", OBJECTIVES), ("effort", EFFORTS))
LEAST_MEMORY = 2**20


@dataclass(frozen=True)
class BuildOptions:
    """The options of `modelmill build`.

    model: path of an ONNX file or .pt2, `package.module:factory[@weights]`, or a graph.
    card: path, Card, or None for the one beside the model.
    calibrate: number of calibration images. limit: score at most so many images.
    precision: wXaY, or "auto": bits per layer are searched for, within `max_drop`.
    objective: what the search makes small, "size" or "latency".
    effort: of learned roundings, "quick", "normal" or "high".
    algorithm: how weights are rounded. "auto": to the nearest at 8 bits, and where `max_drop` is
    not met by one after another of what costs more; else that one alone.
    first_last_bits: of the first and the last layers; 0: as many as the others.
    attempts: by target what an earlier build kept, as its manifest holds it; just that is done.
    memory: bytes that tensors cached for a reconstruction may take; more is kept on disk.
    max_drop: largest accepted loss of the metric, a fraction.
    recipe: the quantization steps; None for the task's default.
    flags: CPU flags of the machine that will run it, None for this one.
    keep_float: names of nodes that stay in float.
    simulate: images that the simulation runs on. timeout_s: of one engine request.
    db: path or URL of a database that gets the facts besides OUT/records.db.
    """

    model: str | Path | Graph
    data: DataSource
    targets: tuple[str, ...]
    out: Path
    card: str | Path | Card | None = None
    calib: DataSource | None = None
    precision: str = "w8a8"
    calibrate: int = 512
    limit: int | None = None
    max_drop: float = 0.01
    seed: int = 0
    resume: bool = False
    recipe: Recipe | None = None
    flags: tuple[str, ...] | None = None
    keep_float: tuple[str, ...] = ()
    simulate: int = 1000
    timeout_s: float = 300.0
    allow_fallback: bool = False
    db: str | None = None
    transform: Callable[[Any], Any] | None = None
    algorithm: str = SEARCHED
    first_last_bits: int = 8
    memory: int = 2 * 2**30
    objective: str = "size"
    effort: str = "normal"
    attempts: Mapping[str, dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        if self.precision != SEARCHED:
            parse_precision(self.precision)
        for name, choices in CHOICES:
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"unknown --{name} {getattr(self, name)!r}. Choices: {', '.join(choices)}"
                )
        if self.first_last_bits != 0 and not 2 <= self.first_last_bits <= 8:
            raise ValueError(
                f"--first-last-bits is 2 to 8, or 0 for as many as the other layers have, not "
                f"{self.first_last_bits}"
            )
        if self.memory < LEAST_MEMORY:
            raise ValueError(
                f"--memory {self.memory} bytes is too little for one batch; give at least 1MiB"
            )
        if not self.targets:
            raise ValueError("no target; name at least one with -t, for example -t ort_cpu")
        if len(set(self.targets)) != len(self.targets):
            raise ValueError(f"a target is named twice: {', '.join(self.targets)}")
        for name, low in (("calibrate", 1), ("simulate", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"--{name} must be at least {low}, not {getattr(self, name)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit must be at least 1, not {self.limit}")
        if not 0 <= self.max_drop <= 1:
            raise ValueError(f"--max-drop is a fraction between 0 and 1, not {self.max_drop:g}")

    @property
    def base_precision(self) -> str:
        """The precision that the plan starts from."""
        return BASE_PRECISION if self.precision == SEARCHED else self.precision

    def where(self) -> Where:
        """What plans are made for."""
        kept = frozenset(self.keep_float)
        return Where(self.base_precision, self.flags, kept, self.first_last_bits)
