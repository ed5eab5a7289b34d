"""What a graph costs to run, as one number, and the graph without its weights.

`structure` is a Merkle hash like `fingerprint`, of what a latency depends on: operators,
attributes, shapes, element types, and those constants that say how much is computed (the target of
a Reshape, the starts of a Slice, the limits of a Clip). Numbers in weights do not matter, nor do
names, the order of nodes, documentation, attributes that spell out the default of the standard, and
the version of an operator set that left the operator as it was. An open batch counts as 1: how many
images go through at once is told by the platform of a measurement.

A weight is a constant of real numbers, of integers of at most 8 bits, or one that DequantizeLinear
reads. So all ways to quantize a model with the same points have the same structure. Sparse weights
count as dense: the engines here compute their zeros as well.

`skeleton` is the ONNX file with the data of large weights left out; `from_skeleton` draws new ones.
"""

from __future__ import annotations

import zlib
from functools import cache
from math import prod

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir

from modelmill.ir.fingerprint import Hashes, array_hash, attribute_hash, digest
from modelmill.ir.graph import (
    Array,
    Graph,
    ModelError,
    constant,
    is_batch_dynamic,
    shape,
    with_batch,
)
from modelmill.ir.load import from_bytes

# Operators whose constants of real numbers say what is computed, and are no weights.
_SETTINGS = frozenset({"Clip", "Pad", "Pow", "Range", "Resize", "Upsample"})
_SCALED = frozenset({"DequantizeLinear", "QuantizeLinear"})
_SMALL = 16  # elements of a weight that a skeleton keeps
_MAGIC = b"modelmill skeleton 1\n"


def structure(graph: Graph) -> str:
    """SHA-256 of what the latency of `graph` depends on, as 64 hexadecimal digits."""
    return _body(graph.graph, {}, graph.opset_imports, 0).hex()


def skeleton(graph: Graph) -> bytes:
    """The graph without the data of large weights, a few kB; an open batch becomes 1."""
    fixed = with_batch(graph, 1) if is_batch_dynamic(graph) else graph
    proto = onnx.ModelProto.FromString(_bare(fixed))
    return _MAGIC + zlib.compress(proto.SerializeToString(deterministic=True), 9)


def from_skeleton(data: bytes) -> Graph:
    """The graph of a `skeleton` with weights drawn from a fixed seed; its structure is the same.

    Raises:
        ModelError: not the bytes of a skeleton.
    """
    proto = _unpacked(data)
    roles = _roles(proto.graph)
    for index, tensor in enumerate(proto.graph.initializer):
        if _is_bare(tensor):
            random = np.random.default_rng(index)
            array = _draw(tensor, *roles.get(tensor.name, ("", 1)), random)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return from_bytes(proto.SerializeToString())


def outline(data: bytes) -> Graph:
    """The graph of a `skeleton` as it is: all shapes, and no numbers in large weights. For counting
    only: it is quick, and can be neither run nor saved.

    Raises:
        ModelError: not the bytes of a skeleton.
    """
    proto = onnx.shape_inference.infer_shapes(_unpacked(data), data_prop=True)
    return onnx_ir.serde.deserialize_model(proto)


def _unpacked(data: bytes) -> onnx.ModelProto:
    if not data.startswith(_MAGIC):
        raise ModelError("not the skeleton of a model, or one of a newer modelmill")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(zlib.decompress(data[len(_MAGIC) :]))
    except Exception as error:  # zlib.error, and protobuf's own
        raise ModelError(f"the skeleton of a model is damaged: {error}") from error
    return proto


# ---------------------------------------------------------------- structure


def _body(graph: onnx_ir.Graph, outer: Hashes, versions: dict[str, int], depth: int) -> bytes:
    known = dict(outer)
    batch = {dims[0] for v in graph.inputs if (dims := shape(v)) and isinstance(dims[0], str)}
    symbols: dict[str, int] = {}  # names of the other open dimensions, by first appearance
    for index, value in enumerate(graph.inputs):
        spelled = []
        for axis, dim in enumerate(shape(value) or ()):
            if dim in batch or (dim is None and axis == 0):
                spelled.append("1")
            elif isinstance(dim, str):
                spelled.append(f"open {symbols.setdefault(dim, len(symbols))}")
            else:
                spelled.append(str(dim))
        known[value] = digest(["input", depth, index, str(value.type), *spelled])
    for node in graph:
        key = _node(node, known, versions, depth)
        for index, value in enumerate(node.outputs):
            known[value] = digest([key, index])
    results = (known[v] if v in known else _weight(v) for v in graph.outputs)
    return digest(["structure", len(graph.inputs), *results])


