"""Keep the few layers in float that would spoil the whole: mixed int8 / float, only where it is
needed.

The noise of quantization at the model's output is nearly additive over layers, so one number per
layer tells who spoils it: the SQNR of the outputs when that layer alone is quantized. If the fully
quantized model is below `threshold_db`, layers are kept in float, worst first, until it is not, or
until they hold `max_share` of the multiply-accumulates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from modelmill import executor, ir
from modelmill.ir import Plan, Point
from modelmill.quant.observe import decibels, take

HARMLESS_DB = 10.0  # so far above the threshold a layer adds a tenth of the allowed noise


@dataclass(frozen=True)
class Protected:
    """A layer kept in float: its name, and the SQNR (dB) of the outputs when it alone is
    quantized.
    """

    node: str
    sqnr_db: float


@dataclass(frozen=True)
class Protect:
    """threshold_db: wanted SQNR of the outputs. max_share: of the MACs that may stay in float.
    images: that are looked at.
    """

    threshold_db: float = 24.0
    max_share: float = 0.25
    images: int = 16

    def choose(
        self, graph: ir.Graph, plan: Plan, layers: Sequence[str], feeds: Mapping[str, np.ndarray]
    ) -> tuple[Protected, ...]:
        """The layers to keep in float; none if the model is good enough as it is.

        Args:
            graph: float graph.
            plan: with encodings.
            layers: names of the nodes to choose from, those with weights.
            feeds: one batch; its first `images` are used unless the graph has a fixed batch.
        """
        few = next(take(graph, [feeds], self.images))
        with torch.inference_mode():
            reference = executor.Module(graph)(few)
        if output_sqnr(graph, plan, few, reference) >= self.threshold_db:
            return ()
        reads = {
            n.name or "": _points(n, plan, layers) for n in ir.nodes(graph) if n.name in layers
        }
        ranked = [
            Protected(
                name, output_sqnr(graph, plan.without(set(plan) - reads[name]), few, reference)
            )
            for name in layers
            if reads[name]
        ]
        ranked.sort(key=lambda p: p.sqnr_db)
        return self._take(graph, plan, ranked, reads, few, reference)

    def _take(
        self,
        graph: ir.Graph,
        plan: Plan,
        ranked: Sequence[Protected],
        reads: Mapping[str, set[Point]],
        feeds: Mapping[str, np.ndarray],
        reference: Mapping[str, torch.Tensor],
    ) -> tuple[Protected, ...]:
        costs = {c.name: c.macs or 0 for c in ir.statistics(_at_batch(graph, feeds)).nodes}
        budget = self.max_share * max(sum(costs.values()), 1)
        taken: list[Protected] = []
        for candidate in ranked:
            if candidate.sqnr_db > self.threshold_db + HARMLESS_DB:
                break
            cost = costs.get(candidate.node, 0)
            if cost > budget:
                continue
            budget -= cost
            taken.append(candidate)
            kept = {t.node for t in taken}
            still = set().union(*(points for name, points in reads.items() if name not in kept))
            gone = set().union(*(reads[name] for name in kept)) - still
            if output_sqnr(graph, plan.without(gone), feeds, reference) >= self.threshold_db:
                break
        return tuple(taken)


def output_sqnr(
    graph: ir.Graph,
    plan: Plan,
    feeds: Mapping[str, np.ndarray],
    reference: Mapping[str, torch.Tensor],
) -> float:
    """SQNR in dB over all float outputs of the fake-quantized model, against `reference`."""
    with torch.inference_mode():
        outputs = executor.Module(graph, plan)(feeds)
    signal = noise = 0.0
    for name, y in reference.items():
        if y.is_floating_point():
            signal += float(y.double().square().sum())
            noise += float((y - outputs[name]).double().square().sum())
    return decibels(signal, noise)


def _points(node: ir.Node, plan: Plan, layers: Sequence[str]) -> set[Point]:
    """The points whose noise is this node's: what it reads, and what it writes where no other layer
    reads that.
    """
    found = set()
    for index, value in enumerate(node.inputs):
        if value is not None:
            own, whole = Point(value.name or "", node.name or "", index), Point(value.name or "")
            found |= {own} if own in plan else {whole} if whole in plan else set()
    output = node.outputs[0]
    if node.name in layers and not any(use.node.name in layers for use in output.uses()):
        found |= {Point(output.name or "")} & set(plan)
    return found


def _at_batch(graph: ir.Graph, feeds: Mapping[str, np.ndarray]) -> ir.Graph:
    return (
        ir.with_batch(graph, len(next(iter(feeds.values()))))
        if ir.is_batch_dynamic(graph)
        else graph
    )
