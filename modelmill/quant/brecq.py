"""BRECQ: AdaRound's choice for all layers of a block together, judged at the block's output.

    min over v   E || F^(1/2) (z - z~) ||^2          z, z~: output of the block, float and quantized

Errors inside a residual block may cancel, and what matters to the network is what leaves the block:
the second-order error of the task is nearly block-diagonal (Li et al. 2021, arXiv:2102.05426,
equations 8 to 10). F is the diagonal Fisher information of the output, or 1. While roundings are
learned, activations are float; their steps are learned afterwards, as in LSQ (section 3.4 there).
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
class Brecq:
    """The BRECQ step. iterations: per block, of `batch` images; steps: further ones for the steps
    of activations. fisher: weight errors by the squared gradient of the network's outputs. tune:
    iterations, at the end, in which the whole network is learned together (not in the paper; 0 for
    none).
    """

    iterations: int = 150
    steps: int = 50
    batch: int = 32
    fisher: bool = False
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
            drop=1.0,
            fisher=self.fisher,
            afterwards=self.steps,
            tune=self.tune,
            seed=self.seed,
        )
        return reconstruct(graph, plan, batches, partition, settings, workplace)


PLUGIN = Brecq
