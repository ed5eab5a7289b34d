"""QDrop: BRECQ's blocks, with activations quantized, at random, while the roundings are learned.

    x~ = x * (1 + u(x)),   u = 0 with probability p, else what quantization does to this element

Weights that are learned on float activations sit in a sharp minimum which the noise of quantized
activations leaves; learned under that noise, some of it dropped at random, they sit in a flat one
(Wei et al. 2022, arXiv:2203.05740, equations 7 and 8). What the block reads is mixed likewise, of
the quantized and of the float path. Steps of weights and activations are learned along.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelmill import ir
from modelmill.ir import Plan
from modelmill.quant.blocks import blocks
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
class QDrop:
    """The QDrop step. iterations: per block, of `batch` images. drop: share of activation elements
    left in float, the paper's 1 - p; not used where all activations have 8 bits. tune: iterations,
    at the end, in which the whole network is learned together (not in the paper; 0 for none).
    """

    iterations: int = 150
    batch: int = 32
    drop: float = 0.5
    tune: int = 300
    seed: int = 0

    def __call__(self, graph: ir.Graph, plan: Plan, batches: Batches) -> tuple[ir.Graph, Plan]:
        """The graph with learned roundings, and the plan with learned steps."""
        made = self.run(graph, plan, batches)
        return made.graph, made.plan

    def run(
        self, graph: ir.Graph, plan: Plan, batches: Batches, workplace: Workplace = WORKPLACE
    ) -> Reconstructed:
        """The same, with what became of each block."""
        partition = blocks(graph, learned_layers(graph, plan))
        settings = Settings(
            self.iterations,
            self.batch,
            drop=self.drop,
            tune=self.tune,
            seed=self.seed,
        )
        return reconstruct(graph, plan, batches, partition, settings, workplace)


PLUGIN = QDrop
