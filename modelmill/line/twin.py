"""A finished build read back: one of its deployments as a float model and its quantized twin.

Only the build's folder is read, and the images that its manifest names. The artifact gives plan and
codes. The weights before they were rounded are not in it: the clean float graph beside it is
equalized once more, as the recipe says and on the same images. Where there is no QDQ artifact (a
chip that no engine here runs), or a pass of the target has renamed its nodes, the target is
quantized once more; the same inputs give the same numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from modelmill import ir, tasks
from modelmill.ir import Plan
from modelmill.line.attempt import attempt_from
from modelmill.line.job import FLOAT_ARTIFACT
from modelmill.line.manifest import options_from
from modelmill.line.options import BuildOptions
from modelmill.line.quantize import DEFAULT, Recipe, Where, quantize_all
from modelmill.line.report import Deployment, deployment_from_json
from modelmill.line.show import Show
from modelmill.line.source import Images, Source, load_images, with_card
from modelmill.line.store import Json
from modelmill.quant.ablate import find_layers
from modelmill.quant.observe import Batches
from modelmill.quant.reconstruct import WORKPLACE, Workplace
from modelmill.targets import Planned, Target, at_precision, load_target
from modelmill.tasks import card_from_json

CALIBRATION_BATCH = 64


@dataclass(frozen=True)
class Built:
    """A build's folder: its options, its report and manifest as JSON, one of its deployments, its
    target and how that was named, and what the engine told (`details`, empty where there is none).
    """

    folder: Path
    options: BuildOptions
    report: Json
    manifest: Json
    deployment: Deployment
    target: Target
    named: str
    details: Json

    @property
    def flags(self) -> tuple[str, ...]:
        """Of the CPU that it was planned for."""
        asked = self.options.flags
        return asked if asked is not None else tuple(self.manifest["machine"]["flags"])


def read_build(folder: Path, target: str | None, data: str | None) -> Built:
    """The build in `folder`, and its deployment for `target`, or the one that loses most.

    `data` takes the place of the images that the manifest names.

    Raises:
        ValueError: not a build, no such deployment (lists them), or values that no file can name.
    """
    try:
        report = json.loads((folder / "report.json").read_bytes())
        manifest = json.loads((folder / "manifest.json").read_bytes())
        deployments = [deployment_from_json(d) for d in report["deployments"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} is not the folder of a finished build (report.json, manifest.json): {error}"
        ) from error
    given = {"model": str(folder / FLOAT_ARTIFACT), **({"data": data} if data is not None else {})}
    options = options_from(folder / "manifest.json", folder, given)
    chosen = {load_target(name).name: name for name in options.targets}
    if target is None:
        found = max(deployments, key=lambda d: _loss(report, d))
    else:
        wanted = next((name for name, asked in chosen.items() if target in (name, asked)), target)
        known = {d.target: d for d in deployments}
        if wanted not in known:
            raise ValueError(f"{folder} has no deployment {target!r}. Choices: {', '.join(known)}")
        found = known[wanted]
    details = folder / "details" / f"{found.target}.json"
    held = json.loads(details.read_bytes()) if found.failed is None and details.exists() else {}
    named = chosen[found.target]
    made_for = at_precision(load_target(named), options.base_precision)
    return Built(folder, options, report, manifest, found, made_for, named, held)


def value_of(deployment: Deployment) -> float | None:
    """The deployed score, or the simulated one where no engine here runs the target."""
    score = deployment.score
    if score is None:
        return None
    return score.simulated if score.deployed is None else score.deployed


def base_of(report: Json, deployment: Deployment) -> float:
    """The float score on the same images as `value_of`."""
    held = report["float"]
    if deployment.simulated:
        return float(held.get("score_same", held["score"]))
    return float(held["score"])


def _loss(report: Json, deployment: Deployment) -> float:
    """What to order deployments by; those that failed come last, their reason is known."""
    value = value_of(deployment)
    return -2.0 if value is None else base_of(report, deployment) - value


@dataclass(frozen=True)
class Twin:
    """reference: the float model. graph: with the constants that were quantized. plan: with
    encodings. protected: layers that the recipe kept in float. notes: what the reader must know.
    """

    built: Built
    source: Source
    images: Images
    reference: ir.Graph
    graph: ir.Graph
    plan: Plan
    where: Where
    protected: frozenset[str]
    notes: tuple[str, ...]

    def planned(self, keep: frozenset[str] = frozenset()) -> Planned:
        """What the target would plan with further nodes kept in float."""
        return self.where.plan(self.reference, self.built.target, self.protected | keep)


def load_twin(built: Built, show: Show) -> Twin:
    """The twin of a deployment.

    Raises:
        ValueError: images are missing or are not those of the build.
    """
    o = built.options
    card = card_from_json(built.manifest["inputs"]["card"])
    path = built.folder / FLOAT_ARTIFACT
    graph = ir.load(path)
    source = with_card(path, graph, card)
    images = load_images(source, o.data, o.calib, o.calibrate, o.limit, o.seed, o.transform)
    where, recipe, place = _how(built)
    notes = _strange_images(built, images)
    same = not any(note.startswith("calibration") for note in notes)
    batches = _batches(source, images)
    found = _from_artifact(built, graph, recipe, batches, same)
    if found is None:
        name = built.target.name
        made = quantize_all(graph, {name: built.target}, where, batches, recipe, show, place)[name]
        found = made.reference, made.graph, made.plan
    reference, coded, plan = found
    if reference is coded:
        notes += ("the float weights of the build are unknown, so weights are not looked at",)
    wanted = where.plan(reference, built.target)
    kept = {layer.node for layer in find_layers(coded, plan) if layer.constants}
    planned = {layer.node for layer in find_layers(reference, wanted.plan) if layer.constants}
    return Twin(
        built, source, images, reference, coded, plan, where, frozenset(planned - kept), notes
    )


def _how(built: Built) -> tuple[Where, Recipe, Workplace]:
    """How the deployment was quantized: by the attempt that was kept. Units that its reconstruction
    finished lie in the build's cache, so that quantizing it once more does not learn them again.
    """
    held = built.manifest.get("attempts", {}).get(built.target.name)
    if held is None:  # a build of before there were attempts
        o = built.options
        where = Where(o.precision, built.flags, frozenset(o.keep_float))
        return where, o.recipe or DEFAULT, WORKPLACE
    kept = attempt_from(held)
    units = held.get("units")
    folder = built.folder / units if units is not None else None
    if folder is None or not folder.is_dir():
        folder = None
    place = Workplace(built.options.memory, folder)
    return replace(kept.where, flags=built.flags), kept.recipe, place


def _strange_images(built: Built, images: Images) -> tuple[str, ...]:
    """Which images are not those that the build saw."""
    found = []
    for name, dataset in (("calibration", images.calibration), ("evaluation", images.evaluation)):
        if dataset.fingerprint() != built.manifest["inputs"][name]["sha256"]:
            found.append(f"{name} images are not those of the build")
    return tuple(found)


def _batches(source: Source, images: Images) -> Batches:
    """The calibration images as the build read them."""
    batch = source.batch or CALIBRATION_BATCH
    count = len(images.calibration)
    whole = count - count % batch if source.batch else count
    prepare = tasks.prepare(source.card)
    return tasks.batches(images.calibration, range(whole), prepare, batch, source.input_name)


def _from_artifact(
    built: Built, graph: ir.Graph, recipe: Recipe, batches: Batches, same: bool
) -> tuple[ir.Graph, ir.Graph, Plan] | None:
    """Reference, quantized graph and plan from the QDQ file; None where that cannot be.

    With other calibration images than those of the build the equalized weights are unknown: then
    the quantized graph is its own reference.
    """
    path = built.folder / (built.deployment.qdq or built.deployment.artifact)
    if path.suffix != ".onnx" or not path.is_file():
        return None
    coded, plan = ir.from_qdq(ir.load(path))
    if {n.name for n in ir.nodes(coded)} != {n.name for n in ir.nodes(graph)}:
        return None
    if recipe.equalize is None:
        return graph, coded, plan
    if recipe.equalize.by == "activations" and not same:
        return coded, coded, plan
    return recipe.equalize(graph, Plan(), batches)[0], coded, plan
