"""AdaRound: choose for each weight whether to round it up or down, layer by layer.

    min over v   || W x - W~ x~ ||^2,      W~ = s * clip(floor(W / s) + h(v), n, p),   h in {0, 1}

x is the layer's input in the float network, x~ the input that the layers before it, already
quantized, hand it (Nagel et al. 2020, arXiv:2004.10568, equations 21 and 25). The best rounding of
a sum is not the sum of the best roundings: weights move away from the nearest code, outputs come
nearer. `rounding` says how h is learned here. Activations keep their calibrated steps and are
float while a layer learns; weight steps stay, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelmill import ir
from modelmill.ir import Plan
from modelmill.quant.blocks import by_layer
from modelmill.quant.learn import Settings
from modelmill.quant.observe import Batches
from modelmill.quant.reconstruct import (
    WORKPLACE,
    Reconstructed,
    Workplace,
    learned_layers,
    reconstruct,
)


@dataclass(frozen=True)
class AdaRound:
    """The AdaRound step. iterations: per layer, of `batch` images. seed: of the images drawn."""

    iterations: int = 150
    batch: int = 32
    seed: int = 0

    def __call__(self, graph: ir.Graph, plan: Plan, batches: Batches) -> tuple[ir.Graph, Plan]:
        """The graph with learned roundings, and its plan."""
        made = self.run(graph, plan, batches)
        return made.graph, made.plan

    def run(
        self, graph: ir.Graph, plan: Plan, batches: Batches, workplace: Workplace = WORKPLACE
    ) -> Reconstructed:
        """The same, with what became of each layer."""
        partition = by_layer(graph, learned_layers(graph, plan))
        settings = Settings(
            self.iterations,
            self.batch,
            weight_rate=0.0,
            drop=1.0,
            seed=self.seed,
        )
        return reconstruct(graph, plan, batches, partition, settings, workplace)


PLUGIN = AdaRound
