"""Float parity: the executor and an engine must compute the same before anything is quantized.

Two float32 implementations of a network differ by rounding that accumulates over layers: sums of K
products in another order differ by about sqrt(K) ulp, relative to the sum of magnitudes.
`TOLERANCE` bounds the difference relative to the largest
output: 1e-3 is a thousand times what convolution nets show and a tenth of one 8-bit step, so that a
wrong operator never passes and rounding never fails.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from modelmill import executor, ir, tasks
from modelmill.line.deploy import Limits
from modelmill.line.source import Source
from modelmill.line.store import Json, Store
from modelmill.runtimes import SessionOptions, open_session
from modelmill.tasks import Dataset

TOLERANCE = 1e-3
IMAGES = 8


def check_parity(
    graph: ir.Graph,
    source: Source,
    dataset: Dataset,
    runtime: str,
    store: Store,
    key: Json,
    limits: Limits,
) -> float:
    """Largest difference between executor and engine, relative to the largest output, on a few
    images.

    Raises:
        ValueError: they disagree, or an output is NaN; names the first value that does.
        DeploymentError: the engine does not run the float model.
    """
    result = store.step(
        f"parity-{runtime}",
        {**key, "runtime": runtime},
        _compute(graph, source, dataset, runtime, store, limits),
    )
    difference = float(result["difference"])
    if difference > TOLERANCE:
        raise ValueError(
            f"the executor and {runtime} disagree on the float model: outputs differ by {difference:.2g} of their range "
            f"(allowed {TOLERANCE:g}), first at node {result['node']!r} ({result['op']}). This is a fault of the executor "
            f"or the engine, not of your data; please report the operator with its attributes"
        )
    return difference


def _compute(
    graph: ir.Graph, source: Source, dataset: Dataset, runtime: str, store: Store, limits: Limits
) -> Callable[[], tuple[Json, dict[str, bytes]]]:
    def compute() -> tuple[Json, dict[str, bytes]]:
        batch = source.scoring_batch(min(IMAGES, len(dataset)))
        feeds = next(
            iter(
                tasks.batches(
                    dataset,
                    range(min(batch, len(dataset))),
                    tasks.prepare(source.card),
                    batch,
                    source.input_name,
                )
            )
        )
        x = feeds[source.input_name]
        if len(x) < batch:
            feeds = {
                source.input_name: np.concatenate([x, np.repeat(x[-1:], batch - len(x), axis=0)])
            }
        names = list(ir.outputs(graph))
        worst, node, op = _difference(graph, feeds, names, runtime, store, limits, source)
        if worst > TOLERANCE:
            inner = [
                n.outputs[0].name or ""
                for n in ir.nodes(graph)
                if ir.dtype(n.outputs[0]) == np.float32
            ]
            _, node, op = _difference(graph, feeds, inner, runtime, store, limits, source)
        return {"difference": worst, "node": node, "op": op}, {}

    return compute


def _difference(
    graph: ir.Graph,
    feeds: dict[str, np.ndarray],
    names: list[str],
    runtime: str,
    store: Store,
    limits: Limits,
    source: Source,
) -> tuple[float, str, str]:
    """Largest relative difference over the named values, and the first node above the tolerance."""
    path = store.path("artifacts/.parity.onnx")
    ir.save(ir.expose(graph, names), path)
    options = SessionOptions(limits.threads, limits.timeout_s, batch=source.batch)
    try:
        with open_session(runtime, path, options) as session:
            engine = session.run(feeds)
    finally:
        path.unlink(missing_ok=True)
    with torch.inference_mode():
        ours = {n: y.numpy() for n, y in executor.Module(graph)(feeds, names).items()}
    producers = {o.name: n for n in ir.nodes(graph) for o in n.outputs}
    worst, first = 0.0, ("", "")
    for name in names:
        reach = float(np.abs(engine[name]).max(initial=0.0))
        if not np.isfinite(engine[name]).all():
            raise ValueError(
                f"the float model gives NaN or infinity at {name!r} on {runtime}; check the card and the weights"
            )
        difference = float(np.abs(ours[name] - engine[name]).max(initial=0.0)) / max(reach, 1e-12)
        worst = max(worst, difference)
        if difference > TOLERANCE and not first[0] and name in producers:
            first = (producers[name].name or "", producers[name].op_type)
    return worst, *first
