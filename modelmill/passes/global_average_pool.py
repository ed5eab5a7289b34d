"""ReduceMean over height and width -> GlobalAveragePool, followed by Flatten where the dims go.

    ReduceMean(x_NCHW, axes=2,3, keepdims=1)  ->  GlobalAveragePool(x)
    ReduceMean(x_NCHW, axes=2,3, keepdims=0)  ->  Flatten(GlobalAveragePool(x), axis=1)

Exporters write the average pooling at the end of a network as ReduceMean, for which engines have no
integer kernel; for GlobalAveragePool they have. The sum may be taken in another order.
"""

from __future__ import annotations

import numpy as np

from modelmill import ir

SPATIAL = {2, 3}


def global_average_pool(graph: ir.Graph) -> ir.Graph:
    """A graph in which spatial means of pictures are GlobalAveragePool."""
    made = ir.infer_shapes(graph)
    for node in ir.nodes(made):
        data = node.inputs[0] if node.op_type == "ReduceMean" else None
        if data is None or ir.dtype(data) != np.float32 or _axes(node) != SPATIAL:
            continue
        if len(ir.shape(data) or ()) != 4:
            continue
        pooled = ir.add_node(made, "GlobalAveragePool", [data], before=node)
        if not ir.attributes(node).get("keepdims", 1):
            pooled = ir.add_node(made, "Flatten", [pooled], {"axis": 1}, before=node)
        ir.redirect(made, node.outputs[0], pooled)
    ir.prune(made)
    return ir.infer_shapes(made)


def _axes(node: ir.Node) -> set[int]:
    """The axes of a rank-4 reduction, an attribute before opset 18 and an input since."""
    listed = ir.attributes(node).get("axes")
    if listed is None and len(node.inputs) > 1:
        listed = ir.constant(node.inputs[1])
    return set() if listed is None else {int(axis) % 4 for axis in listed}
