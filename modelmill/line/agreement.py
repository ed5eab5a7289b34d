"""Is the simulated number the deployed number? Codes of the simulation against codes of the engine,
element by element.

The artifact is given to the engine once more with every quantized tensor as an extra output; both
sides then run the same
batches. Differences are counted per tensor in graph order: the first tensor that differs is where
the two part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from modelmill import ir
from modelmill.executor.integer import IntegerModule
from modelmill.runtimes import RemoteSession


@dataclass
class TensorAgreement:
    """Counts of one tensor: elements compared, elements with another code, largest difference in
    codes.
    """

    value: str
    node: str
    op: str
    elements: int = 0
    mismatched: int = 0
    max_codes: int = 0


@dataclass
class Agreement:
    """The comparison in the making. tensors are in graph order; output_difference is the largest on
    a float output.
    """

    module: IntegerModule
    session: RemoteSession
    codes: Mapping[str, str]  # value of the float graph -> its codes in the artifact
    tensors: dict[str, TensorAgreement] = field(default_factory=dict)
    output_difference: float = 0.0
    images: int = 0

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run both sides on a batch, count, and give back the simulation's outputs."""
        engine = self.session.run(dict(feeds))
        producers = {o.name: n for n in self.module.nodes for o in n.outputs}

        def compare(name: str, simulated: torch.Tensor) -> None:
            if name not in self.codes or self.codes[name] not in engine:
                return
            node = producers.get(name)
            label = (node.name or "", node.op_type) if node is not None else (name, "input")
            seen = self.tensors.setdefault(name, TensorAgreement(name, *label))
            deployed = engine[self.codes[name]].astype(np.int32)
            difference = np.abs(deployed - simulated.numpy())
            seen.elements += difference.size
            seen.mismatched += int(np.count_nonzero(difference))
            seen.max_codes = max(seen.max_codes, int(difference.max(initial=0)))

        outputs = {name: y.numpy() for name, y in self.module(feeds, compare).items()}
        for name, y in outputs.items():
            if y.size and np.issubdtype(y.dtype, np.floating):
                self.output_difference = max(
                    self.output_difference, float(np.abs(y - engine[name]).max())
                )
        self.images += len(next(iter(feeds.values())))
        return outputs

    @property
    def elements(self) -> int:
        return sum(t.elements for t in self.tensors.values())

    @property
    def mismatched(self) -> int:
        return sum(t.mismatched for t in self.tensors.values())

    @property
    def max_codes(self) -> int:
        return max((t.max_codes for t in self.tensors.values()), default=0)

    @property
    def first_divergence(self) -> str | None:
        """Name of the node whose output is the first to differ; None if nothing does."""
        return next((t.node for t in self.tensors.values() if t.mismatched), None)


def exposed(artifact: ir.Graph) -> tuple[ir.Graph, dict[str, str]]:
    """The artifact with every quantized tensor as an output, and {float value: its codes}."""
    codes = ir.code_values(artifact)
    return ir.expose(artifact, codes.values()), codes
