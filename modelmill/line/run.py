"""The production line: a trained model in, verified artifacts and a report out. Read `build` from
top to bottom.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from modelmill import ir, plugins, tasks
from modelmill.line import cross, deploy, filing, findings, manifest, page
from modelmill.line.artifact import check_engine
from modelmill.line.convert import float_file
from modelmill.line.job import FLOAT_ARTIFACT, Job
from modelmill.line.options import BuildOptions
from modelmill.line.parity import check_parity
from modelmill.line.quantize import (
    Quantized,
    Recipe,
    Where,
    default_recipe,
    prepare_graph,
    quantize_all,
)
from modelmill.line.report import FLOAT, Deployment, Report, deployment_from_json
from modelmill.line.show import SILENT, Show
from modelmill.line.source import Source, load_images, load_source
from modelmill.line.store import Json, Store, file_hash
from modelmill.records.machine import this_machine
from modelmill.runtimes import DeploymentError, probe
from modelmill.targets import Target, at_precision, load_target

CALIBRATION_BATCH = 64
REFERENCE = "onnxruntime"  # scores the float model where every target is simulated


def build(options: BuildOptions, show: Show = SILENT) -> Report:
    """Run the whole line.

    Raises:
        ValueError: wrong input; the text says what, where, why and the next command. Nothing
            finished is lost.
    """
    start = time.perf_counter()

    # 1. What was asked: model, card, images, targets, engines. What can be wrong is found here.
    asked = [at_precision(load_target(name), options.precision) for name in options.targets]
    chosen = {target.name: target for target in asked}
    check_engines(asked)
    source = load_source(options.model, options.card)
    recipe = options.recipe or default_recipe(source.task.name)
    options = o = replace(options, recipe=recipe)
    images = load_images(source, o.data, o.calib, o.calibrate, o.limit, o.seed, o.transform)
    store = Store(options.out, options.resume)

    # 2. Clean the graph; the float artifact is what every deployment is compared with.
    graph = prepare_graph(source.graph)
    ir.save(graph, store.path(FLOAT_ARTIFACT))
    key = manifest.keys(options, source, images, graph)
    job = Job(options, source, images, graph, store, key, this_machine().cores, show)

    # 3. The executor must compute what the engines compute, or nothing later means anything.
    broken: dict[str, str] = {}  # engines that fail on the float model already, and how
    for runtime in sorted(_float_engines(chosen)):
        try:
            check_parity(job, runtime)
        except DeploymentError as error:
            broken[runtime] = f"the float model does not run on {runtime}: {error}"

    # 4. Float score, on the first engine that runs it.
    float_score = _float_score(job, chosen, broken)

    # 5. Plan, calibrate and quantize: one pass of the calibration data for all targets.
    where = Where(options.precision, options.flags, frozenset(options.keep_float))
    notes = [images.note, *(n for t in chosen.values() for n in where.plan(graph, t).notes)]
    for note in notes:
        show.say(note)
    logs = _quantize(job, chosen, where, recipe)

    # 6. Each target on its engine: score, simulate, compare, time. What fails costs that one only.
    deployments = tuple(_deploy(job, t, logs[name], broken) for name, t in chosen.items())

    # 7. Do they all say the same of a picture?
    alike = cross.cross_agreement(job, [d.target for d in deployments if d.failed is None])

    # 8. Accept or not, report, manifest, records.
    report = Report(
        model=_model_facts(source, graph),
        task=source.task.name,
        metric=source.task.primary(source.card),
        float_score=float_score,
        deployments=deployments,
        accepted=False,
        findings=(),
        max_drop=options.max_drop,
        peak_memory_mib=round(_peak_memory_mib(), 1),
        seconds=round(time.perf_counter() - start, 2),
        folder=str(options.out),
        cross_agreement=alike,
    )
    report = findings.conclude(report, notes, logs, options.allow_fallback)
    store.write_json("report.json", report.to_json())
    store.write_json(
        "manifest.json", manifest.manifest(options, source, images, key, report, store)
    )
    store.write("report.html", page.render(report, store, logs).encode())
    filing.file_records(report, options, store, manifest.build_id(key))
    return report


def check_engines(chosen: Iterable[Target]) -> None:
    """Raise ValueError if the engine of a target is not here as it should."""
    for target in chosen:
        if target.runtime is not None:
            check_engine(target.runtime, f"target {target.name} needs")


def _quantize(
    job: Job, chosen: Mapping[str, Target], where: Where, recipe: Recipe
) -> dict[str, Json]:
    """The artifact and the log of every target; what an earlier run finished is not done again."""
    source, images = job.source, job.images.calibration
    batch = source.batch or CALIBRATION_BATCH
    whole = len(images) - len(images) % batch if source.batch else len(images)
    prepare, name = tasks.prepare(source.card), source.input_name
    batches = tasks.batches(images, range(whole), prepare, batch, name, read_ahead=True)
    quantized: dict[str, Quantized] = {}

    def compute(name: str) -> Callable[[], tuple[Json, dict[str, bytes]]]:
        def run() -> tuple[Json, dict[str, bytes]]:
            if not quantized:
                quantized.update(quantize_all(job.graph, chosen, where, batches, recipe, job.show))
            made, target = quantized[name], chosen[name]
            log = {
                "seconds": round(made.seconds, 3),
                "plan": made.plan.fingerprint(),
                "verdicts": [vars(v) for v in made.planned.verdicts],
                "protected": [vars(p) for p in made.protected],
                "layers": [vars(q) for q in made.quality],
            }
            files = _exports(made)
            if target.runtime is not None:
                return log, {_artifact(name): ir.to_bytes(made.to_qdq()), **files}
            artifact = next(iter(files), "")
            held, predictions = deploy.simulation(job, made, artifact, files)
            return {**log, "deployment": held}, {**files, **predictions}

        return run

    return {
        name: job.store.step(f"quantize-{name}", _inputs(job, target), compute(name))
        for name, target in chosen.items()
    }


def _inputs(job: Job, target: Target) -> Json:
    """What the quantization for a target depends on; where it is simulated, on how much too."""
    found = {**job.key, "target": repr(target)}
    return found if target.runtime is not None else {**found, "simulate": job.options.simulate}


def _exports(made: Quantized) -> dict[str, bytes]:
    """The files for the target's toolchain: {name under the folder: bytes}."""
    found = {}
    for export in made.target.export:
        for suffix, data in plugins.load("modelmill.export", export)(made.graph, made.plan).items():
            found[f"artifacts/{made.target.name}{suffix}"] = data
    return found


