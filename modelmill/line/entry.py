"""The build as a Python function with keyword arguments, for `modelmill.build`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modelmill import ir
from modelmill.line.inspect import label
from modelmill.line.options import BuildOptions
from modelmill.line.quantize import DEFAULT, Recipe
from modelmill.line.report import Report
from modelmill.line.run import build as run_build
from modelmill.line.show import SILENT, Show
from modelmill.line.source import DataSource
from modelmill.tasks import Card


def build(  # noqa: PLR0913 (keyword arguments are the interface)
    model: str | Path | ir.Graph,
    data: DataSource,
    targets: str | Sequence[str],
    *,
    card: str | Path | Card | None = None,
    calib: DataSource | None = None,
    precision: str = "w8a8",
    calibrate: int = 512,
    limit: int | None = None,
    max_drop: float = 0.01,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    recipe: Recipe = DEFAULT,
    flags: Sequence[str] | None = None,
    keep_float: Sequence[str] = (),
    simulate: int = 1000,
    timeout_s: float = 300.0,
    allow_fallback: bool = False,
    db: str | None = None,
    transform: Callable[[Any], Any] | None = None,
    show: Show = SILENT,
) -> Report:
    """Take a trained model to verified artifacts on real engines, as `modelmill build` does.

    Args:
        model: an ONNX file, `package.module:factory[@weights]`, a .pt2 file, or a graph.
        data: labelled images: a path, or an iterable of (picture, truth).
        targets: names of targets, or paths of files with one.
        card: how the model is fed and read: a path, a Card, or None for the one beside the model.
        calib: calibration images; None: taken out of `data` and not scored.
        precision: wXaY.
        calibrate: number of calibration images.
        limit: score at most so many images.
        max_drop: largest accepted loss of the metric, a fraction.
        seed: of every draw.
        out: the folder for artifacts and report; None: NAME-build in the working directory.
        resume: continue the build that the folder holds.
        recipe: the steps of quantization.
        flags: CPU flags of the machine that will run it; None: this machine.
        keep_float: names of nodes that are to stay in float.
        simulate: images that the simulation runs on.
        timeout_s: of one request to an engine.
        allow_fallback: accept planned integer operators that ran in float.
        db: path or URL of the database; None: OUT/records.db.
        transform: makes a picture from whatever the iterable holds.
        show: who watches.

    Returns:
        the report; `report.accepted` says whether every deployment is.

    Raises:
        ValueError: wrong input; the text says what, where, why and the next command.
    """
    options = BuildOptions(
        model=model,
        data=data,
        targets=(targets,) if isinstance(targets, str) else tuple(targets),
        out=Path(out) if out is not None else default_out(model),
        card=card,
        calib=calib,
        precision=precision,
        calibrate=calibrate,
        limit=limit,
        max_drop=max_drop,
        seed=seed,
        resume=resume,
        recipe=recipe,
        flags=tuple(flags) if flags is not None else None,
        keep_float=tuple(keep_float),
        simulate=simulate,
        timeout_s=timeout_s,
        allow_fallback=allow_fallback,
        db=db,
        transform=transform,
    )
    return run_build(options, show)


def default_out(model: str | Path | ir.Graph) -> Path:
    """NAME-build in the working directory."""
    return Path(f"{label(model)}-build")
