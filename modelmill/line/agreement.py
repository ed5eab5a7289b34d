"""Is the simulated number the deployed number? Codes of the simulation against codes of the engine,
element by element.

The artifact is given to the engine once more with every quantized tensor as an extra output; both
sides then run the same batches. Differences are counted per tensor in graph order: the first tensor
that differs is where the two part. One code that differs early makes others differ later, so where
there are differences a second count is taken: each layer is simulated on the engine's own codes.
What differs then is the layer's own arithmetic; the rest was handed down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from modelmill import ir
from modelmill.executor.integer import IntegerModule
from modelmill.executor.kernels import QUANTIZE
from modelmill.runtimes import EngineError, RemoteSession

OWN_IMAGES = 200  # the second count looks at no more than this


@dataclass
class Count:
    """Elements compared, elements with another code, largest difference in codes."""

    elements: int = 0
    mismatched: int = 0
    max_codes: int = 0

    def add(self, simulated: np.ndarray, deployed: np.ndarray) -> None:
        difference = np.abs(deployed.astype(np.int32) - simulated)
        self.elements += difference.size
        self.mismatched += int(np.count_nonzero(difference))
        self.max_codes = max(self.max_codes, int(difference.max(initial=0)))

    def merge(self, other: Count) -> None:
        self.elements += other.elements
        self.mismatched += other.mismatched
        self.max_codes = max(self.max_codes, other.max_codes)


@dataclass
class TensorAgreement:
    """One tensor: all differences, and those that arise there on the engine's own inputs."""

    value: str
    node: str
    op: str
    whole: Count = field(default_factory=Count)
    own: Count = field(default_factory=Count)


@dataclass
class Agreement:
    """The comparison in the making. `codes` maps a value of the float graph to the value that holds
    its codes in the artifact. tensors are in graph order; output_difference is the largest on a
    float output.
    """

    module: IntegerModule
    session: RemoteSession
    codes: Mapping[str, str]
    tensors: dict[str, TensorAgreement] = field(default_factory=dict)
    output_difference: float = 0.0
    images: int = 0
    own_images: int = 0

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run both sides on a batch, count, and give back the simulation's outputs.

        Raises:
            DeploymentError: the engine fails, or gives a tensor another shape than ONNX says.
        """
        engine = self.session.run(dict(feeds))
        here = Count()

        def compare(name: str, simulated: torch.Tensor) -> None:
            if self.codes.get(name) in engine:
                deployed = self._deployed(name, engine)
                self._check_shape(name, deployed.shape, tuple(simulated.shape))
                count = Count()
                count.add(simulated.numpy(), deployed)
                here.merge(count)
                self._tensor(name).whole.merge(count)

        outputs = {name: y.numpy() for name, y in self.module(feeds, compare).items()}
        for name, y in outputs.items():
            if y.size and np.issubdtype(y.dtype, np.floating):
                difference = float(np.abs(y - engine[name]).max())
                self.output_difference = max(self.output_difference, difference)
        size = len(next(iter(feeds.values())))
        self.images += size
        if here.mismatched and self.own_images < OWN_IMAGES:
            self.module(feeds, lambda name, codes: self._compare_own(name, codes, engine))
            self.own_images += size
        return outputs

    def _deployed(self, name: str, engine: Mapping[str, np.ndarray]) -> np.ndarray:
        """The engine's codes of a value. Where it shows a tensor as floats, as engines do that
        quantize at the door of the next layer, they are quantized here as the engine does it.
        """
        found = engine[self.codes[name]]
        if found.dtype.kind != "f":
            return found
        encoding = self.module.encodings[ir.Point(name)]
        quantize = QUANTIZE[self.module.arithmetic.quantize]
        return quantize(torch.from_numpy(found.astype(np.float32)), encoding).codes.numpy()

    def _check_shape(self, name: str, engine: tuple[int, ...], ours: tuple[int, ...]) -> None:
        if engine != ours:
            raise EngineError(
                f"{self.session.runtime} gives {name!r} (node {self._tensor(name).node!r}) the "
                f"shape {engine}; by the ONNX standard it is {ours}. This is a fault of the "
                "engine: keep the node in float with --keep-float"
            )

    def _compare_own(
        self, name: str, simulated: torch.Tensor, engine: Mapping[str, np.ndarray]
    ) -> torch.Tensor | None:
        if self.codes.get(name) not in engine:
            return None
        deployed = self._deployed(name, engine)
        self._tensor(name).own.add(simulated.numpy(), deployed)
        return torch.from_numpy(deployed.astype(np.int32))

    def _tensor(self, name: str) -> TensorAgreement:
        if name not in self.tensors:
            producers = {o.name: n for n in self.module.nodes for o in n.outputs}
            node = producers.get(name)
            label = (node.name or "", node.op_type) if node is not None else (name, "input")
            self.tensors[name] = TensorAgreement(name, *label)
        return self.tensors[name]

    @property
    def whole(self) -> Count:
        """All tensors, from the input on."""
        total = Count()
        for tensor in self.tensors.values():
            total.merge(tensor.whole)
        return total

    @property
    def own(self) -> Count:
        """All tensors, each on the engine's own inputs; nothing compared where nothing differed."""
        total = Count()
        for tensor in self.tensors.values():
            total.merge(tensor.own)
        return total

    @property
    def first_divergence(self) -> str | None:
        """Name of the node whose output is the first to differ; None if nothing does."""
        return next((t.node for t in self.tensors.values() if t.whole.mismatched), None)


def exposed(artifact: ir.Graph) -> tuple[ir.Graph, dict[str, str]]:
    """The artifact with every quantized tensor as an output, and {float value: its codes}."""
    codes = ir.code_values(artifact)
    return ir.expose(artifact, codes.values()), codes
