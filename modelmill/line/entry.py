"""The build as a Python function with keyword arguments, for `modelmill.build`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modelmill import ir
from modelmill.line.inspect import label
from modelmill.line.options import BuildOptions
from modelmill.line.quantize import Recipe
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
    recipe: Recipe | None = None,
    flags: Sequence[str] | None = None,
    keep_float: Sequence[str] = (),
    simulate: int = 1000,
    timeout_s: float = 300.0,
    allow_fallback: bool = False,
    db: str | None = None,
    transform: Callable[[Any], Any] | None = None,
    algorithm: str = "auto",
    first_last_bits: int = 8,
    memory: int = 2 * 2**30,
    objective: str = "size",
    effort: str = "normal",
    show: Show = SILENT,
) -> Report:
    """Take a trained model to verified artifacts on real engines, as `modelmill build` does.

    The arguments are those of `modelmill.line.options.BuildOptions`, which explains them. Without
    `out` the folder is NAME-build in the working directory.

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
        algorithm=algorithm,
        first_last_bits=first_last_bits,
        memory=memory,
        objective=objective,
        effort=effort,
    )
    return run_build(options, show)


def default_out(model: str | Path | ir.Graph) -> Path:
    """NAME-build in the working directory."""
    return Path(f"{label(model)}-build")
