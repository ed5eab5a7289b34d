"""A linear layer as one node.

    Add(MatMul(x, W), b)   ->  Gemm(x, W, b)        x of two dimensions, b one number or a row

Engines have an integer kernel for Gemm with a bias and none for a lone Add behind a MatMul.
"""

from modelmill import ir


def gemm_from_matmul_add(graph: ir.Graph) -> ir.Graph:
    """Add(MatMul(x, W), b) -> Gemm(x, W, b). Equal up to the order of one sum."""
    joined = ir.infer_shapes(graph)
    for node in ir.nodes(joined):
        if node.op_type != "Add" or node.domain:
            continue
        for product, bias in (tuple(node.inputs), tuple(reversed(node.inputs))):
            if product is not None and bias is not None and _fits(product, bias):
                _join(joined, node, product, bias)
                break
    ir.prune(joined)
    return joined


def _fits(product: ir.Value, bias: ir.Value) -> bool:
    source, array = product.producer(), ir.constant(bias)
    if source is None or source.op_type != "MatMul" or source.domain or not ir.used_once(product):
        return False
    x, weight = source.inputs
    columns = ir.constant(weight)
    dims = ir.shape(x) if x is not None else None
    if array is None or columns is None or dims is None or len(dims) != 2 or columns.ndim != 2:
        return False
    row = (columns.shape[1],)
    return array.shape in ((), (1,), (1, 1), row, (1, *row)) and array.dtype == columns.dtype


def _join(graph: ir.Graph, node: ir.Node, product: ir.Value, bias: ir.Value) -> None:
    source = product.producer()
    assert source is not None
    made = ir.add_node(
        graph, "Gemm", [*source.inputs, bias], before=node, stem=f"{source.name}_Gemm"
    )
    made.shape = node.outputs[0].shape
    ir.redirect(graph, node.outputs[0], made)
