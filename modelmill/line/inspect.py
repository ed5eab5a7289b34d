"""What is in a model: interface, operators, parameters, multiply-accumulates. Nothing is run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelmill import ir
from modelmill.ir import NodeCost
from modelmill.tasks import Card

Model = str | Path | ir.Graph


@dataclass(frozen=True)
class Tensor:
    """An input or output; a free dimension is a name or None."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str


@dataclass(frozen=True)
class Inspection:
    """Facts of a graph for batch 1.

    macs: None where a shape is unknown. ops: how many nodes of each kind. quantized: values that
    are stored as integer codes, 0 in a float model.
    """

    name: str
    opset: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    params: int
    macs: int | None
    ops: dict[str, int]
    nodes: tuple[NodeCost, ...]
    quantized: int
    fingerprint: str

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def inspect(model: Model, card: str | Path | Card | None = None) -> Inspection:
    """Look into a model.

    Args:
        model: an ONNX file, `package.module:factory[@weights]`, a .pt2 file, or a graph.
        card: needed for a PyTorch network alone, which has no shapes of its own.

    Raises:
        ValueError: no such model, damaged, or not what it claims to be.
    """
    graph = open_graph(model, card)
    fixed = ir.with_batch(graph, 1) if ir.is_batch_dynamic(graph) else graph
    facts = ir.statistics(fixed)
    return Inspection(
        name=label(model),
        opset=ir.opset(graph),
        inputs=_tensors(ir.inputs(graph)),
        outputs=_tensors(ir.outputs(graph)),
        params=facts.params,
        macs=facts.macs,
        ops=facts.ops,
        nodes=facts.nodes,
        quantized=facts.ops.get("QuantizeLinear", 0) + facts.ops.get("DynamicQuantizeLinear", 0),
        fingerprint=ir.fingerprint(graph),
    )


def open_graph(model: Model, card: str | Path | Card | None) -> ir.Graph:
    """The graph of a model; only a PyTorch network needs a card for it, having no shapes itself.

    Raises:
        ValueError: see `inspect`.
    """
    if isinstance(model, ir.Graph):
        return model
    if is_pytorch(model):
        # loads torch, which an ONNX file does not need
        from modelmill.line.artifact import find_card

        return ir.from_torch(str(model), find_card(model, card).input.shape(1))
    return ir.load(model)


def label(model: Model) -> str:
    """A short name: the file's, the factory's, or the graph's own."""
    if isinstance(model, ir.Graph):
        return model.graph.name or "model"
    if is_pytorch(model) and not str(model).endswith(".pt2"):
        return str(model).partition("@")[0].replace(":", ".")
    return Path(model).stem


def is_pytorch(model: str | Path) -> bool:
    """Whether it names a PyTorch network: an exported program, or package.module:factory."""
    text = str(model)
    return text.endswith(".pt2") or (":" in text and not Path(text).exists())


def _tensors(values: dict[str, ir.ValueInfo]) -> tuple[Tensor, ...]:
    return tuple(Tensor(v.name, v.shape, str(v.dtype)) for v in values.values())