def _node(node: onnx_ir.Node, known: Hashes, versions: dict[str, int], depth: int) -> bytes:
    since, defaults = _schema(node.op_type, versions.get(node.domain, 0), node.domain)
    parts: list[bytes | str | int] = [node.domain, node.op_type, since]
    arguments = list(node.inputs)
    while arguments and arguments[-1] is None:
        arguments.pop()
    for value in arguments:
        if value is None:
            parts.append(b"")
        else:
            parts.append(known[value] if value in known else _constant(node, value))
    for name in sorted(node.attributes):
        attr = node.attributes[name]
        if attr.type == onnx_ir.AttributeType.GRAPH:
            content = _body(attr.as_graph(), known, versions, depth + 1)
        elif attr.type == onnx_ir.AttributeType.GRAPHS:
            content = digest(_body(g, known, versions, depth + 1) for g in attr.as_graphs())
        else:
            content = attribute_hash(attr)
            if content == defaults.get(name):
                continue
        parts += [name, content]
    return digest(parts)


@cache
def _schema(op: str, version: int, domain: str) -> tuple[int, dict[str, bytes]]:
    """(version that brought this form of the operator, hashes of the defaults of its attributes)"""
    if not onnx.defs.has(op, version, domain):
        return version, {}
    schema = onnx.defs.get_schema(op, version, domain)
    defaults = {
        name: attribute_hash(onnx_ir.serde.deserialize_attribute(attr.default_value))
        for name, attr in schema.attributes.items()
        if attr.default_value.name
    }
    return schema.since_version, defaults


def _constant(node: onnx_ir.Node, value: onnx_ir.Value) -> bytes:
    """A constant as this node reads it: by its numbers, or as a weight by its shape."""
    array = constant(value)
    if array is None:
        return digest(["unknown", str(value.type)])
    if node.op_type in _SCALED or (node.op_type not in _SETTINGS and _is_weight(array)):
        return _weight(value)
    return array_hash(array, value.dtype)


def _weight(value: onnx_ir.Value) -> bytes:
    return digest(["weight", str(value.dtype), str(shape(value))])


def _is_weight(array: Array) -> bool:
    return array.dtype.kind not in "biuSUO" or (array.dtype.itemsize == 1 and array.dtype != bool)


# ---------------------------------------------------------------- skeleton


def _bare(graph: Graph) -> bytes:
    """The file without the data of weights, intermediate shapes, documentation and metadata."""
    proto = onnx.ModelProto()
    proto.CopyFrom(onnx_ir.serde.serialize_model(graph))
    scaled = {name for n in proto.graph.node if n.op_type in _SCALED for name in n.input}
    settings = {name for n in proto.graph.node if n.op_type in _SETTINGS for name in n.input}
    for tensor in proto.graph.initializer:
        if prod(tensor.dims) <= _SMALL or tensor.name in settings:
            continue
        if tensor.name in scaled or _is_weight(np.zeros(0, _numpy_type(tensor))):
            bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            tensor.CopyFrom(bare)
    del proto.graph.value_info[:], proto.metadata_props[:], proto.graph.metadata_props[:]
    del proto.graph.quantization_annotation[:]
    for entry in (proto, proto.graph, *proto.graph.node):
        entry.ClearField("doc_string")
    for node in proto.graph.node:
        del node.metadata_props[:]
    return bytes(proto.SerializeToString())


def _numpy_type(tensor: onnx.TensorProto) -> np.dtype[np.generic]:
    return onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)


def _is_bare(tensor: onnx.TensorProto) -> bool:
    held = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    return prod(tensor.dims) > 0 and not any(
        len(getattr(tensor, f)) for f in (*held, "string_data")
    )


def _roles(graph: onnx.GraphProto) -> dict[str, tuple[str, int]]:
    """By name of a weight the operator that reads it, and as which input."""
    return {name: (n.op_type, i) for n in graph.node for i, name in enumerate(n.input) if name}


def _draw(tensor: onnx.TensorProto, op: str, index: int, random: np.random.Generator) -> Array:
    """Numbers that keep the size of what flows through: none overflows, none is denormal."""
    dims, kind = tuple(tensor.dims), _numpy_type(tensor)
    if kind.kind in "iu" and kind.itemsize in (1, 4) and op in _SCALED:
        span = 100 if kind.itemsize == 1 else 1000
        array: Array = random.integers(0 if kind.kind == "u" else -span, span, dims)
    elif op in _SCALED:
        array = random.uniform(0.01, 0.02, dims)
    elif op.endswith("Normalization") and index in (1, 4):  # scale, variance
        array = random.uniform(0.5, 1.5, dims)
    elif len(dims) < 2:
        array = 0.01 * random.standard_normal(dims)
    else:
        fan_in = prod(dims[1:]) if op in ("Conv", "ConvTranspose") else dims[-2]
        array = (2 / fan_in) ** 0.5 * random.standard_normal(dims)
    return array.astype(kind)
