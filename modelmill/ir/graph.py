"""The graph as a value: read it, walk it, and edit a clone of it.

A Graph is an `onnx_ir.Model`. Functions of this package never change the graph they are given, with
one exception marked as such: the editing section at the end works in place and is meant for a fresh
`clone`. After `load` every node and every value has a unique name (an absent optional output has
the name ""), nodes are in topological order, and constants are initializers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir
from onnx_ir.passes.common import ShapeInferencePass

Graph = onnx_ir.Model
Node = onnx_ir.Node
Value = onnx_ir.Value
Shape = tuple[int | str | None, ...]
Array = npt.NDArray[Any]


class ModelError(ValueError):
    """A model that cannot be used; the text says what is wrong, where, and what to do."""


@dataclass(frozen=True)
class ValueInfo:
    """Name, shape and element type of a value; a dimension is a number, a symbol or None."""

    name: str
    shape: Shape
    dtype: np.dtype[Any]


# ---------------------------------------------------------------- read


def inputs(graph: Graph) -> dict[str, ValueInfo]:
    """What the graph is fed with, in order."""
    return {value.name or "": _info(value) for value in graph.graph.inputs}


def outputs(graph: Graph) -> dict[str, ValueInfo]:
    """What the graph gives back, in order."""
    return {value.name or "": _info(value) for value in graph.graph.outputs}


def _info(value: Value) -> ValueInfo:
    dims, kind = shape(value), dtype(value)
    if dims is None or kind is None:
        what = "element type" if kind is None else "number of dimensions"
        raise ModelError(
            f"the {what} of graph input or output {value.name!r} is unknown. "
            "Export the model again with shapes (torch.onnx.export writes them)."
        )
    return ValueInfo(value.name or "", dims, kind)


def shape(value: Value) -> Shape | None:
    """Dimensions of a value (number, symbol or None); None when even their count is unknown."""
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def static_shape(value: Value) -> tuple[int, ...] | None:
    """Dimensions of a value if all of them are known numbers, else None."""
    dims = shape(value)
    if dims is None or not all(isinstance(dim, int) for dim in dims):
        return None
    return tuple(int(dim) for dim in dims if isinstance(dim, int))


def dtype(value: Value) -> np.dtype[Any] | None:
    """Element type of a value, None when unknown or not a tensor of numbers."""
    if value.dtype is None or value.dtype == onnx_ir.DataType.UNDEFINED:
        return None
    try:
        return np.dtype(value.dtype.numpy())
    except TypeError:
        return None


def nodes(graph: Graph) -> list[Node]:
    """The nodes in topological order; a list, so that the graph may be edited while walking it."""
    return list(graph.graph)


def values(graph: Graph) -> dict[str, Value]:
    """Every value by name: inputs, initializers, node outputs."""
    found: dict[str, Value] = {}
    for value in (*graph.graph.inputs, *graph.graph.initializers.values()):
        found[value.name or ""] = value
    for node in graph.graph:
        found.update({value.name: value for value in node.outputs if value.name})
    return found


def value(graph: Graph, name: str) -> Value:
    """The value with that name; ModelError with the nearest names if there is none."""
    found = values(graph)
    if name not in found:
        near = get_close_matches(name, found, n=3)
        hint = f" Nearest: {', '.join(near)}." if near else ""
        raise ModelError(f"the graph has no value {name!r}.{hint}")
    return found[name]


def constants(graph: Graph) -> dict[str, Array]:
    """The initializers; the arrays are read-only and share memory with the graph."""
    found: dict[str, Array] = {}
    for name, value in graph.graph.initializers.items():
        array = constant(value)
        if array is not None:
            found[name] = array
    return found


def constant(value: Value | None) -> Array | None:
    """The array of an initializer (read-only), None for a value computed at run time."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    array = np.asarray(value.const_value.numpy()).view()
    array.flags.writeable = False
    return array


def attributes(node: Node) -> dict[str, Any]:
    """Attributes as Python values: int, float, str, tuples of these, array, or onnx_ir.Graph.

    Only what the node spells out; the defaults of the standard are not filled in.
    """
    return {name: _plain(attr) for name, attr in node.attributes.items()}


def _plain(attr: onnx_ir.Attr) -> Any:
    kinds = onnx_ir.AttributeType
    if attr.type == kinds.TENSOR:
        return np.asarray(attr.as_tensor().numpy())
    if attr.type == kinds.TENSORS:
        return tuple(np.asarray(tensor.numpy()) for tensor in attr.as_tensors())
    if attr.type in (kinds.INTS, kinds.FLOATS, kinds.STRINGS):
        return tuple(attr.value)
    return attr.value


def used_once(value: Value) -> bool:
    """Whether exactly one node reads the value, once, and it is not an output of the graph."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def opset(graph: Graph) -> int:
    """Version of the default operator set."""
    return graph.opset_imports[""]


def to_bytes(graph: Graph) -> bytes:
    """The graph as an ONNX file; equal graphs give equal bytes."""
    proto = onnx_ir.serde.serialize_model(graph)
    try:
        return bytes(proto.SerializeToString(deterministic=True))
    except ValueError as error:  # protobuf's limit
        raise ModelError(f"the model does not fit in one ONNX file (2 GiB): {error}") from error


# ---------------------------------------------------------------- value in, new value out


def clone(graph: Graph) -> Graph:
    """A copy that may be edited; weights are shared, as they are never changed in place."""
    return graph.clone()


def infer_shapes(graph: Graph) -> Graph:
    """A clone with shapes and element types filled in as far as the standard's rules reach."""
    if _shapes_known(graph):
        return clone(graph)
    return _infer_shapes(graph)


