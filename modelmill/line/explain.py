"""Where the accuracy of a build went: by layer, by weights and activations, and by named cause.

The float model and the quantized one run on a few images with parts quantized (`quant.ablate`):
everything, only weights, only activations, one layer alone, all but one layer. What counts is the
noise at the outputs (SQNR, dB); the layers that stand out are scored by the task as well. Then
their tensors are looked at (`quant.diagnose`), and each remedy is tried before it is recommended.

This is fake quantization, from which the simulation of an engine differs by a code here and there.
What the engine itself adds is read from the build's report and details.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from modelmill import tasks
from modelmill.line.causes import ROUNDING, SUMS, EngineCause, TensorCause, causes_of, engine_causes
from modelmill.line.cross import likeness
from modelmill.line.remedy import Remedy, build_again, keep_in_float, together
from modelmill.line.report import FLOAT, Finding
from modelmill.line.show import SILENT, Show
from modelmill.line.twin import Built, Twin, base_of, load_twin, read_build, value_of
from modelmill.quant.ablate import (
    Ablation,
    Energy,
    Layer,
    Part,
    alone,
    alone_parts,
    measure,
    without,
    without_parts,
)
from modelmill.quant.diagnose import Cause

Feeds = Mapping[str, np.ndarray]
FEWEST, MOST = 4, 32  # images of the layer sweep
WORK = 6e10  # multiply-accumulates that the sweep may take, as far as FEWEST and MOST allow
BATCH = 8
SMALL = 0.25  # of the average share of a layer: below it, leaving the layer out is not tried
FEW, MANY = 3, 100  # layers scored by the task, and on how many images
NOTHING, WEIGHTS, ACTIVATIONS = "nothing", "weights", "activations"
EVERYTHING, TOGETHER = "everything", "all remedies"


@dataclass(frozen=True)
class PartScore:
    """What is quantized ("nothing", "weights", "activations", "everything"), the SQNR of the
    outputs in dB, the score, and how far the answers are those of the float model (0 to 1).
    """

    what: str
    sqnr_db: float | None
    score: float
    same_as_float: float | None


@dataclass(frozen=True)
class LayerCost:
    """One layer.

    alone_db: SQNR of the outputs with only this layer quantized. without_db: with all but this one,
    None where its share is too small to matter. share: of the noise that all layers make alone.
    weights_db, activations_db: as alone_db, for its weights and what it writes. score: of the task,
    with all but this layer; gain: what that wins. causes: named, gravest first.
    """

    node: str
    op: str
    alone_db: float
    without_db: float | None
    share: float
    weights_db: float | None = None
    activations_db: float | None = None
    score: float | None = None
    gain: float | None = None
    causes: tuple[Cause, ...] = ()
    next: str = ""


@dataclass(frozen=True)
class Explanation:
    """What `explain` found. Scores are fractions. `float_score`, `deployed`, and on the simulated
    images `simulated` and `deployed_same`, are the build's own; `parts` and the layers' scores are
    on `scored` images, SQNR on `images`.
    """

    folder: str
    target: str
    metric: str
    float_score: float
    deployed: float | None
    simulated: float | None
    deployed_same: float | None
    max_drop: float
    images: int = 0
    scored: int = 0
    parts: tuple[PartScore, ...] = ()
    layers: tuple[LayerCost, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    accepted: bool = True
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As JSON, `float` for `float_score`."""
        found = asdict(self)
        return {"float" if k == "float_score" else k: v for k, v in found.items()}


def explain(
    out: str | Path,
    target: str | None = None,
    *,
    data: str | None = None,
    images: int | None = None,
    limit: int = MANY,
    layers: int = FEW,
    show: Show = SILENT,
) -> Explanation:
    """Say where the accuracy of a finished build went.

    Args:
        out: the folder of the build.
        target: which deployment; None: the one that loses most.
        data: labelled images in place of those that the manifest names.
        images: number of images for the layer sweep; None: so many that it stays short, 4 to 32.
        limit: score the worst layers on at most so many images.
        layers: so many of the worst layers are scored and looked at.
        show: who watches.

    Raises:
        ValueError: not a build, no such deployment, or images that cannot be read.
    """
    start = time.perf_counter()
    for name, number in (("images", images), ("limit", limit), ("layers", layers)):
        if number is not None and number < 1:
            raise ValueError(f"--{name} must be at least 1, not {number}")
    built = read_build(Path(out), target, data)
    found = _facts(built)
    if built.deployment.failed is not None:
        failed = Finding(
            "deployment failed", built.target.name, built.deployment.failed, build_again(built)
        )
        return replace(found, findings=(failed,), accepted=False, seconds=_since(start))
    if built.deployment.precision == FLOAT:
        note = "the float model is deployed: nothing is quantized, so there is nothing to explain"
        refusals = _refusals(built, found, "")
        notes, accepted = (note,), not refusals
        return replace(found, findings=tuple(refusals), notes=notes, accepted=accepted)
    found = _account(built, found, (images, limit, layers), show)
    return replace(found, seconds=_since(start))


