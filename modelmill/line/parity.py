"""Float parity: the executor and an engine must compute the same before anything is quantized.

Two float32 implementations of a network differ by rounding that accumulates over layers: sums of K
products in another order differ by about sqrt(K) ulp, relative to the sum of magnitudes.
`TOLERANCE` bounds the difference relative to the largest
output: 1e-3 is a thousand times what convolution nets show and a tenth of one 8-bit step, so that a
wrong operator never passes and rounding never fails.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from modelmill import executor, ir, tasks
from modelmill.line.convert import float_file
from modelmill.line.job import Job
from modelmill.line.store import Json
from modelmill.runtimes import open_session

TOLERANCE = 1e-3
IMAGES = 8


def check_parity(job: Job, runtime: str) -> float:
    """Largest difference between executor and engine, relative to the largest output, on a few
    images.

    Raises:
        ValueError: they disagree, or an output is NaN; names the first value that does.
        DeploymentError: the engine does not run the float model.
    """

    def compute() -> tuple[Json, dict[str, bytes]]:
        feeds = _feeds(job)
        path = float_file(job, runtime)
        worst, node, op = _difference(job, runtime, path, feeds, list(ir.outputs(job.graph)))
        if worst > TOLERANCE:
            node, op = _first(job, runtime, feeds)
        return {"difference": worst, "node": node, "op": op}, {}

    result = job.store.step(f"parity-{runtime}", {**job.key, "runtime": runtime}, compute)
    difference = float(result["difference"])
    if difference > TOLERANCE:
        raise ValueError(
            f"the executor and {runtime} disagree on the float model: outputs differ by "
            f"{difference:.2g} of their range (allowed {TOLERANCE:g}), first at node "
            f"{result['node']!r} ({result['op']}). This is a fault of the executor or the engine, "
            "not of your data; please report the operator with its attributes"
        )
    return difference


def _feeds(job: Job) -> dict[str, np.ndarray]:
    """A few images, filled up with copies of the last where the model's batch is fixed."""
    source, dataset = job.source, job.images.evaluation
    batch = source.scoring_batch(min(IMAGES, len(dataset)))
    prepare = tasks.prepare(source.card)
    x = prepare.batch([dataset.sample(i).image for i in range(min(batch, len(dataset)))])
    return {source.input_name: np.concatenate([x, np.repeat(x[-1:], batch - len(x), axis=0)])}


def _first(job: Job, runtime: str, feeds: dict[str, np.ndarray]) -> tuple[str, str]:
    """The first node that the two compute differently: its name and operator."""
    outputs = [node.outputs[0] for node in ir.nodes(job.graph)]
    inner = [o.name or "" for o in outputs if ir.dtype(o) == np.float32]
    path = job.store.path("artifacts/.parity.onnx")
    ir.save(ir.expose(job.graph, inner), path)
    try:
        _, node, op = _difference(job, runtime, path, feeds, inner)
    finally:
        path.unlink(missing_ok=True)
    return node, op


def _difference(
    job: Job, runtime: str, path: Path, feeds: dict[str, np.ndarray], names: list[str]
) -> tuple[float, str, str]:
    """Largest relative difference over the named values, and the first node above the tolerance."""
    with open_session(runtime, path, job.session(job.threads, job.source.batch)) as session:
        engine = session.run(feeds)
    with torch.inference_mode():
        ours = {n: y.numpy() for n, y in executor.Module(job.graph)(feeds, names).items()}
    producers = {o.name: n for n in ir.nodes(job.graph) for o in n.outputs}
    worst, first = 0.0, ("", "")
    for name in names:
        reach = float(np.abs(engine[name]).max(initial=0.0))
        if not np.isfinite(engine[name]).all():
            raise ValueError(
                f"the float model gives NaN or infinity at {name!r} on {runtime}; check the card "
                "and the weights"
            )
        difference = float(np.abs(ours[name] - engine[name]).max(initial=0.0)) / max(reach, 1e-12)
        worst = max(worst, difference)
        if difference > TOLERANCE and not first[0] and name in producers:
            first = (producers[name].name or "", producers[name].op_type)
    return worst, *first
