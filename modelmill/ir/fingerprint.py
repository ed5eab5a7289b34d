"""What a graph computes, as one number: equal for equal structure, attributes, shapes and weights.

A Merkle hash over the dependency graph. A graph input is its position, element type and shape; a
weight is its element type, shape and bytes; a node output is the operator, its version, the sorted
attributes and the hashes of its inputs. The graph is the hashes of its outputs in order. So names,
the order of nodes, documentation and unused nodes do not matter, and everything else does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import onnx_ir

from modelmill.ir.graph import Array, Graph, shape

Hashes = dict[onnx_ir.Value, bytes]


def fingerprint(graph: Graph) -> str:
    """SHA-256 of what the graph computes, as 64 hexadecimal digits."""
    return _body(graph.graph, {}, graph.opset_imports, 0).hex()


def digest(parts: Iterable[bytes | str | int]) -> bytes:
    hasher = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        hasher.update(len(data).to_bytes(8, "little"))  # so that no two lists run together
        hasher.update(data)
    return hasher.digest()


def array_hash(array: Array, kind: object) -> bytes:
    return digest([str(kind), str(array.shape), np.ascontiguousarray(array).tobytes()])


def _tensor(tensor: onnx_ir.TensorProtocol) -> bytes:
    return array_hash(np.asarray(tensor.numpy()), tensor.dtype)


def _body(graph: onnx_ir.Graph, outer: Hashes, versions: dict[str, int], depth: int) -> bytes:
    """Hash of a graph, or of a subgraph that may use the values `outer` of the graphs around it."""
    known = dict(outer)
    symbols: dict[str, int] = {}  # names of open dimensions, numbered by first appearance
    for index, value in enumerate(graph.inputs):
        dims = shape(value)
        spelled = [
            str(dim)
            if isinstance(dim, int | None)
            else f"open {symbols.setdefault(dim, len(symbols))}"
            for dim in dims or ()
        ]
        known[value] = digest(["input", depth, index, str(value.type), str(dims is None), *spelled])
    for value in graph.initializers.values():
        if value.const_value is not None:
            known[value] = digest(["weight", _tensor(value.const_value)])
    for node in graph:
        key = _node(node, known, versions, depth)
        for index, value in enumerate(node.outputs):
            known[value] = digest([key, index])
    return digest(["graph", len(graph.inputs), *(known[value] for value in graph.outputs)])


def _node(node: onnx_ir.Node, known: Hashes, versions: dict[str, int], depth: int) -> bytes:
    parts: list[bytes | str | int] = [node.domain, node.op_type, versions.get(node.domain, 0)]
    arguments = list(node.inputs)
    while arguments and arguments[-1] is None:  # a trailing absent input says nothing
        arguments.pop()
    parts += [b"" if value is None else known[value] for value in arguments]
    for name in sorted(node.attributes):
        attr = node.attributes[name]
        if attr.type == onnx_ir.AttributeType.GRAPH:
            content = _body(attr.as_graph(), known, versions, depth + 1)
        elif attr.type == onnx_ir.AttributeType.GRAPHS:
            content = digest(_body(g, known, versions, depth + 1) for g in attr.as_graphs())
        else:
            content = attribute_hash(attr)
        parts += [name, content]
    return digest(parts)


def attribute_hash(attr: onnx_ir.Attr) -> bytes:
    kinds = onnx_ir.AttributeType
    if attr.type == kinds.TENSOR:
        return _tensor(attr.as_tensor())
    if attr.type == kinds.TENSORS:
        return digest(_tensor(tensor) for tensor in attr.as_tensors())
    if attr.type == kinds.FLOAT:  # as stored: two Python floats may be one float32
        return digest(["float", np.float32(attr.value).tobytes()])
    if attr.type == kinds.FLOATS:
        return digest(["floats", np.asarray(attr.value, np.float32).tobytes()])
    return digest([str(attr.type), repr(attr.value)])
