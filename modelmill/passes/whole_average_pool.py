"""AveragePool over the whole picture -> GlobalAveragePool.

    AveragePool(x_NCHW, kernel_shape = H, W, no padding)  ->  GlobalAveragePool(x)

The sum may be taken in another order. Engines whose integer pools keep the scale of their input
have a mean with a scale of its own: what is averaged over a whole picture spans a smaller range.
"""

from __future__ import annotations

from modelmill import ir

PLAIN = {"auto_pad": ("NOTSET", "VALID"), "ceil_mode": (0,), "pads": ((0, 0, 0, 0),)}


def whole_average_pool(graph: ir.Graph) -> ir.Graph:
    """A graph in which an average over whole pictures is a GlobalAveragePool."""
    made = ir.infer_shapes(graph)
    for node in ir.nodes(made):
        data = node.inputs[0] if node.op_type == "AveragePool" else None
        if data is None or node.domain:
            continue
        given = ir.attributes(node)
        plain = all(given.get(name, values[0]) in values for name, values in PLAIN.items())
        if plain and (ir.shape(data) or ())[2:] == tuple(given["kernel_shape"]):
            pooled = ir.add_node(made, "GlobalAveragePool", [data], before=node)
            ir.redirect(made, node.outputs[0], pooled)
    ir.prune(made)
    return ir.infer_shapes(made)
