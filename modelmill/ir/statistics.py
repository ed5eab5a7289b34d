"""Size of a graph: parameters, multiply-accumulates, operators."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod

from modelmill.ir import graph as g


@dataclass(frozen=True)
class NodeCost:
    """One node: output shape (None where unknown), parameters it reads, multiply-accumulates (None
    where unknown).
    """

    name: str
    op: str
    shape: g.Shape | None
    params: int
    macs: int | None


@dataclass(frozen=True)
class Statistics:
    """macs counts Conv, ConvTranspose, Gemm and MatMul; None if a shape of one of them is
    unknown.
    """

    params: int
    macs: int | None
    ops: dict[str, int]
    nodes: tuple[NodeCost, ...]


def statistics(graph: g.Graph) -> Statistics:
    """Count what `graph` holds and does, for the shapes it states (fix the batch with `with_batch`
    first).
    """
    nodes = tuple(_cost(node) for node in g.nodes(graph))
    params = sum(int(a.size) for a in g.constants(graph).values() if a.dtype.kind == "f")
    unknown = any(cost.macs is None for cost in nodes)
    ops = Counter(cost.op for cost in nodes)
    return Statistics(
        params, None if unknown else sum(c.macs or 0 for c in nodes), dict(ops.most_common()), nodes
    )


def _cost(node: g.Node) -> NodeCost:
    arrays = [g.constant(v) for v in node.inputs]
    params = sum(int(a.size) for a in arrays if a is not None and a.dtype.kind == "f")
    return NodeCost(node.name or "", node.op_type, g.shape(node.outputs[0]), params, _macs(node))


def _macs(node: g.Node) -> int | None:
    """Products that one run of the node computes; biases and other ops count nothing, as is
    usual.
    """
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    shapes = [g.static_shape(v) if v is not None else None for v in node.inputs[:2]]
    output = g.static_shape(node.outputs[0])
    x, w = shapes[0], shapes[1]
    if x is None or w is None or output is None:
        return None
    if node.op_type == "Conv":  # every output element takes C/group * kernel products
        return prod(output) * prod(w[1:])
    if node.op_type == "ConvTranspose":  # every input element gives M/group * kernel products
        return prod(x) * prod(w[1:])
    if node.op_type == "Gemm":
        return prod(output) * (x[0] if g.attributes(node).get("transA", 0) else x[1])
    return prod(output) * x[-1]