def _shapes_known(graph: Graph) -> bool:
    """Whether inference has nothing to add: it is a hundred times slower than to look."""
    outputs = [value for node in graph.graph for value in node.outputs if value.name]
    return all(
        value.type is not None and value.shape is not None and None not in (shape(value) or ())
        for value in outputs
    )


def _infer_shapes(graph: Graph) -> Graph:
    result = ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(clone(graph))
    return result.model


def is_batch_dynamic(graph: Graph) -> bool:
    """Whether the first dimension of some input is open."""
    return any(dims.shape and not isinstance(dims.shape[0], int) for dims in inputs(graph).values())


def with_batch(graph: Graph, batch: int) -> Graph:
    """A clone whose open batch dimension is `batch`, with all shapes worked out again.

    Raises ModelError if the batch is already fixed to another number: constants inside the graph
    may depend on it, so only a new export can change it.
    """
    if batch < 1:
        raise ModelError(f"batch must be at least 1, not {batch}")
    fixed = clone(graph)
    symbols: set[str] = set()
    for value in fixed.graph.inputs:
        dims = _info(value).shape
        if not dims or dims[0] == batch:
            continue
        if isinstance(dims[0], int):
            raise ModelError(
                f"input {value.name!r} has the fixed batch {dims[0]}, {batch} was asked for. "
                "Export the model again with a dynamic batch dimension."
            )
        if dims[0] is not None:
            symbols.add(dims[0])
        value.shape = onnx_ir.Shape([batch, *dims[1:]])
    bindings = dict.fromkeys(symbols, batch)
    for value in (*fixed.graph.inputs, *fixed.graph.outputs, *values(fixed).values()):
        if value.shape is not None and not value.is_initializer():
            value.shape = value.shape.evaluate(bindings)
    return _infer_shapes(fixed)


def expose(graph: Graph, names: Iterable[str]) -> Graph:
    """A clone that also gives back the values of these names; an output is not repeated."""
    shown = clone(graph)
    for name in names:
        found = value(shown, name)
        if found not in shown.graph.outputs:
            shown.graph.outputs.append(found)
    return shown


# ---------------------------------------------------------------- editing in place: give it a clone


def fresh_name(graph: Graph, stem: str) -> str:
    """`stem` if no node and no value has this name, else `stem_1`, `stem_2`, ..."""
    taken = set(values(graph)) | {node.name or "" for node in graph.graph}
    candidate, count = stem, 0
    while candidate in taken:
        count += 1
        candidate = f"{stem}_{count}"
    return candidate


def add_constant(graph: Graph, stem: str, array: Array) -> Value:
    """Add an initializer, named `stem` or near it."""
    name = fresh_name(graph, stem)
    tensor = onnx_ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    added = onnx_ir.Value(
        name=name,
        shape=onnx_ir.Shape(array.shape),
        type=onnx_ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.graph.register_initializer(added)
    return added


def set_constant(graph: Graph, node: Node, index: int, array: Array, stem: str = "") -> None:
    """Give a node a constant as input `index`.

    A constant that only this node uses is replaced under its own name; otherwise a new one is
    added, named after the old one or `stem`.
    """
    old = node.inputs[index] if index < len(node.inputs) else None
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    new = add_constant(graph, (old.name if old is not None else "") or stem, array)
    node.replace_input_with(index, new)
    if old is not None and old.is_initializer() and not old.uses() and not old.is_graph_output():
        name = old.name or ""
        del graph.graph.initializers[name]
        new.name = name


def add_node(
    graph: Graph,
    op_type: str,
    inputs: Sequence[Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    before: Node,
    stem: str = "",
) -> Value:
    """Insert a one-output node before another one; the node and its output are named after `stem`.

    The output takes the element type of the first input; its shape is unknown until `infer_shapes`.
    """
    name = fresh_name(graph, stem or f"{before.name}_{op_type}")
    node = onnx_ir.node(op_type, inputs, attributes, name=name)
    graph.graph.insert_before(before, node)
    made = node.outputs[0]
    made.name = fresh_name(graph, f"{name}_output")
    if inputs and inputs[0] is not None:
        made.type = inputs[0].type
    return made


def set_attribute(node: Node, name: str, content: Any) -> None:
    """Set one attribute of a node to a Python value, or remove it with None."""
    if content is None:
        node.attributes.pop(name, None)
    else:
        node.attributes.add(onnx_ir.convenience.convert_attribute(name, content))


def set_shape(value: Value, dims: Sequence[int | str | None]) -> None:
    """Say that a value has this shape; a dimension is a number, a symbol or None."""
    value.shape = onnx_ir.Shape(dims)


def redirect(graph: Graph, old: Value, new: Value) -> bool:
    """Let every consumer of `old`, and the graph's output if it is one, use `new` instead.

    An output keeps its name: `new` takes it over. Where it cannot (it is a graph input, a constant,
    or an output itself), nothing changes and the answer is False.
    """
    if not old.is_graph_output():
        old.replace_all_uses_with(new)
        return True
    if new.producer() is None or new.is_graph_output():
        return False
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = fresh_name(graph, f"{name}_before")
    new.name = name
    if new.shape is None:
        new.shape = old.shape
    return True


def prune(graph: Graph) -> None:
    """Remove nodes that nothing uses, then constants that nothing uses."""
    for node in reversed(graph.graph):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.graph.remove(node, safe=True)
    for name, value in list(graph.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.graph.initializers[name]
