"""Compute at once what does not depend on the input.

    f(constants)                       ->  constant        unless the result is much larger
    Shape(x), known dimensions         ->  constant
    Gather | Slice(Shape(x)), the      ->  constant
      picked dimensions known
    Reshape(x, computed at run time)   ->  Reshape(x, constant with at most one -1)
      all but one output dimension known

The last two are what exporters write for `x.view(x.shape[0], -1)` with a dynamic batch. Quantized
constants (DequantizeLinear) stay as they are: engines look for them.
"""

import numpy as np

from modelmill import ir

KEPT = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}
    | {"RandomUniformLike"}
)
LARGEST_GROWTH_BYTES = 1 << 16


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
    """The outputs of Shape, or of Gather or Slice on a Shape, as far as they are plain numbers."""
    if node.op_type == "Shape":
        return _numbers(_dimensions(node))
    source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if source is None or source.op_type != "Shape" or node.op_type not in ("Gather", "Slice"):
        return None
    dims = _dimensions(source)
    constants = [ir.constant(value) for value in node.inputs[1:]]
    if dims is None or not constants or any(array is None for array in constants):
        return None
    numbers = [array for array in constants if array is not None]
    if node.op_type == "Gather":
        # The index array gives the shape of the result: a scalar index, a scalar.
        picked = [dims[int(i)] for i in numbers[0].flat if -len(dims) <= i < len(dims)]
        return _numbers(picked, numbers[0].shape) if len(picked) == numbers[0].size else None
    if len(node.inputs) > 4 and numbers[-1].item() < 0:
        return None
    start, stop = int(numbers[0].item()), int(numbers[1].item())
    step = int(numbers[-1].item()) if len(node.inputs) > 4 else 1
    return _numbers(dims[start:stop:step])


def _dimensions(node: ir.Node) -> list[int | str | None] | None:
    """What a Shape node gives, its start and end attributes applied."""
    dims = ir.shape(node.inputs[0]) if node.inputs[0] is not None else None
    if dims is None:
        return None
    limits = ir.attributes(node)
    return list(dims)[limits.get("start", 0) : limits.get("end", len(dims))]


def _numbers(
    dims: list[int | str | None] | None, shape: tuple[int, ...] | None = None
) -> list[ir.Array] | None:
    known = [dim for dim in dims if isinstance(dim, int)] if dims is not None else []
    if dims is None or len(known) < len(dims):
        return None
    return [np.array(known, np.int64).reshape((len(known),) if shape is None else shape)]


def _replace(graph: ir.Graph, node: ir.Node, results: list[ir.Array]) -> None:
    for value, array in zip((v for v in node.outputs if v.name), results, strict=True):
        if value.uses() and not value.is_graph_output():
            ir.redirect(graph, value, ir.add_constant(graph, f"{value.name}_folded", array))


def _fix_target(graph: ir.Graph, node: ir.Node) -> None:
    """Give a Reshape whose target is computed at run time a constant target where it is known."""
    dims = ir.shape(node.outputs[0])
    if dims is None or ir.constant(node.inputs[1]) is not None or 0 in dims:
        return
    target = [dim if isinstance(dim, int) else -1 for dim in dims]
    if target.count(-1) <= 1:
        ir.set_constant(graph, node, 1, np.array(target, np.int64), f"{node.name}_shape")
