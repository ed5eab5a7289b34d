"""AveragePool -> a depthwise Conv whose weights are all 1 / (window size).

    AveragePool(x_NCHW, k_h, k_w)  ->  Conv(x, w_C1HW = 1 / (k_h k_w), 0, group = C)

For engines that run depthwise convolutions on integers and average pools in float only. All weights
of a channel are equal, so that their 8-bit codes lose nothing; the sum is rounded once. Holds where
every window is divided by its whole size: padding counts, or there is none.
"""

from __future__ import annotations

import math

import numpy as np

from modelmill import ir

KEPT = ("kernel_shape", "pads", "strides")


def pool_as_convolution(graph: ir.Graph) -> ir.Graph:
    """A graph in which average pools of constant window size are depthwise convolutions."""
    made = ir.infer_shapes(graph)
    for node in ir.nodes(made):
        data = node.inputs[0] if node.op_type == "AveragePool" else None
        channels = (ir.shape(data) or (None, None))[1] if data is not None else None
        given = ir.attributes(node)
        if data is None or node.domain or not isinstance(channels, int) or not _divides(given):
            continue
        kernel = tuple(map(int, given["kernel_shape"]))
        w_C1HW = np.full((channels, 1, *kernel), 1 / math.prod(kernel), np.float32)
        stem = node.name or "pool"
        inputs = [
            data,
            ir.add_constant(made, f"{stem}_weight", w_C1HW),
            ir.add_constant(made, f"{stem}_bias", np.zeros(channels, np.float32)),
        ]
        attributes = {name: given[name] for name in KEPT if name in given}
        attributes["group"] = channels
        pooled = ir.add_node(made, "Conv", inputs, attributes, before=node, stem=f"{stem}_Conv")
        ir.redirect(made, node.outputs[0], pooled)
    ir.prune(made)
    return ir.infer_shapes(made)


def _divides(given: dict[str, object]) -> bool:
    """Whether every window is divided by the number of all its elements."""
    plain = given.get("auto_pad", "NOTSET") in ("NOTSET", "VALID") and not given.get("ceil_mode")
    pads, steps = given.get("pads", ()), given.get("dilations", ())
    assert isinstance(pads, tuple) and isinstance(steps, tuple)
    whole = bool(given.get("count_include_pad")) or not any(pads)
    return plain and whole and all(step == 1 for step in steps)
