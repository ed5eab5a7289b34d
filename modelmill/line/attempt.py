"""One attempt at a target: what a recipe and a plan give on the engine, and where its files lie.

The files of an attempt lie under `cache/attempts/NAME/`, by the names that they get in the build's
folder where the attempt is the one that is kept. So none overwrites those of another, and a resumed
build redoes none. A reconstruction keeps its finished units under `cache/reconstruct-KEY/`, KEY a
hash over everything that the result depends on.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from modelmill import ir, plugins, tasks
from modelmill.line import deploy
from modelmill.line.convert import engine_file
from modelmill.line.deploy import Scored
from modelmill.line.job import FLOAT_ARTIFACT, Job
from modelmill.line.manifest import recipe_from, recipe_json
from modelmill.line.quantize import Quantized, Recipe, Reconstruction, Where, quantize_all
from modelmill.line.report import FLOAT, ReconstructionReport
from modelmill.line.show import Advance
from modelmill.line.store import Json, file_hash, key_of
from modelmill.numerics import parse_precision
from modelmill.quant.observe import Batches
from modelmill.quant.reconstruct import Reconstructed, Workplace
from modelmill.targets import Target

CALIBRATION_BATCH = 64
# What a reconstruction may take; "normal" is what its class says. docs/benchmarks/low_bit.md
EFFORTS: dict[str, dict[str, Any]] = {
    "quick": {"iterations": 60, "tune": 0},
    "normal": {},
    "high": {"iterations": 300, "tune": 1000},
}
LOW_BITS = 8  # with fewer the recipe keeps no layer in float: the bits were asked for
UNQUANTIZED: Json = {
    "seconds": 0.0, "plan": None, "verdicts": [], "protected": [], "layers": [],
    "reconstruction": None, "simulated": None, "files": [], "units": None,
}  # fmt: skip


@dataclass(frozen=True)
class Attempt:
    """A way of quantizing: its name ("round", "qdrop" ...), the recipe, what the plan is for; the
    one of the name `FLOAT` quantizes nothing.
    """

    name: str
    recipe: Recipe
    where: Where

    @property
    def floats(self) -> bool:
        """Whether the float model is deployed as it is."""
        return self.name == FLOAT

    def to_json(self) -> Json:
        """As the manifest keeps it."""
        where = {**asdict(self.where), "keep_float": sorted(self.where.keep_float)}
        return {"name": self.name, "recipe": recipe_json(self.recipe), "where": where}

    def place(self, file: str) -> str:
        """Where a file lies that gets the name `file` if this attempt is kept."""
        return file if self.floats else f"cache/attempts/{self.name}/{file}"

    def artifact(self, target: str) -> str:
        """Name of the ONNX file that a target's engine gets."""
        return FLOAT_ARTIFACT if self.floats else artifact(target)


def attempt_from(held: Json) -> Attempt:
    """The inverse of `Attempt.to_json`."""
    where = dict(held["where"])
    where["keep_float"] = frozenset(where["keep_float"])
    where["flags"] = None if where["flags"] is None else tuple(where["flags"])
    where["layers"] = tuple(map(tuple, where["layers"]))
    return Attempt(held["name"], recipe_from(held["recipe"]), Where(**where))


def with_algorithm(recipe: Recipe, name: str, where: Where, seed: int) -> Recipe:
    """The recipe with "round" or a reconstruction by name; one that it has already stays as it is.

    Raises:
        ValueError: unknown name.
    """
    weights, activations = parse_precision(where.precision)
    if min(weights, activations) < LOW_BITS:
        recipe = replace(recipe, protect=None)
    if activations < LOW_BITS:  # few codes: rounding is what hurts, not what is cut off
        recipe = replace(recipe, calibrate=replace(recipe.calibrate, activations="mse"))
    if name == "round":
        return replace(recipe, reconstruct=None)
    kind = plugins.load("modelmill.quant", name)
    if isinstance(recipe.reconstruct, kind):
        return recipe
    return replace(recipe, reconstruct=learned_by(kind, recipe.effort, seed))


def learned_by(kind: type[Reconstruction], effort: str, seed: int) -> Reconstruction:
    """The step of that kind at that effort."""
    known = {field.name for field in fields(kind)}
    return kind(seed=seed, **{k: n for k, n in EFFORTS[effort].items() if k in known})


def artifact(target: str) -> str:
    """Name of a target's QDQ file."""
    return f"artifacts/{target}.onnx"


def quantized(
    job: Job, chosen: Mapping[str, Target], attempt: Attempt, first: bool = True
) -> dict[str, Json]:
    """What quantization logged, by target; what an earlier run finished is not done again.

    `first`: of a build, which gives the step its plain name.
    """
    if attempt.floats:
        return {name: dict(UNQUANTIZED) for name in chosen}
    batches = calibration(job)
    made: dict[str, Quantized] = {}
    alone = attempt.recipe.reconstruct is not None

    def compute(name: str, key: str) -> Callable[[], tuple[Json, dict[str, bytes]]]:
        def run() -> tuple[Json, dict[str, bytes]]:
            if name not in made:
                # Calibration is shared by all targets; a reconstruction is one target's own, and
                # is on the disk before the next begins.
                group = {name: chosen[name]} if alone else chosen
                made.update(_quantize(job, group, attempt, batches, key if alone else None))
            log, files = _leavings(job, made[name], attempt)
            return {**log, "units": unit_folder(key) if alone else None}, files

        return run

    logs = {}
    for name, target in chosen.items():
        inputs = inputs_of(job, target, attempt)
        label = f"quantize-{name}" if first else f"quantize-{name}-{attempt.name}"
        logs[name] = job.store.step(label, inputs, compute(name, key_of(inputs)))
    return logs


