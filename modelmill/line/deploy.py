"""One deployment: the artifact on the real engine, scored, timed, and compared with its simulation.

Every engine session is a worker process of its own, so whatever goes wrong in one is a
`DeploymentError` here and costs this deployment only.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modelmill import ir, tasks
from modelmill.executor.integer import IntegerModule
from modelmill.latency import Latency, compare, measure
from modelmill.line.agreement import Agreement, exposed
from modelmill.line.convert import engine_file, float_file, size
from modelmill.line.cross import kept
from modelmill.line.job import FLOAT_ARTIFACT, Job
from modelmill.line.quantize import Quantized
from modelmill.line.report import (
    FLOAT,
    SIMULATED,
    AgreementReport,
    Deployment,
    LatencyReport,
    ScoreReport,
    SpeedupReport,
)
from modelmill.line.source import Source
from modelmill.line.store import Json
from modelmill.records.machine import this_machine
from modelmill.runtimes import ExecutedOp, find_platform, load_runtime, open_session
from modelmill.targets import Target
from modelmill.tasks import Dataset, Score

SCORING_BATCH = 100
AGREEMENT_BATCH = 50


@dataclass(frozen=True)
class Scored:
    """The score of an attempt and the seconds that it took; `found` and the worker's peak memory
    (MiB) only where it ran just now.
    """

    value: float
    seconds: float
    found: Score | None = None
    peak_mib: float = 0.0


def score(job: Job, runtime: str, path: Path, label: str) -> tuple[Score, float]:
    """Score a model file on an engine; the score and the worker's peak memory in MiB."""
    dataset, source = job.images.evaluation, job.source
    batch = source.scoring_batch(min(SCORING_BATCH, len(dataset)))
    with (
        open_session(runtime, path, job.session(_threads(job, runtime), batch)) as session,
        job.show.step(label, len(dataset)) as advance,
    ):
        name = source.input_name
        result = tasks.evaluate(
            source.task, session.run, dataset, source.card, batch, name, advance
        )
        return result, session.peak_memory_mib()


def _threads(job: Job, runtime: str) -> int:
    """Threads for scoring. A file of an engine's own runs image by image: there a second thread
    waits more than it works, and where other programs want the core, everything waits for it.
    """
    reads_onnx = load_runtime(find_platform(runtime).runtime).suffix == ".onnx"
    return job.threads if reads_onnx else 1


def simulate_and_compare(job: Job, target: Target, artifact: Path) -> tuple[Score, Agreement]:
    """Simulate the artifact on the first images and compare every quantized tensor with the
    engine's.
    """
    graph = ir.load(artifact)
    module = IntegerModule(*ir.from_qdq(graph), target.arithmetic)
    opened, codes = exposed(graph)
    assert target.runtime is not None
    path = artifact.with_name(f".{artifact.stem}.exposed.onnx")
    ir.save(opened, path)
    source, dataset = job.source, job.images.evaluation
    subset = dataset.subset(range(min(job.options.simulate, len(dataset))))
    batch = source.scoring_batch(min(AGREEMENT_BATCH, len(subset)))
    try:
        with open_session(
            target.runtime, path, job.session(_threads(job, target.runtime), batch)
        ) as session:
            agreement = Agreement(module, session, codes)
            with job.show.step(f"simulate {target.name}", len(subset)) as advance:
                name = source.input_name
                simulated = tasks.evaluate(
                    source.task, agreement.run, subset, source.card, batch, name, advance
                )
    finally:
        path.unlink(missing_ok=True)
    return simulated, agreement


def time_in_turns(
    job: Job, runtime: str, paths: Mapping[str, Path], feeds: Mapping[str, np.ndarray]
) -> tuple[dict[str, Latency], RemoteFacts]:
    """Latency of each file on one engine, one thread, in turns; and what the last of them ran."""
    options = job.session(1, job.source.scoring_batch(1))
    with ExitStack() as stack:
        sessions = {
            kind: stack.enter_context(open_session(runtime, path, options))
            for kind, path in paths.items()
        }
        found = measure(sessions, dict(feeds), job.effort)
        last = list(sessions.values())[-1]
        facts = RemoteFacts(last.version, last.peak_memory_mib(), tuple(last.executed()))
    return found, facts