def _account(
    built: Built, facts: Explanation, counts: tuple[int | None, int, int], show: Show
) -> Explanation:
    """The explanation of a deployment that runs; `counts`: images, limit and layers as asked."""
    images, limit, layers = counts

    # 1. The float model and its quantized twin, and the images to run them on.
    twin = load_twin(built, show)
    ablation = Ablation(twin.reference, twin.graph, twin.plan)
    there = len(twin.images.evaluation)
    count = min(images or _enough(built, ablation), there)
    sample = Sample(twin, ablation, count, min(limit, there), show)

    # 2. Noise at the outputs: of everything, of weights, of activations, of each layer.
    noise = _sweep(sample)
    costs = _ranked(ablation, noise)

    # 3. Why: the tensors of the worst layers. What mending them gives, by the task's own metric.
    looked = _look_at(sample, costs[:layers], noise)

    # 4. What the engine adds.
    engine = engine_causes(twin, ablation, sample.batches()[0])

    # 5. Say it.
    refusals = _refusals(built, facts, looked.together)
    worst = sorted(looked.layers, key=lambda cost: -(cost.gain or 0.0))
    findings = [*refusals, *_engine_findings(built, [c for c in engine if c.grave])]
    findings += [
        _layer_finding(built.target.name, looked.parts, cost)
        for cost in worst
        if refusals or any(cause.name != ROUNDING for cause in cost.causes)
    ]
    small = [f"{c.cause.name} ({c.node}): {c.cause.evidence}" for c in engine if not c.grave]
    return replace(
        facts,
        images=count,
        scored=sample.scored,
        parts=looked.parts,
        layers=(*worst, *costs[layers:]),
        findings=tuple(findings),
        notes=(*twin.notes, *small),
        accepted=not refusals and not any(cause.grave for cause in engine),
    )


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 2)


@dataclass(frozen=True)
class Sample:
    """The two models, and the images that parts of them are run on.

    images: so many for the noise. scored: so many for the score.
    """

    twin: Twin
    ablation: Ablation
    images: int
    scored: int
    show: Show

    def batches(self) -> list[dict[str, np.ndarray]]:
        """The first `images` images; where the model's batch is fixed the last is filled up."""
        source, dataset = self.twin.source, self.twin.images.evaluation
        batch = source.batch or min(BATCH, self.images)
        indices = list(range(self.images))
        if source.batch:
            indices += [self.images - 1] * (-len(indices) % batch)
        prepare = tasks.prepare(source.card)
        return list(tasks.batches(dataset, indices, prepare, batch, source.input_name))

    def noise(self, parts: Mapping[str, Part], label: str) -> dict[str, Energy]:
        """Signal and noise at the outputs with each part quantized."""
        batches = self.batches()
        with self.show.step(label, len(parts) * len(batches)) as advance:
            return measure(self.ablation, parts, batches, advance).parts

    def score(self, parts: Mapping[str, Part]) -> dict[str, tuple[float, float | None]]:
        """Per part the score, and how far the answers are those of the float model."""
        source = self.twin.source
        dataset = self.twin.images.evaluation.subset(range(self.scored))
        batch = source.scoring_batch(min(4 * BATCH, self.scored))
        answers: Sequence[Any] = ()
        found: dict[str, tuple[float, float | None]] = {}
        whole = {NOTHING: Part(), **parts}
        with self.show.step(f"score {len(whole)} variants", len(whole) * self.scored) as advance:
            for number, (key, part) in enumerate(whole.items()):

                def run(feeds: Feeds, part: Part = part) -> Mapping[str, np.ndarray]:
                    return {n: y.numpy() for n, y in self.ablation.run(feeds, part).items()}

                def told(done: int, number: int = number) -> None:
                    advance(number * self.scored + done)

                name = source.input_name
                score = tasks.evaluate(source.task, run, dataset, source.card, batch, name, told)
                answers = answers or score.predictions
                same = None
                if source.task.as_truth is not None:
                    same = likeness(source.task, source.card, score.predictions, answers)
                found[key] = (score.value, same)
        return found


def _enough(built: Built, ablation: Ablation) -> int:
    """So many images that a sweep over all layers stays short; the same on every machine."""
    macs = built.report["model"]["macs"] or 1
    return max(FEWEST, min(MOST, round(WORK / (2 * len(ablation.layers) * macs))))


