"""What a build was asked to do: one frozen value, which the manifest writes down and re-runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelmill.ir import Graph
from modelmill.line.quantize import Recipe
from modelmill.line.source import DataSource
from modelmill.numerics import parse_precision
from modelmill.tasks import Card


@dataclass(frozen=True)
class BuildOptions:
    """The options of `modelmill build`.

    model: path of an ONNX file or .pt2, `package.module:factory[@weights]`, or a graph.
    card: path, Card, or None for the one beside the model.
    calibrate: number of calibration images. limit: score at most so many images.
    max_drop: largest accepted loss of the metric, a fraction.
    recipe: the quantization steps; None for the task's default.
    flags: CPU flags of the machine that will run it, None for this one.
    keep_float: names of nodes that stay in float.
    simulate: images that the simulation runs on. timeout_s: of one engine request.
    db: path or URL, None for OUT/records.db.
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

    def __post_init__(self) -> None:
        parse_precision(self.precision)
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