def inputs_of(job: Job, target: Target, attempt: Attempt) -> Json:
    """What the quantization for a target depends on; where it is simulated, on how much too."""
    how = {k: v for k, v in attempt.to_json().items() if k != "name"}
    found = {**job.key, **how, "target": repr(target)}
    return found if target.runtime is not None else {**found, "simulate": job.options.simulate}


def unit_folder(key: str) -> str:
    """Where the finished units of a reconstruction lie."""
    return f"cache/reconstruct-{key}"


def calibration(job: Job) -> Batches:
    """The calibration images, in batches of the model's size or of `CALIBRATION_BATCH`."""
    source, images = job.source, job.images.calibration
    batch = source.batch or CALIBRATION_BATCH
    whole = len(images) - len(images) % batch if source.batch else len(images)
    prepare, name = tasks.prepare(source.card), source.input_name
    return tasks.batches(images, range(whole), prepare, batch, name, read_ahead=True)


def _quantize(
    job: Job, group: Mapping[str, Target], attempt: Attempt, batches: Batches, key: str | None
) -> dict[str, Quantized]:
    """Quantize for the targets, with a workplace where `key` names one."""
    graph, recipe, where = job.graph, attempt.recipe, attempt.where
    if key is None:
        return quantize_all(graph, group, where, batches, recipe, job.show)
    with ExitStack() as steps:
        advance: list[Advance] = []

        def told(done: int, total: int) -> None:
            if not advance:
                label = f"reconstruct for {', '.join(group)}, units"
                advance.append(steps.enter_context(job.show.step(label, total)))
            advance[0](done)

        place = Workplace(job.options.memory, job.store.path(unit_folder(key)), told)
        return quantize_all(graph, group, where, batches, recipe, job.show, place)


def _leavings(job: Job, made: Quantized, attempt: Attempt) -> tuple[Json, dict[str, bytes]]:
    """The log of a target and its files, under the attempt's own names."""
    target = made.target
    log: Json = {
        "seconds": round(made.seconds, 3),
        "plan": made.plan.fingerprint(),
        "verdicts": [vars(v) for v in made.planned.verdicts],
        "protected": [vars(p) for p in made.protected],
        "layers": [vars(q) for q in made.quality],
        "reconstruction": reconstruction_json(attempt.recipe, made.reconstructed),
        "simulated": target.simulated,
    }
    files = _exports(made)
    if target.runtime is not None:
        files = {artifact(target.name): ir.to_bytes(made.to_qdq()), **files}
    else:
        log["deployment"], predictions = deploy.simulation(job, made, next(iter(files), ""), files)
        details = {"target": target.name, "reconstruction": log["reconstruction"]}
        files |= predictions
        if log["reconstruction"] is not None:
            files[f"details/{target.name}.json"] = json.dumps(details).encode()
    log["files"] = list(files)
    return log, {attempt.place(file): data for file, data in files.items()}


def _exports(made: Quantized) -> dict[str, bytes]:
    """The files for the target's toolchain: {name under the folder: bytes}."""
    found = {}
    for export in made.target.export:
        for suffix, data in plugins.load("modelmill.export", export)(made.graph, made.plan).items():
            found[f"artifacts/{made.target.name}{suffix}"] = data
    return found


def reconstruction_json(recipe: Recipe, found: Reconstructed | None) -> Json | None:
    """What a reconstruction tells of its units, as JSON."""
    if found is None:
        return None
    units = [{k: _finite(v) for k, v in asdict(unit).items()} for unit in found.units]
    return {
        "algorithm": recipe_json(recipe)["reconstruct"]["step"],
        "units": units,
        "notes": list(found.notes),
        "cache_mib": found.cache_mib,
        "spilled_mib": found.spilled_mib,
        "seconds": round(sum(unit.seconds for unit in found.units), 3),
    }


def _finite(value: object) -> object:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def reconstruction_report(held: Json | None) -> ReconstructionReport | None:
    """The small part of it, for report.json."""
    if held is None:
        return None
    kept = tuple(unit["unit"] for unit in held["units"] if unit["kept"])
    facts = {k: held[k] for k in ("algorithm", "cache_mib", "spilled_mib", "seconds")}
    return ReconstructionReport(units=len(held["units"]), kept_rounding=kept, **facts)


def keep(job: Job, attempt: Attempt, log: Json) -> None:
    """Put the files of the attempt where those of the deployment are looked for."""
    for file in log["files"]:
        job.store.link(file, attempt.place(file))


def score(job: Job, target: Target, attempt: Attempt, log: Json, first: bool = True) -> Scored:
    """The score of an attempt on its engine, or simulated where there is none.

    Raises:
        DeploymentError: the engine refused, crashed, hung or ran out of memory.
    """
    if target.runtime is None:
        held = log["deployment"]
        return Scored(held["score"]["simulated"], held["seconds"]["evaluate"])
    runtime = target.runtime
    path = job.store.path(attempt.place(attempt.artifact(target.name)))
    ran: list[Scored] = []

    def compute() -> tuple[Json, dict[str, bytes]]:
        file, _ = engine_file(job, runtime, path)
        start = time.perf_counter()
        found, peak = deploy.score(job, runtime, file, f"score on {target.name}")
        ran.append(Scored(found.value, round(time.perf_counter() - start, 3), found, peak))
        return {"score": found.value, "seconds": ran[0].seconds}, {}

    inputs = {**job.key, "target": repr(target), "artifact": file_hash(path)}
    label = f"score-{target.name}" if first else f"score-{target.name}-{attempt.name}"
    held = job.store.step(label, inputs, compute)
    return ran[0] if ran else Scored(held["score"], held["seconds"])
