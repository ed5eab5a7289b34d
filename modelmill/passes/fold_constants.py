"""Compute at once what does not depend on the input.

    f(constants)                       ->  constant        unless the result is much larger
    Shape(x), known dimensions         ->  constant        also behind Gather, Slice, Concat, ...
    Reshape(x, computed at run time)   ->  Reshape(x, constant)
      each open dimension of the target is one that x has at the same place (0), or all
      dimensions of the result but one are known (-1)

The last one is what exporters write for `x.view(x.shape[0], -1)` with a dynamic batch. Quantized
constants (DequantizeLinear) stay as they are: engines look for them.
"""

import numpy as np

from modelmill import ir

KEPT = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}
    | {"RandomUniformLike"}
)
MOVES = frozenset({"Gather", "Slice", "Concat", "Squeeze", "Unsqueeze", "Cast", "Identity"})
LARGEST_GROWTH_BYTES = 1 << 16

Dims = list[int | str | None]


def fold_constants(graph: ir.Graph) -> ir.Graph:
    """f(constants) -> constant; computed shapes -> constant shapes. Exact."""
    folded = ir.infer_shapes(graph)
    for node in ir.nodes(folded):
        if node.domain or node.op_type in KEPT | RANDOM:
            continue
        results = _known_dimensions(node) or _computed(folded, node)
        if results is not None:
            _replace(folded, node, results)
        elif node.op_type == "Reshape":
            _fix_target(folded, node)
    ir.prune(folded)
    return folded


def _computed(graph: ir.Graph, node: ir.Node) -> list[ir.Array] | None:
    """The outputs of a node with constant inputs only, if they do not take much more space."""
    if not node.inputs and node.op_type != "Constant":
        return None
    expected = [ir.static_shape(value) for value in node.outputs if value.name]
    given = [array.nbytes for array in map(ir.constant, node.inputs) if array is not None]
    room = sum(given) + LARGEST_GROWTH_BYTES
    if any(dims is not None and np.prod(dims, dtype=np.int64) > room for dims in expected):
        return None  # too large by its element count: not even computed
    results = ir.evaluate(graph, node)
    if results is None or sum(array.nbytes for array in results) > room:
        return None
    return results


def _known_dimensions(node: ir.Node) -> list[ir.Array] | None:
    """The output of a node that picks and joins dimensions, if they are plain numbers."""
    if node.op_type not in MOVES and node.op_type != "Shape":
        return None
    dims, shape = _dimensions(node.outputs[0]), ir.static_shape(node.outputs[0])
    if dims is None or shape is None or not all(isinstance(dim, int) for dim in dims):
        return None
    return [np.array(dims, np.int64).reshape(shape)]


def _dimensions(value: ir.Value | None) -> Dims | None:
    """The numbers a shape computation gives, symbols for open ones; None if it is unclear."""
    array = ir.constant(value)
    if array is not None:
        flat = array.dtype == np.int64 and array.ndim <= 1
        return [int(n) for n in array.ravel()] if flat else None
    node = value.producer() if value is not None else None
    if value is None or node is None or node.domain or ir.dtype(value) != np.int64:
        return None
    if len(ir.shape(value) or ()) > 1:
        return None
    if node.op_type == "Shape":
        dims = ir.shape(node.inputs[0]) if node.inputs[0] is not None else None
        limits = ir.attributes(node)
        return None if dims is None else list(dims)[limits.get("start", 0) : limits.get("end")]
    if node.op_type == "Concat":
        parts = [_dimensions(part) for part in node.inputs]
        known = [part for part in parts if part is not None]
        return [dim for part in known for dim in part] if len(known) == len(parts) else None
    if node.op_type not in MOVES:
        return None
    source = _dimensions(node.inputs[0])
    return _picked(node, source) if source is not None else None


def _picked(node: ir.Node, source: Dims) -> Dims | None:
    """What Gather or Slice take of a list; the other moves keep all of it."""
    if node.op_type not in ("Gather", "Slice"):
        return source
    constants = [ir.constant(value) for value in node.inputs[1:]]
    numbers = [[int(n) for n in array.ravel()] for array in constants if array is not None]
    if len(numbers) < len(constants):
        return None
    if node.op_type == "Gather":
        inside = all(-len(source) <= i < len(source) for i in numbers[0])
        return [source[i] for i in numbers[0]] if inside else None
    step = numbers[3][0] if len(numbers) > 3 else 1
    return source[numbers[0][0] : numbers[1][0] : step] if step > 0 else None


def _replace(graph: ir.Graph, node: ir.Node, results: list[ir.Array]) -> None:
    for value, array in zip((v for v in node.outputs if v.name), results, strict=True):
        if value.uses() and not value.is_graph_output():
            ir.redirect(graph, value, ir.add_constant(graph, f"{value.name}_folded", array))


def _fix_target(graph: ir.Graph, node: ir.Node) -> None:
    """Give a Reshape whose target is computed at run time a constant target where it is known."""
    data, wanted = node.inputs[0], node.inputs[1]
    before, after = ir.shape(data) if data is not None else None, ir.shape(node.outputs[0])
    if ir.constant(wanted) is not None or ir.attributes(node).get("allowzero", 0):
        return
    target: list[int] | None = None
    if after is not None and 0 not in after and sum(not isinstance(dim, int) for dim in after) <= 1:
        target = [dim if isinstance(dim, int) else -1 for dim in after]
    else:
        dims = _dimensions(wanted)
        if dims is not None and before is not None:
            here = [*before, *[None] * len(dims)]  # what a 0 would copy
            copied = [
                0 if isinstance(dim, str) and dim == own else dim
                for dim, own in zip(dims, here, strict=False)
            ]
            numbers = [dim for dim in copied if isinstance(dim, int)]
            target = numbers if len(numbers) == len(copied) else None
    if target is not None:
        ir.set_constant(graph, node, 1, np.array(target, np.int64), f"{node.name}_shape")