def _artifact(target: str) -> str:
    return f"artifacts/{target}.onnx"


def _float_score(job: Job, chosen: Mapping[str, Target], broken: dict[str, str]) -> Json:
    """The score of the first engine that runs the float model; those that fail join `broken`."""

    def compute(runtime: str) -> tuple[Json, dict[str, bytes]]:
        path = float_file(job, runtime)
        result, _ = deploy.score(job, runtime, path, f"score float on {runtime}")
        first = min(job.options.simulate, result.n)
        task, card = job.source.task, job.source.card
        same = task.score(result.predictions[:first], result.truths[:first], card)
        found = {
            "score": result.value,
            "n": result.n,
            "metrics": result.metrics,
            "score_same": same[result.metric],
            "simulated_n": first,
        }
        return found, cross.kept(job.source.task, FLOAT, result)

    for runtime in _float_engines(chosen) or [REFERENCE]:
        if runtime in broken:
            continue
        try:
            inputs = {**job.key, "runtime": runtime}
            return job.store.step("float-score", inputs, partial(compute, runtime))
        except DeploymentError as error:
            broken[runtime] = f"the float model does not run on {runtime}: {error}"
    raise ValueError("; ".join(broken.values()))


def _float_engines(chosen: Mapping[str, Target]) -> list[str]:
    """The engines that run the float model, each once; emulators of integer chips do not."""
    engines = [t.runtime for t in chosen.values() if t.runtime is not None and not t.emulated]
    return list(dict.fromkeys(engines))


def _deploy(job: Job, target: Target, log: Json, broken: Mapping[str, str]) -> Deployment:
    """One target's facts, or the reason why there are none."""
    seconds = {"quantize": log["seconds"]}
    if target.runtime is None:
        held = log["deployment"]
        return deployment_from_json({**held, "seconds": {**seconds, **held["seconds"]}})
    artifact = _artifact(target.name)
    path = job.store.path(artifact)
    inputs = {
        **job.key,
        "target": repr(target),
        "artifact": file_hash(path),
        "simulate": job.options.simulate,
    }
    try:
        if target.runtime in broken:
            raise DeploymentError(broken[target.runtime])
        held = job.store.step(
            f"deploy-{target.name}",
            inputs,
            lambda: deploy.deployment(job, target, path, log["verdicts"]),
        )
    except DeploymentError as error:
        job.show.say(f"{target.name} failed: {error}")
        return Deployment(
            target=target.name,
            runtime=target.runtime,
            version=_version(target.runtime),
            precision=job.options.precision,
            artifact=artifact,
            bytes=path.stat().st_size,
            seconds=seconds,
            failed=str(error),
            qdq=artifact,
        )
    return deployment_from_json({**held, "seconds": {**seconds, **held["seconds"]}})


def _version(runtime: str) -> str:
    """Asked in a worker: an engine that fails is not to be imported here."""
    try:
        return probe(runtime)
    except DeploymentError:
        return ""


def _model_facts(source: Source, graph: ir.Graph) -> Json:
    facts = ir.statistics(ir.with_batch(graph, 1) if source.batch is None else graph)
    return {
        "name": source.name,
        "fingerprint": ir.fingerprint(graph),
        "params": facts.params,
        "macs": facts.macs,
        "input": list(source.card.input.shape(1)),
    }


def _peak_memory_mib() -> float:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 2**20
