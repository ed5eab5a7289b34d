"""Let a convolution or an average pool pad by itself.

    Conv(Pad(x, 0, n))                                          ->  Conv(x, pads + n)
    AveragePool(Pad(x, 0, n), every window counts all its cells) ->  AveragePool(x, pads n,
                                                                      count_include_pad)

Exact: both read zeros outside of x. A max pool reads minus infinity there, so its Pad stays.
"""

import numpy as np

from modelmill import ir


def fuse_pad(graph: ir.Graph) -> ir.Graph:
    """Conv | AveragePool(Pad(x)) -> Conv | AveragePool(x) with larger pads. Exact."""
    fused = ir.infer_shapes(graph)
    for node in ir.nodes(fused):
        data = node.inputs[0] if node.inputs else None
        pad = data.producer() if data is not None else None
        if node.op_type not in ("Conv", "AveragePool") or pad is None or node.domain:
            continue
        extra = _spatial_zeros(pad)
        pads = ir.attributes(node).get("pads")
        pads = list(pads) if pads else [0] * len(extra or ())
        if extra is None:
            continue
        total = [own + more for own, more in zip(pads, extra, strict=True)]
        if not _can_take(node, pads, total):
            continue
        ir.set_attribute(node, "pads", total)
        if node.op_type == "AveragePool":
            ir.set_attribute(node, "count_include_pad", 1)
        node.replace_input_with(0, pad.inputs[0])
    ir.prune(fused)
    return fused


def _spatial_zeros(pad: ir.Node) -> list[int] | None:
    """Begins then ends of the spatial padding, if the node pads with zeros there and only there."""
    if (
        pad.op_type != "Pad"
        or pad.domain
        or ir.attributes(pad).get("mode", "constant") != "constant"
    ):
        return None
    pads = ir.constant(pad.inputs[1])
    fill = pad.inputs[2] if len(pad.inputs) > 2 else None
    dims = ir.shape(pad.inputs[0]) if pad.inputs[0] is not None else None
    if pads is None or dims is None or (pads < 0).any():
        return None
    number = ir.constant(fill)
    if fill is not None and (number is None or number.any()):
        return None
    full = np.zeros((2, len(dims)), np.int64)
    chosen = pad.inputs[3] if len(pad.inputs) > 3 else None
    axes = np.arange(len(dims)) if chosen is None else ir.constant(chosen)
    if axes is None:
        return None
    full[:, axes] = pads.reshape(2, -1)
    return None if full[:, :2].any() else [int(n) for n in full[:, 2:].ravel()]


def _can_take(node: ir.Node, pads: list[int], total: list[int]) -> bool:
    attributes = ir.attributes(node)
    if attributes.get("auto_pad", "NOTSET") != "NOTSET":
        return False
    if node.op_type == "Conv":
        return True
    # What the pool pads by itself is not counted unless it says so; mixing the two cannot be said.
    counted = bool(attributes.get("count_include_pad", 0)) or not any(pads)
    kernel = list(attributes["kernel_shape"]) * 2
    inside = all(pad < size for pad, size in zip(total, kernel, strict=True))  # engines ask for it
    return counted and inside and not attributes.get("ceil_mode", 0)
