"""pooling: whether a window that hangs over the edge counts (ceil_mode), and what its mean is over.

Caffe rounds the number of windows up, ONNX and PyTorch down unless told otherwise; converters have
dropped the flag. An average may count the padding or not. Applies where the rest of the network
stands the other size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from modelmill import ir
from modelmill.audit.noise import LeftOut, Noise, Offer, Option, Subject
from modelmill.audit.pipeline import Pipeline, Step

POOLS = ("MaxPool", "AveragePool", "LpPool")


def other_rounding(graph: ir.Graph) -> ir.Graph:
    """Every pool with a stride rounds its size the other way."""
    found = ir.clone(graph)
    for node in ir.nodes(found):
        held = ir.attributes(node)
        if node.op_type in POOLS and max(held.get("strides") or [1]) > 1:
            ir.set_attribute(node, "ceil_mode", 0 if held.get("ceil_mode") else 1)
            for output in node.outputs:
                output.shape = None
    return found


def other_count(graph: ir.Graph) -> ir.Graph:
    """Every padded average counts its padding if it did not, and the other way round."""
    found = ir.clone(graph)
    for node in ir.nodes(found):
        held = ir.attributes(node)
        if node.op_type == "AveragePool" and any(held.get("pads") or [0]):
            counted = held.get("count_include_pad", 0)
            ir.set_attribute(node, "count_include_pad", 0 if counted else 1)
    return found


def add_rewrite(pipeline: Pipeline, step: Step) -> Pipeline:
    """The pipeline with one more rewrite of the graph, after those it has."""
    return replace(pipeline, rewrites=(*pipeline.rewrites, step))


def fits(graph: ir.Graph, rewrite: Callable[[ir.Graph], ir.Graph]) -> str:
    """Why the rewritten graph cannot run, or gives outputs of other shapes; "" if it can."""
    import torch

    from modelmill import executor

    feeds = {
        name: np.zeros([d if isinstance(d, int) else 1 for d in info.shape], np.float32)
        for name, info in ir.inputs(graph).items()
    }
    try:
        with torch.inference_mode():
            before = executor.Module(graph)(feeds)
            after = executor.Module(rewrite(graph))(feeds)
    except ValueError as error:
        return f"the rest of the network does not stand it: {str(error).splitlines()[0]}"
    for name, y in before.items():
        if y.shape != after[name].shape:
            return f"output {name!r} would be {tuple(after[name].shape)}, not {tuple(y.shape)}"
    return ""


def options(subject: Subject) -> Offer:
    held = [(n.op_type, ir.attributes(n)) for n in ir.nodes(subject.graph)]
    pools = [(op, a) for op, a in held if op in POOLS]
    if not pools:
        return [LeftOut("", "the network has no pooling with a window")]
    found: list[Option | LeftOut] = []
    strided = [a for _, a in pools if max(a.get("strides") or [1]) > 1]
    padded = [a for op, a in pools if op == "AveragePool" and any(a.get("pads") or [0])]
    other = "floor" if strided and strided[0].get("ceil_mode") else "ceil"
    for applies, name, words, rewrite, absent in (
        (strided, other, f"pools round their size by {other}", other_rounding,
         "no pool has a stride"),
        (padded, "padding-counts", "averages count padding the other way", other_count,
         "no average pool has padding"),
    ):  # fmt: skip
        why = fits(subject.graph, rewrite) if applies else absent
        if why:
            found.append(LeftOut(name, why))
        else:
            found.append(Option(name, words, partial(add_rewrite, step=Step(name, rewrite))))
    return found


PLUGIN = Noise("pooling", "operators", "ceil mode and padding of pools", options)
