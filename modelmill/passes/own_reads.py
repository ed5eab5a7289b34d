"""y = f(x) beside a convolution of x  ->  an Identity of x for the convolution, x for the rest.

Some engines quantize a tensor inside the convolution or matrix product that reads it, while an
addition or a depthwise convolution of the same tensor goes on with the real numbers. A plan speaks
of values, so what is quantized must be a value of its own: the Identity, which all the products of
one tensor share. Nothing changes where products alone read a tensor.
"""

from __future__ import annotations

from modelmill import ir

PRODUCTS = ("Conv", "Gemm", "MatMul")


def own_reads(graph: ir.Graph) -> ir.Graph:
    """A graph in which no value is read both by products with a constant weight (depthwise and
    grouped convolutions left out) and by something else.
    """
    made = ir.clone(graph)
    values = [v for v in ir.values(made).values() if not v.is_initializer()]
    for value in values:
        uses = list(value.uses())
        products = [use for use in uses if use.idx == 0 and _is_product(use.node)]
        if not products or (len(products) == len(uses) and not value.is_graph_output()):
            continue
        read = ir.add_node(
            made,
            "Identity",
            [value],
            before=min((use.node for use in products), key=ir.nodes(made).index),
            stem=f"{value.name}_read",
        )
        read.shape = value.shape
        for use in products:
            use.node.replace_input_with(0, read)
    return made


def _is_product(node: ir.Node) -> bool:
    weight = node.inputs[1] if node.op_type in PRODUCTS else None
    return ir.constant(weight) is not None and int(ir.attributes(node).get("group", 1)) == 1
