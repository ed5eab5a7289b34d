"""Empirical bias correction (Nagel et al. 2019, arXiv:1906.04721, section 4.2, with data).

Quantization shifts the mean of a layer's output per channel; the shift is measured and taken back
in the bias:

    b += E[y_float] - E[y_quantized]          per output channel

Layers are corrected in graph order, each seeing inputs that the corrected layers before it
produced. That needs no pass
per layer: the correction is applied to the layer's output on the fly while one batch runs through,
and the corrections of
all batches are averaged. Peak memory: one batch through two models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from modelmill import executor, ir
from modelmill.ir import Plan
from modelmill.quant.calibrate import encode_biases
from modelmill.quant.observe import Batches, decibels, take

LAYERS = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True)
class BiasCorrection:
    """The bias correction step. images: at most so many of the calibration images are used."""

    images: int = 32

    def __call__(self, graph: ir.Graph, plan: Plan, batches: Batches) -> tuple[ir.Graph, Plan]:
        """A graph with corrected biases, and the plan with their encodings; layers without a bias
        are left alone.
        """
        corrected = self.correct(graph, plan, batches)
        return corrected.graph, corrected.plan

    def correct(self, graph: ir.Graph, plan: Plan, batches: Batches) -> Corrected:
        """The same, with what the pass over the images told about the outputs."""
        layers = [n for n in ir.nodes(graph) if _correctable(n, plan)]
        outputs = {n.outputs[0].name or "": n for n in layers}
        shifts, sqnr_db = self._measure(graph, plan, batches, list(outputs))
        made = ir.clone(graph)
        by_name = {n.name: n for n in ir.nodes(made)}
        for output, layer in outputs.items():
            node = by_name[layer.name]
            array = ir.constant(node.inputs[2])
            assert array is not None
            ir.set_constant(made, node, 2, (array + shifts[output]).astype(np.float32))
        return Corrected(made, encode_biases(made, plan), sqnr_db)

    def _measure(
        self, graph: ir.Graph, plan: Plan, batches: Batches, layers: list[str]
    ) -> tuple[dict[str, np.ndarray], float]:
        """Mean of y_float - y_quantized per channel for each layer's output, float64, shape
        (channels,), and the SQNR of the corrected model's outputs in dB.
        """
        float_module, module = executor.Module(graph), executor.Module(graph, plan)
        sums = {name: torch.zeros(1, dtype=torch.float64) for name in layers}
        ends = [v.name or "" for v in graph.graph.outputs]
        visited = [*layers, *(name for name in ends if name not in sums)]
        means: dict[str, torch.Tensor] = {}
        reference: dict[str, torch.Tensor] = {}
        energy = {"signal": 0.0, "noise": 0.0}
        seen = 0

        def remember(name: str, y: torch.Tensor) -> None:
            if name in sums:
                means[name] = _channel_mean(y)
            if name in ends and y.is_floating_point():
                reference[name] = y.clone()

        def correct(name: str, y: torch.Tensor) -> torch.Tensor:
            if name in sums:
                shift = means[name] - _channel_mean(y)
                sums[name] = sums[name] + shift * len(y)
                y = y + shift.to(y.dtype).reshape(1, -1, *[1] * (y.dim() - 2))
            if name in reference:
                x = reference[name]
                energy["signal"] += float(x.double().square().sum())
                energy["noise"] += float((x - y).double().square().sum())
            return y

        with torch.inference_mode():
            for feeds in take(graph, batches, self.images):
                float_module.visit(feeds, visited, remember)
                module.visit(feeds, visited, correct)
                seen += len(next(iter(feeds.values())))
        shifts = {name: (total / max(seen, 1)).numpy() for name, total in sums.items()}
        return shifts, decibels(energy["signal"], energy["noise"])


@dataclass(frozen=True)
class Corrected:
    """A corrected graph and plan, and the SQNR in dB of the outputs on the images used."""

    graph: ir.Graph
    plan: Plan
    sqnr_db: float


def _correctable(node: ir.Node, plan: Plan) -> bool:
    if node.op_type not in LAYERS or ir.attributes(node).get("beta", 1.0) != 1.0:
        return False
    weight = node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or plan.at(weight.name or "", node.name or "", 1) is None:
        return False
    array = ir.constant(bias)
    return (
        bias is not None and array is not None and array.ndim == 1 and len(list(bias.uses())) == 1
    )


def _channel_mean(y: torch.Tensor) -> torch.Tensor:
    """In float64, so that the order in which threads add does not reach the bias."""
    return y.mean(dim=[d for d in range(y.dim()) if d != 1], dtype=torch.float64)


PLUGIN = BiasCorrection
