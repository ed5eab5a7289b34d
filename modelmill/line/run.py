"""The production line: a trained model in, verified artifacts and a report out. Read `build` from
top to bottom.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

from modelmill import ir
from modelmill.line import attempt, cross, deploy, escalate, filing, findings, manifest, page
from modelmill.line.artifact import check_engine
from modelmill.line.convert import float_file
from modelmill.line.escalate import Kept
from modelmill.line.job import FLOAT_ARTIFACT, Job
from modelmill.line.options import SEARCHED, BuildOptions
from modelmill.line.parity import check_parity
from modelmill.line.quantize import default_recipe, prepare_graph
from modelmill.line.report import FLOAT, Deployment, Report, deployment_from_json
from modelmill.line.show import SILENT, Show
from modelmill.line.source import Source, load_images, load_source
from modelmill.line.store import Json, Store, file_hash
from modelmill.records.machine import this_machine
from modelmill.runtimes import DeploymentError, probe
from modelmill.targets import Target, at_precision, load_target

REFERENCE = "onnxruntime"  # scores the float model where every target is simulated


def build(options: BuildOptions, show: Show = SILENT) -> Report:
    """Run the whole line.

    Raises:
        ValueError: wrong input; the text says what, where, why and the next command. Nothing
            finished is lost.
    """
    start = time.perf_counter()

    # 1. What was asked: model, card, images, targets, engines. What can be wrong is found here.
    asked = [at_precision(load_target(name), options.base_precision) for name in options.targets]
    chosen = {target.name: target for target in asked}
    check_engines(asked, options)
    filing.check_database(options.db)
    source = load_source(options.model, options.card)
    recipe = options.recipe or replace(default_recipe(source.task.name), effort=options.effort)
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
    where = options.where()
    notes = [images.note, *(n for t in chosen.values() for n in where.plan(graph, t).notes)]
    for note in notes:
        show.say(note)
    # A finding of its own says why a target is simulated.
    notes = [n for n in notes if not any(t.simulated and t.simulated in n for t in asked)]
    kept = escalate.begin(job, chosen)

    # 6. Each target on its engine: score it, and where it loses too much try what costs more; then
    # simulate, compare, time. What fails costs that one only.
    deployments = tuple(_deploy(job, t, kept, float_score, broken) for t in chosen.values())
    logs = {name: held.log for name, held in kept.items()}

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
    made = manifest.manifest(options, source, images, key, report, store)
    attempts = {n: {**k.attempt.to_json(), "units": k.log["units"]} for n, k in kept.items()}
    store.write_json("manifest.json", {**made, "attempts": attempts})
    store.write("report.html", page.render(report, store, logs).encode())
    filing.file_records(report, options, store, manifest.build_id(key), show)
    filing.file_latencies(job, report, manifest.build_id(key))
    return report


def check_engines(chosen: Iterable[Target], options: BuildOptions) -> None:
    """Raise ValueError if the engine of a target is not here as it should, or cannot be timed where
    the fastest precision is asked for.
    """
    timed = options.precision == SEARCHED and options.objective == "latency"
    for target in chosen:
        if timed and (target.runtime is None or target.emulated):
            raise ValueError(
                f"--objective latency: no engine here runs {target.name}, so its layers cannot be "
                "timed; use --objective size"
            )
        if target.runtime is not None:
            check_engine(target.runtime, f"target {target.name} needs")


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


def _deploy(
    job: Job,
    target: Target,
    kept: dict[str, Kept],
    float_score: Json,
    broken: Mapping[str, str],
) -> Deployment:
    """One target's facts, or the reason why there are none; `kept` gets the attempt they are of."""
    name, runtime = target.name, target.runtime
    try:
        if runtime is not None and runtime in broken:
            raise DeploymentError(broken[runtime])
        base = float_score["score_same" if runtime is None else "score"]
        kept[name] = held = escalate.settle(job, target, kept[name], base)
        attempt.keep(job, held.attempt, held.log)
        found = held.log["deployment"] if runtime is None else _on_engine(job, target, held)
    except DeploymentError as error:
        job.show.say(f"{name} failed: {error}")
        attempt.keep(job, kept[name].attempt, kept[name].log)
        return _failed(job, target, kept[name], str(error))
    seconds = {"quantize": held.log["seconds"], **found["seconds"]}
    return replace(
        deployment_from_json({**found, "seconds": seconds}),
        attempts=held.tried,
        reconstruction=attempt.reconstruction_report(held.log["reconstruction"]),
    )


def _on_engine(job: Job, target: Target, held: Kept) -> Json:
    """The Deployment, as JSON, of the attempt that is kept."""
    path = job.store.path(held.attempt.artifact(target.name))
    inputs = {
        **job.key,
        "target": repr(target),
        "artifact": file_hash(path),
        "simulate": job.options.simulate,
    }
    return job.store.step(
        f"deploy-{target.name}",
        inputs,
        lambda: deploy.deployment(job, target, path, held.log, held.scored),
    )


def _failed(job: Job, target: Target, held: Kept, why: str) -> Deployment:
    """A deployment without a result."""
    runtime, file = target.runtime or "", held.attempt.artifact(target.name)
    return Deployment(
        target=target.name,
        runtime=runtime,
        version=_version(runtime),
        precision=job.options.precision,
        artifact=file,
        bytes=job.store.path(file).stat().st_size,
        seconds={"quantize": held.log["seconds"]},
        failed=why,
        qdq=file,
    )


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
