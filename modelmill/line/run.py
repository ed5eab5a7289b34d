"""The production line: a trained model in, verified artifacts and a report out. Read `build` from
top to bottom."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping

from modelmill import ir, plugins, tasks
from modelmill.line import deploy, filing, findings, manifest, page
from modelmill.line.options import BuildOptions
from modelmill.line.parity import check_parity
from modelmill.line.quantize import Quantized, Where, load_target, prepare_graph, quantize_all
from modelmill.line.report import Deployment, Report, deployment_from_json
from modelmill.line.show import Show, Silent
from modelmill.line.source import Images, Source, load_images, load_source
from modelmill.line.store import Json, Store
from modelmill.records.machine import this_machine
from modelmill.runtimes import DeploymentError, EngineMissing
from modelmill.runtimes.worker import probe
from modelmill.targets import Target

CALIBRATION_BATCH = 64


def build(options: BuildOptions, show: Show = Silent()) -> Report:
    """Run the whole line.

    Raises:
        ValueError: wrong input; the text says what, where, why and the next command. Nothing
        finished is lost.
    """
    start = time.perf_counter()

    # 1. What was asked: model, card, images, targets, engines. Everything that can be wrong is
    # found here.
    chosen = {target.name: target for target in map(load_target, options.targets)}
    for target in chosen.values():
        target.scheme(options.precision)
        missing = plugins.load("modelmill.runtimes", target.runtime).missing()
        if missing:
            raise EngineMissing(
                f"target {target.name} needs {target.runtime}, which is not installed; run: {missing}"
            )
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
    store = Store(options.out, options.resume)

    # 2. Clean the graph; the float artifact is what every deployment is compared with.
    graph = prepare_graph(source.graph)
    ir.save(graph, store.path(deploy.FLOAT_ARTIFACT))
    key = manifest.keys(options, source, images, graph)

    # 3. The executor must compute what the engines compute, or nothing later means anything.
    limits = deploy.Limits(
        threads=this_machine().cores, timeout_s=options.timeout_s, simulate=options.simulate
    )
    broken: dict[str, str] = {}  # engines that fail on the float model already, and how
    for name in sorted({target.runtime for target in chosen.values()}):
        try:
            check_parity(graph, source, images.evaluation, name, store, key, limits)
        except DeploymentError as error:
            broken[name] = f"the float model does not run on {name}: {error}"

    # 4. Float score, on the first engine that runs it.
    float_score = _float_score(store, key, source, images, chosen, broken, limits, show)

    # 5. Plan, calibrate and quantize: one pass of the calibration data for all targets.
    where = Where(options.precision, options.flags, frozenset(options.keep_float))
    notes = [images.note, *(note for t in chosen.values() for note in where.plan(graph, t).notes)]
    for note in notes:
        show.say(note)
    logs = _quantize(store, key, options, source, images, graph, chosen, where, show)

    # 6. Each target on its engine: score, simulate, compare, time. What fails costs that target
    # only.
    deployments = []
    for name, target in chosen.items():
        with_log = {"quantize": logs[name]["seconds"]}
        if target.runtime in broken:
            deployments.append(
                _failed(options, target, store, with_log, broken[target.runtime], show)
            )
            continue
        deployments.append(
            _deploy(
                store,
                key,
                options,
                source,
                images,
                target,
                logs[name]["verdicts"],
                limits,
                with_log,
                show,
            )
        )

    # 7. Report, records, manifest.
    report = findings.conclude(
        Report(
            model=_model_facts(source, graph),
            task=source.task.name,
            metric=source.task.primary(source.card),
            float_score=float_score,
            deployments=tuple(deployments),
            accepted=False,
            findings=(),
            max_drop=options.max_drop,
            peak_memory_mib=round(_peak_memory_mib(), 1),
            seconds=round(time.perf_counter() - start, 2),
            folder=str(options.out),
        ),
        notes,
        logs,
        options.allow_fallback,
    )
    store.write_json("report.json", report.to_json())
    store.write_json(
        "manifest.json", manifest.manifest(options, source, images, key, report, store)
    )
    store.write("report.html", page.render(report, store, logs).encode())
    filing.file_records(report, options, store, manifest.build_id(key))
    return report


def _quantize(
    store: Store,
    key: Json,
    options: BuildOptions,
    source: Source,
    images: Images,
    graph: ir.Graph,
    chosen: Mapping[str, Target],
    where: Where,
    show: Show,
) -> dict[str, Json]:
    """The artifact and the log of every target; targets that an earlier run finished are not
    quantized again."""
    batch = source.batch or CALIBRATION_BATCH
    count = len(images.calibration)
    batches = tasks.batches(
        images.calibration,
        range(count - count % batch if source.batch else count),
        tasks.prepare(source.card),
        batch,
        source.input_name,
        read_ahead=True,
    )
    quantized: dict[str, Quantized] = {}

    def compute(name: str) -> Callable[[], tuple[Json, dict[str, bytes]]]:
        def run() -> tuple[Json, dict[str, bytes]]:
            if not quantized:
                quantized.update(quantize_all(graph, chosen, where, batches, options.recipe, show))
            made = quantized[name]
            log = {
                "seconds": round(made.seconds, 3),
                "plan": made.plan.fingerprint(),
                "verdicts": [vars(v) for v in made.planned.verdicts],
                "protected": [vars(p) for p in made.protected],
                "layers": [vars(q) for q in made.quality],
            }
            return log, {_artifact(name): ir.to_bytes(made.to_qdq())}

        return run

    return {
        name: store.step(f"quantize-{name}", {**key, "target": repr(target)}, compute(name))
        for name, target in chosen.items()
    }


def _artifact(target: str) -> str:
    return f"artifacts/{target}.onnx"


def _float_score(
    store: Store,
    key: Json,
    source: Source,
    images: Images,
    chosen: Mapping[str, Target],
    broken: dict[str, str],
    limits: deploy.Limits,
    show: Show,
) -> Json:
    """The float score on the first engine that can; those that fail are added to `broken`."""

    def compute(runtime: str) -> Callable[[], tuple[Json, dict[str, bytes]]]:
        def run() -> tuple[Json, dict[str, bytes]]:
            path = store.path(deploy.FLOAT_ARTIFACT)
            label = f"score float on {runtime}"
            result, _ = deploy.score(source, runtime, path, images.evaluation, limits, show, label)
            return {"score": result.value, "n": result.n, "metrics": result.metrics}, {}

        return run

    for runtime in dict.fromkeys(target.runtime for target in chosen.values()):
        if runtime in broken:
            continue
        try:
            return store.step("float-score", {**key, "runtime": runtime}, compute(runtime))
        except DeploymentError as error:
            broken[runtime] = f"the float model does not run on {runtime}: {error}"
    raise ValueError("; ".join(broken.values()))


def _deploy(
    store: Store,
    key: Json,
    options: BuildOptions,
    source: Source,
    images: Images,
    target: Target,
    verdicts: list[Json],
    limits: deploy.Limits,
    seconds: dict[str, float],
    show: Show,
) -> Deployment:
    """One target's facts, or the reason why there are none."""
    path = store.path(_artifact(target.name))

    def compute() -> tuple[Json, dict[str, bytes]]:
        return deploy.deployment(
            source, images.evaluation, target, verdicts, store, path, limits, options.seed, show
        )

    inputs = {
        **key,
        "target": repr(target),
        "artifact": ir.fingerprint(ir.load(path)),
        "simulate": options.simulate,
    }
    try:
        held = store.step(f"deploy-{target.name}", inputs, compute)
    except DeploymentError as error:
        return _failed(options, target, store, seconds, str(error), show)
    held = {**held, "seconds": {**seconds, **held["seconds"]}, "precision": options.precision}
    return deployment_from_json({**held, "artifact": _artifact(target.name)})


def _failed(
    options: BuildOptions,
    target: Target,
    store: Store,
    seconds: dict[str, float],
    why: str,
    show: Show,
) -> Deployment:
    """A deployment of which there is an artifact, and the reason why there is nothing else."""
    show.say(f"{target.name} failed: {why}")
    try:
        version = probe(target.runtime)  # in a worker: an engine that fails is not imported here
    except DeploymentError:
        version = ""
    artifact = _artifact(target.name)
    return Deployment(
        target.name, target.runtime, version, options.precision, artifact,
        store.path(artifact).stat().st_size, seconds=seconds, failed=why,
    )  # fmt: skip


def _model_facts(source: Source, graph: ir.Graph) -> Json:
    shape = source.card.input.shape(1)
    facts = ir.statistics(ir.with_batch(graph, 1) if source.batch is None else graph)
    return {
        "name": source.name,
        "fingerprint": ir.fingerprint(graph),
        "params": facts.params,
        "macs": facts.macs,
        "input": list(shape),
    }


def _peak_memory_mib() -> float:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 2**20