@dataclass(frozen=True)
class RemoteFacts:
    """What a session told about itself: engine version, peak memory of its worker, kernels run."""

    version: str
    peak_memory_mib: float
    executed: tuple[ExecutedOp, ...]


def fallbacks(
    target: Target, verdicts: list[Json], executed: tuple[ExecutedOp, ...]
) -> tuple[str, ...]:
    """Ops that the plan wanted on integers and the engine ran in float, as `engine name (op)`.

    Engines rename and fuse nodes, so the count of float kernels of a kind is compared with how many
    the plan left in float. A kernel may stand for several operators, as XNNPACK's product of
    matrices does for a 1x1 convolution.
    """
    allowed = Counter(v["op"] for v in verdicts if v["runs"] == "float")
    found = []
    for op in executed:
        may_be = [onnx_op for kernel, onnx_op in target.float_kernels if kernel == op.op]
        if not may_be or op.kind != "float":
            continue
        left = next((onnx_op for onnx_op in may_be if allowed[onnx_op] > 0), None)
        if left is not None:
            allowed[left] -= 1
        else:
            found.append(f"{op.name} ({op.op})")
    return tuple(found)


def score_report(deployed: Score, simulated: Score, source: Source) -> ScoreReport:
    """Both numbers, and the deployed one on the images that were simulated."""
    first = simulated.n
    same = source.task.score(deployed.predictions[:first], deployed.truths[:first], source.card)
    return ScoreReport(
        deployed.value,
        simulated.value,
        deployed.n,
        first,
        same[deployed.metric],
        dict(deployed.metrics),
    )


def agreement_report(agreement: Agreement) -> AgreementReport:
    """The totals."""
    whole, own = agreement.whole, agreement.own
    return AgreementReport(
        elements=whole.elements,
        mismatched=whole.mismatched,
        max_codes=whole.max_codes,
        first_divergence=agreement.first_divergence,
        images=agreement.images,
        own_elements=own.elements,
        own_mismatched=own.mismatched,
        own_max_codes=own.max_codes,
    )


def latency_report(latency: Latency | None) -> LatencyReport | None:
    """Quantiles in ms, rounded to 0.1 us; None where nothing was timed."""
    if latency is None:
        return None
    return LatencyReport(
        p50=round(latency.p50_ms, 4),
        p90=round(latency.p90_ms, 4),
        p99=round(latency.p99_ms, 4),
        n=latency.n,
        threads=latency.threads,
        batch=latency.batch,
        noise=round(latency.noise, 4),
    )


def speedup_report(
    reference: Latency | None, candidate: Latency | None, seed: int
) -> SpeedupReport | None:
    """Ratio of medians, its interval and the verdict; None where not both were timed."""
    if reference is None or candidate is None:
        return None
    found = compare(reference, candidate, seed)
    return SpeedupReport(
        round(found.ratio, 4), round(found.low, 4), round(found.high, 4), found.verdict
    )


def tensor_rows(agreement: Agreement) -> list[dict[str, Any]]:
    """Per-tensor counts as JSON rows, in graph order."""
    return [
        {
            "value": t.value,
            "node": t.node,
            "op": t.op,
            **vars(t.whole),
            **{f"own_{name}": number for name, number in vars(t.own).items()},
        }
        for t in agreement.tensors.values()
    ]


