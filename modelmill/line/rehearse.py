"""A build without building: everything that can be wrong is found, and the plan is told."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from modelmill import ir
from modelmill.line import escalate
from modelmill.line.check import Checked
from modelmill.line.options import SEARCHED, BuildOptions
from modelmill.line.quantize import prepare_graph
from modelmill.line.report import SIMULATED
from modelmill.line.run import REFERENCE, check_engines
from modelmill.line.source import load_images, load_source
from modelmill.line.store import OutputError, check_folder
from modelmill.targets import at_precision, load_target


@dataclass(frozen=True)
class Rehearsal:
    """What a build would do.

    Attributes:
        model: name, parameters, multiply-accumulates, input.
        images: numbers of calibration and evaluation images, and where they come from.
        targets: verdict on every node, per target.
        steps: in order, in words.
        folder: where it would write.
    """

    model: dict[str, Any]
    task: str
    metric: str
    images: dict[str, Any]
    targets: tuple[Checked, ...]
    steps: tuple[str, ...]
    folder: str

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return {**asdict(self), "targets": [checked.to_json() for checked in self.targets]}


def rehearse(options: BuildOptions) -> Rehearsal:
    """Load and check all that a build needs, and plan it; nothing is written.

    Raises:
        ValueError: what `build` would raise on the same input before its first result.
    """
    _check_folder(options)
    chosen = [at_precision(load_target(name), options.base_precision) for name in options.targets]
    check_engines(chosen, options)
    source = load_source(options.model, options.card)
    images = load_images(
        source,
        options.data,
        options.calib,
        options.calibrate,
        options.limit,
        options.seed,
        options.transform,
    )
    graph = prepare_graph(source.graph)
    facts = ir.statistics(ir.with_batch(graph, 1) if source.batch is None else graph)
    where = options.where()
    checked = []
    for target in chosen:
        planned = where.plan(graph, target)
        names = (source.name, target.name, target.runtime or SIMULATED, options.precision)
        checked.append(Checked(*names, planned.verdicts, planned.notes, (), ()))
    counts = {"calibration": len(images.calibration), "evaluation": len(images.evaluation)}
    return Rehearsal(
        model={
            "name": source.name,
            "params": facts.params,
            "macs": facts.macs,
            "input": list(source.card.input.shape(1)),
        },
        task=source.task.name,
        metric=source.task.primary(source.card),
        images={**counts, "note": images.note},
        targets=tuple(checked),
        steps=_steps(options, checked, **counts),
        folder=str(options.out),
    )


def _steps(
    options: BuildOptions, checked: list[Checked], calibration: int, evaluation: int
) -> tuple[str, ...]:
    engines = sorted({c.runtime for c in checked} - {SIMULATED}) or [REFERENCE]
    simulated = min(options.simulate, evaluation)
    steps = [f"compare the float model: PyTorch executor and {engine}" for engine in engines]
    steps += [f"score float on {engines[0]}: {evaluation} images"]
    steps += [f"calibrate: {calibration} images"]
    first = escalate.first_rung(options.base_precision)
    algorithm = first if options.algorithm == SEARCHED else options.algorithm
    learned = "" if algorithm == "round" else f": {algorithm}"
    steps += [f"quantize for {c.target}{learned}" for c in checked]
    steps += [f"simulate {c.target}: {simulated} images" for c in checked if c.runtime == SIMULATED]
    for c in (c for c in checked if c.runtime != SIMULATED):
        steps += [
            f"score on {c.target}: {evaluation} images",
            f"simulate {c.target} and compare every quantized tensor: {simulated} images",
            f"time {c.target}: float and {c.precision} in turns, one thread",
        ]
    if options.precision == SEARCHED:
        steps += [
            f"search bits of every layer for {c.target}: {options.objective}" for c in checked
        ]
    elif options.algorithm == SEARCHED:
        then = ", ".join((*escalate.rungs_after(first), "bits layer by layer"))
        steps += [f"where more than {options.max_drop:g} is lost, one after another: {then}"]
    return (*steps, "write report, manifest and records")


def _check_folder(options: BuildOptions) -> None:
    """What can be known of the output folder without writing to it."""
    folder = options.out
    check_folder(folder, options.resume)
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise OutputError(f"cannot make {folder}: {existing} is not writable; choose with -o")