def _facts(built: Built) -> Explanation:
    """What the report says already."""
    score = built.deployment.score
    return Explanation(
        folder=str(built.folder),
        target=built.target.name,
        metric=built.report["metric"],
        float_score=base_of(built.report, built.deployment),
        deployed=None if score is None else score.deployed,
        simulated=None if score is None else score.simulated,
        deployed_same=None if score is None else score.deployed_same,
        max_drop=float(built.report["max_drop"]),
    )


def _sweep(sample: Sample) -> dict[str, Energy]:
    """Noise of the main parts, and of every layer alone and left out, by key."""
    layers, whole = sample.ablation.layers, sample.ablation.everything
    parts = {
        EVERYTHING: whole,
        WEIGHTS: Part(weights=whole.weights),
        ACTIVATIONS: Part(activations=whole.activations),
        **alone_parts(layers),
    }
    found = sample.noise(parts, f"quantize {len(layers)} layers one by one")
    shares = _shares(sample.ablation, found)
    tried = [x for x in layers if shares[x.node] >= SMALL / len(layers)]
    label = f"leave out {len(tried)} layers one by one"
    return {**found, **sample.noise(without_parts(layers, tried), label)}


def _shares(ablation: Ablation, noise: Mapping[str, Energy]) -> dict[str, float]:
    """Of the noise that all layers make alone, the part of each."""
    total = sum(noise[alone(x.node)].noise for x in ablation.layers)
    return {x.node: noise[alone(x.node)].noise / (total or 1.0) for x in ablation.layers}


def _ranked(ablation: Ablation, noise: Mapping[str, Energy]) -> list[LayerCost]:
    """All layers, the most expensive first: by share, and by the noise that goes with it."""
    shares = _shares(ablation, noise)
    whole = noise[EVERYTHING].noise or 1.0

    def cost(layer: Layer) -> float:
        left = noise.get(without(layer.node))
        won = 0.0 if left is None else max(1 - left.noise / whole, 0.0)
        return shares[layer.node] + won

    found = []
    for layer in sorted(ablation.layers, key=cost, reverse=True):
        left = noise.get(without(layer.node))
        found.append(
            LayerCost(
                layer.node,
                layer.op,
                noise[alone(layer.node)].db,
                None if left is None else left.db,
                shares[layer.node],
            )
        )
    return found


@dataclass(frozen=True)
class Looked:
    """The main parts and the worst layers, scored; `together`: all remedies at once, in words."""

    parts: tuple[PartScore, ...]
    layers: tuple[LayerCost, ...]
    together: str


def _look_at(sample: Sample, costs: Sequence[LayerCost], noise: Mapping[str, Energy]) -> Looked:
    """Score these layers and name their causes, each with a remedy that was tried."""
    twin, ablation = sample.twin, sample.ablation
    layers = {x.node: x for x in ablation.layers}
    chosen = [layers[c.node] for c in costs]
    split = _halves(sample, chosen)
    causes = causes_of(twin, ablation, chosen, sample.batches())
    remedies = {}
    for x in chosen:
        weights, activations = split[x.node]
        values = x.activations if activations.noise > SMALL * weights.noise else ()
        remedy = keep_in_float(twin, x, values)
        if remedy is not None:
            remedies[x.node] = remedy
    tried = _tried(sample, remedies)
    whole = ablation.everything
    scores = sample.score(
        {
            WEIGHTS: Part(weights=whole.weights),
            ACTIVATIONS: Part(activations=whole.activations),
            EVERYTHING: whole,
            **without_parts(ablation.layers, chosen),
            **{key: remedy.part for key, (remedy, _) in tried.items()},
        }
    )

    def next_step(node: str, named: Sequence[Cause]) -> str:
        if node not in tried:
            return _no_remedy(twin.built)
        remedy, energy = tried[node]
        before, after = (noise[EVERYTHING].db, scores[EVERYTHING][0]), (energy.db, scores[node][0])
        return _next(twin.built, named, remedy, before, after)

    found = []
    for cost, x in zip(costs, chosen, strict=True):
        weights, activations = split[x.node]
        named = _in_order(causes[x.node], activations.noise > weights.noise)
        score = scores[without(x.node)][0]
        found.append(
            replace(
                cost,
                weights_db=weights.db if x.constants else None,
                activations_db=activations.db if x.activations else None,
                score=score,
                gain=score - scores[EVERYTHING][0],
                causes=tuple(named),
                next=next_step(x.node, named),
            )
        )
    rows = tuple(
        PartScore(key, None if key == NOTHING else noise[key].db, *scores[key])
        for key in (NOTHING, WEIGHTS, ACTIVATIONS, EVERYTHING)
    )
    return Looked(rows, tuple(found), next_step(TOGETHER, ()))