def deployment(
    job: Job, target: Target, qdq: Path, log: Json, scored: Scored
) -> tuple[Json, dict[str, bytes]]:
    """Everything about one artifact on one engine: the Deployment as JSON, and its details file.

    qdq: its ONNX file, or that of the float model, which has no codes to compare and no other time.
    log: of its quantization. scored: its score; without what it was computed from it is done again.

    Raises:
        DeploymentError: the engine refused, crashed, hung or ran out of memory.
    """
    runtime = target.runtime
    assert runtime is not None
    floats = qdq == job.store.path(FLOAT_ARTIFACT)
    path, converted = engine_file(job, runtime, qdq)
    start = time.perf_counter()
    deployed, peak, before = scored.found, scored.peak_mib, scored.seconds
    if deployed is None:
        deployed, peak = score(job, runtime, path, f"score on {target.name}")
        before = 0.0
    simulated, agreement = simulate_and_compare(job, target, qdq)
    evaluated = before + time.perf_counter() - start
    timed, facts = _timed(job, target, path)
    reference, candidate = timed.get("float"), timed.get("quantized")
    details = {
        "target": target.name,
        "tensors": tensor_rows(agreement),
        "output_difference": agreement.output_difference,
        "latency_samples_ms": {kind: latency.samples_ms for kind, latency in timed.items()},
        "warmup": {kind: latency.warmup for kind, latency in timed.items()},
        "executed": [asdict(op) for op in facts.executed],
        "cpu": {"name": this_machine().cpu, "flags": this_machine().flags},
        "reconstruction": log["reconstruction"],
        "search": log.get("search"),
    }
    result = Deployment(
        target=target.name,
        runtime=runtime,
        version=facts.version,
        precision=FLOAT if floats else job.options.precision,
        artifact=f"artifacts/{path.name}",
        bytes=size(path),
        score=score_report(deployed, simulated, job.source),
        agreement=None if floats else agreement_report(agreement),
        latency_ms=latency_report(candidate or reference),
        float_latency_ms=latency_report(reference),
        speedup=speedup_report(reference, candidate, job.options.seed),
        peak_memory_mib=round(max(peak, facts.peak_memory_mib), 1),
        fallback_ops=() if floats else fallbacks(target, log["verdicts"], facts.executed),
        seconds={"convert": converted, "evaluate": round(evaluated, 3)},
        qdq=f"artifacts/{qdq.name}",
    )
    file = f"details/{target.name}.json"
    predictions = kept(job.source.task, target.name, deployed)
    return asdict(result), {file: json.dumps(details).encode(), **predictions}


def _timed(job: Job, target: Target, path: Path) -> tuple[dict[str, Latency], RemoteFacts]:
    """Latencies of "float" and "quantized", of "float" alone where `path` is that, none of an
    emulator; and what the engine ran.
    """
    assert target.runtime is not None
    if target.emulated:
        options = job.session(1, job.source.scoring_batch(1))
        with open_session(target.runtime, path, options) as session:
            executed = tuple(session.executed())
            return {}, RemoteFacts(session.version, session.peak_memory_mib(), executed)
    with job.show.step(f"time {target.name}"):
        feeds = _one_batch(job.source, job.images.evaluation)
        paths = {"float": float_file(job, target.runtime), "quantized": path}
        if path == paths["float"]:
            del paths["quantized"]
        return time_in_turns(job, target.runtime, paths, feeds)


def simulation(
    job: Job, made: Quantized, artifact: str, exports: Mapping[str, bytes]
) -> tuple[Json, dict[str, bytes]]:
    """The Deployment, as JSON, of a target that no engine here runs, and the file of its
    predictions: its score is simulated.

    `exports` are the files for its toolchain, the first of which is the `artifact`.
    """
    target, source, dataset = made.target, job.source, job.images.evaluation
    start = time.perf_counter()
    module = made.simulate()
    subset = dataset.subset(range(min(job.options.simulate, len(dataset))))
    batch = source.scoring_batch(min(AGREEMENT_BATCH, len(subset)))
    with job.show.step(f"simulate {target.name}", len(subset)) as advance:
        result = tasks.evaluate(
            source.task,
            lambda feeds: {name: y.numpy() for name, y in module(feeds).items()},
            subset,
            source.card,
            batch,
            source.input_name,
            advance,
        )
    made_of = Deployment(
        target=target.name,
        runtime=SIMULATED,
        version="",
        precision=job.options.precision,
        artifact=artifact,
        bytes=sum(map(len, exports.values())),
        score=ScoreReport(None, result.value, 0, result.n, None, dict(result.metrics)),
        seconds={"evaluate": round(time.perf_counter() - start, 3)},
        exports=tuple(exports),
    )
    return asdict(made_of), kept(source.task, target.name, result)


def _one_batch(source: Source, dataset: Dataset) -> dict[str, np.ndarray]:
    """The first image, as often as the model's batch wants it."""
    batch = source.scoring_batch(1)
    x = tasks.prepare(source.card)(dataset.sample(0).image)
    return {source.input_name: np.repeat(x[None], batch, axis=0)}
