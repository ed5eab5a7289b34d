"""Remove nodes that move data without changing it, and join two that undo or continue each other.

Identity, Dropout, Concat(x), Cast to its own type, Clip without limits     ->  x
Pad by nothing, Slice of everything, Transpose in order                     ->  x
Reshape, Flatten, Squeeze, Unsqueeze, Expand to the shape that x has        ->  x
Transpose(Transpose(x, p), q)                                               ->  Transpose(x, p[q])
Reshape(Reshape | Flatten | Squeeze | Unsqueeze(x), s)                      ->  Reshape(x, s)
Slice(Slice(x, axes a), axes b), a and b apart                              ->  Slice(x, axes a + b)
"""

from typing import Any

import numpy as np

from modelmill import ir

RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


def eliminate_identities(graph: ir.Graph) -> ir.Graph:
    """identity(x) -> x, and pairs of moves -> one move. Keeps every bit."""
    lean = ir.infer_shapes(graph)
    for node in ir.nodes(lean):
        if node.domain or not node.inputs or node.inputs[0] is None:
            continue
        _join(lean, node)
        if _changes_nothing(node):
            ir.redirect(lean, node.outputs[0], node.inputs[0])
    ir.prune(lean)
    return lean


def _changes_nothing(node: ir.Node) -> bool:
    attributes = ir.attributes(node)
    match node.op_type:
        case "Identity":
            return True
        case "Dropout":
            training = _constant(node, 2)
            off = len(node.inputs) < 3 or node.inputs[2] is None
            off = off or (training is not None and not training.any())
            return off and not any(mask.uses() for mask in node.outputs[1:])
        case "Concat":
            return len(node.inputs) == 1
        case "Cast":
            kind = _type(node.inputs[0])
            return kind is not None and kind == _type(node.outputs[0])
        case "Clip":
            return all(value is None for value in node.inputs[1:])
        case "Pad":
            pads = _constant(node, 1)
            return pads is not None and not pads.any()
        case "Transpose":
            perm = attributes.get("perm")
            return perm is not None and list(perm) == sorted(perm)
        case "Slice":
            return _takes_everything(node)
        case "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Expand":
            return _same_shape(node)
    return False


def _constant(node: ir.Node, index: int) -> ir.Array | None:
    return ir.constant(node.inputs[index]) if index < len(node.inputs) else None


def _type(value: ir.Value | None) -> np.dtype[Any] | None:
    return None if value is None else ir.dtype(value)


def _same_shape(node: ir.Node) -> bool:
    """All dimensions equal, of which one at most may be open: the element count fixes it."""
    before = ir.shape(node.inputs[0]) if node.inputs[0] is not None else None
    after = ir.shape(node.outputs[0])
    if before is None or after is None or len(before) != len(after) or 0 in before:
        return False
    differing = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    opened = [dim for dim in before if not isinstance(dim, int)]
    if node.op_type == "Expand" and opened:
        return False  # Expand changes the element count
    return len(opened) <= 1 and all(
        not isinstance(old, int) and not isinstance(new, int) for old, new in differing
    )


# ---------------------------------------------------------------- Slice


def _slice_parts(node: ir.Node) -> tuple[list[int], list[int], list[int], list[int]] | None:
    """Starts, ends, axes (counted from 0) and steps of a Slice, if they are constants."""
    starts, ends = _constant(node, 1), _constant(node, 2)
    dims = ir.shape(node.inputs[0]) if node.inputs[0] is not None else None
    if starts is None or ends is None or dims is None:
        return None
    axes, steps = list(range(starts.size)), [1] * starts.size
    for index, target in ((3, axes), (4, steps)):
        if index < len(node.inputs) and node.inputs[index] is not None:
            array = _constant(node, index)
            if array is None:
                return None
            target[:] = array.tolist()
    axes[:] = [axis % len(dims) for axis in axes]
    return starts.tolist(), ends.tolist(), axes, steps


def _takes_everything(node: ir.Node) -> bool:
    parts = _slice_parts(node)
    dims = ir.shape(node.inputs[0]) if node.inputs[0] is not None else None
    if parts is None or dims is None:
        return False
    largest = np.iinfo(np.int32).max  # exporters write this, or the int64 one, for "to the end"
    return all(
        start == 0
        and step == 1
        and (end >= largest or (isinstance(dims[axis], int) and end >= int(dims[axis] or 0)))
        for start, end, axis, step in zip(*parts, strict=True)
    )


# ---------------------------------------------------------------- pairs


def _join(graph: ir.Graph, node: ir.Node) -> None:
    """Let a node read past its predecessor where the two are one move."""
    data = node.inputs[0]
    before = data.producer() if data is not None else None
    if data is None or before is None or before.domain or before.inputs[0] is None:
        return
    if node.op_type == before.op_type == "Transpose":
        _join_transposes(before, node)
    elif node.op_type == "Reshape" and before.op_type in RESHAPES:
        target = _constant(node, 1)
        if target is not None and 0 not in target:  # a 0 copies a dimension of what is read
            node.replace_input_with(0, before.inputs[0])
    elif node.op_type == before.op_type == "Slice" and ir.used_once(data):
        _join_slices(graph, before, node)


def _join_transposes(before: ir.Node, node: ir.Node) -> None:
    first, second = (ir.attributes(n).get("perm") for n in (before, node))
    if first is not None and second is not None:
        ir.set_attribute(node, "perm", [first[axis] for axis in second])
        node.replace_input_with(0, before.inputs[0])


def _join_slices(graph: ir.Graph, before: ir.Node, node: ir.Node) -> None:
    first, second = _slice_parts(before), _slice_parts(node)
    if first is None or second is None or set(first[2]) & set(second[2]):
        return
    names = ("starts", "ends", "axes", "steps")
    for index, (name, one, other) in enumerate(zip(names, first, second, strict=True)):
        array = np.array(one + other, np.int64)
        # A fresh constant for each: shapes of the old ones may be shared by other Slices.
        added = ir.add_constant(graph, f"{node.name}_{name}", array)
        if index + 1 >= len(node.inputs):
            node.resize_inputs(index + 2)
        node.replace_input_with(index + 1, added)
    node.replace_input_with(0, before.inputs[0])