def _halves(sample: Sample, layers: Sequence[Layer]) -> dict[str, tuple[Energy, Energy]]:
    """Noise of each layer's constants alone, and of its activations alone."""
    parts = {f"{WEIGHTS} {x.node}": Part(weights=frozenset([x.node])) for x in layers}
    parts |= {f"{ACTIVATIONS} {x.node}": Part(activations=frozenset(x.activations)) for x in layers}
    noise = sample.noise(parts, f"weights and activations of {len(layers)} layers")
    return {
        x.node: (noise[f"{WEIGHTS} {x.node}"], noise[f"{ACTIVATIONS} {x.node}"]) for x in layers
    }


def _tried(sample: Sample, remedies: Mapping[str, Remedy]) -> dict[str, tuple[Remedy, Energy]]:
    """Each remedy, and all of them at once, with the noise that is left."""
    whole = together(sample.twin, remedies.values())
    every = {**remedies, **({TOGETHER: whole} if whole is not None else {})}
    noise = sample.noise({key: remedy.part for key, remedy in every.items()}, "try the remedies")
    return {key: (remedy, noise[key]) for key, remedy in every.items()}


def _in_order(causes: Sequence[TensorCause], by_activations: bool) -> list[Cause]:
    """The causes of the side that makes the noise first."""
    return [c.cause for c in sorted(causes, key=lambda c: c.activation != by_activations)]


def _next(
    built: Built,
    causes: Sequence[Cause],
    remedy: Remedy,
    before: tuple[float, float],
    after: tuple[float, float],
) -> str:
    """The command that mends a layer, and what that gave when it was tried on the sample: SQNR and
    score `before` and `after`.
    """
    o, names = built.options, {cause.name for cause in causes}
    words = [
        f"which gives {after[0]:.1f} dB (now {before[0]:.1f}) and {built.report['metric']} "
        f"{after[1]:.4f} (now {before[1]:.4f}) here"
    ]
    if "saturated range" in names:
        words.append(f"or calibrate on more images: --calibrate {4 * o.calibrate}")
    if "outlier channel" in names and o.recipe is not None and o.recipe.equalize is None:
        words.append("or let the recipe equalize the channels")
    if "depthwise scale" in names:
        words.append("or a target with a scale for each channel")
    return f"{build_again(built, remedy.keep)}, {'; '.join(words)}"


def _no_remedy(built: Built) -> str:
    """No node kept in float would leave the tensor in float."""
    more = build_again(built, changes={"calibrate": 4 * built.options.calibrate})
    return f"{more}, as keeping nodes in float does not reach it"


def _engine_findings(built: Built, causes: Sequence[EngineCause]) -> list[Finding]:
    """What the engine adds, with the next command."""
    found = []
    sums = [c for c in causes if c.cause.name == SUMS]
    for c in causes:
        if c.cause.name == SUMS and c is not sums[0]:
            continue
        where = f"{built.target.name}: {c.node}" if c.node else built.target.name
        why, step = c.cause.evidence, build_again(built, [c.node] if c.node else [])
        if c.cause.name == SUMS:
            if len(sums) > 1:
                why += f"; so it is in {len(sums)} layers"
            if built.options.flags is not None:
                step = build_again(built, changes={"flags": built.details["cpu"]["flags"]})
        if not c.node:
            step = f"modelmill check {built.options.model} -t {built.named}"
        found.append(Finding(c.cause.name, where, why, step))
    return found


def _refusals(built: Built, facts: Explanation, step: str) -> list[Finding]:
    """Whether the deployment loses more than the build allows."""
    value = value_of(built.deployment)
    if value is None:
        return []
    drop = facts.float_score - value
    if drop <= facts.max_drop + 1e-9:
        return []
    how = "simulated" if facts.deployed is None else "deployed"
    why = (
        f"{how} {facts.metric} {value:.4f} is {drop:.4f} below float {facts.float_score:.4f}; the "
        f"build allows {facts.max_drop:g}"
    )
    return [Finding("accuracy drop above the limit", built.target.name, why, step)]


def _layer_finding(target: str, facts: Sequence[PartScore], cost: LayerCost) -> Finding:
    """One layer in words."""
    everything = facts[-1]
    what = cost.causes[0].name if cost.causes else ROUNDING
    why = "; ".join(f"{c.where}: {c.evidence}" for c in cost.causes[:2])
    if cost.without_db is not None:
        gain = f"{cost.gain:+.4f}" if cost.gain is not None else ""
        why += (
            f". Without it the outputs have {cost.without_db:.1f} dB, with it "
            f"{everything.sqnr_db:.1f} dB; score {gain}"
        )
    return Finding(what, f"{target}: {cost.node} ({cost.op})", why, cost.next)
