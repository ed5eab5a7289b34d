"""activation: what accelerators compute where the network says softmax or sigmoid.

8-bit     outputs on 1/256, the fixed output scale of 8-bit runtimes
i-bert    exp(x) = 2^-z L(p), L(p) = 0.3585 (p + 1.353)^2 + 0.344, x = -z ln 2 + p
          (Kim et al., I-BERT, arXiv:2101.01321, section 3.4)
hard      clip(x / 6 + 1/2, 0, 1)
plan      four straight pieces with slopes 1/4, 1/8, 1/32, 0
          (Amin, Curtis and Hayes-Gill, IEE Proc. Circuits Devices Syst. 144(6), 1997)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from modelmill import ir
from modelmill.audit.noise import LeftOut, Noise, Offer, Option, Subject
from modelmill.audit.pipeline import Step
from modelmill.audit.pooling import add_rewrite, fits

OPSET = 13  # from here on softmax is over one axis, and sums take their axes as an input


class Writer:
    """Adds nodes before one node; numbers become constants."""

    def __init__(self, graph: ir.Graph, before: ir.Node) -> None:
        self.graph, self.before = graph, before

    def __call__(self, op: str, *inputs: ir.Value | float, axis: int | None = None) -> ir.Value:
        values = [i if isinstance(i, ir.Value) else self.constant(np.float32(i)) for i in inputs]
        held = {"axes": [axis], "keepdims": 1} if op == "ReduceMax" else {}
        if op == "ReduceSum":
            values.append(self.constant(np.array([axis], np.int64)))
        elif op == "ReduceMax" and ir.opset(self.graph) >= 18:
            values.append(self.constant(np.array([axis], np.int64)))
            held = {"keepdims": 1}
        return ir.add_node(self.graph, op, values, held, before=self.before)

    def constant(self, number: np.generic | np.ndarray) -> ir.Value:
        return ir.add_constant(self.graph, "approximation", np.asarray(number))


def eighths(write: Writer, node: ir.Node) -> ir.Value:
    """The exact function on 256 levels, at most 255/256."""
    exact = ir.add_node(write.graph, node.op_type, node.inputs, ir.attributes(node), before=node)
    codes = write("Min", write("Round", write("Mul", exact, 256.0)), 255.0)
    return write("Div", codes, 256.0)


def ibert(write: Writer, node: ir.Node) -> ir.Value:
    """Softmax with the polynomial exponential."""
    x, axis = node.inputs[0], _axis(node)
    assert x is not None
    x = write("Sub", x, write("ReduceMax", x, axis=axis))
    z = write("Floor", write("Div", x, -math.log(2)))
    p = write("Add", x, write("Mul", z, math.log(2)))
    shifted = write("Add", p, 1.353)
    poly = write("Add", write("Mul", write("Mul", shifted, shifted), 0.3585), 0.344)
    power = write("Div", poly, write("Pow", 2.0, z))
    return write("Div", power, write("ReduceSum", power, axis=axis))


def hard(write: Writer, node: ir.Node) -> ir.Value:
    """The piecewise linear sigmoid of mobile networks."""
    held = {"alpha": 1 / 6, "beta": 0.5}
    return ir.add_node(write.graph, "HardSigmoid", node.inputs, held, before=node)


def plan(write: Writer, node: ir.Node) -> ir.Value:
    """PLAN on |x|, mirrored: the concave function is the least of its pieces."""
    x = node.inputs[0]
    assert x is not None
    size = write("Abs", x)
    pieces = [write("Add", write("Mul", size, a), b)
              for a, b in ((0.25, 0.5), (0.125, 0.625), (0.03125, 0.84375))]  # fmt: skip
    right = write("Min", *pieces, 1.0)
    side = write("Sign", x)  # f(x) = 1/2 + sign(x) (f(|x|) - 1/2)
    return write("Add", write("Mul", side, write("Sub", right, 0.5)), 0.5)


def _axis(node: ir.Node) -> int:
    return int(ir.attributes(node).get("axis", -1))


def approximate(graph: ir.Graph, op: str, by: Callable[[Writer, ir.Node], ir.Value]) -> ir.Graph:
    """Every `op` replaced by what `by` writes before it."""
    found = ir.at_opset(ir.clone(graph), max(ir.opset(graph), OPSET))
    for node in [n for n in ir.nodes(found) if n.op_type == op]:
        made = by(Writer(found, node), node)
        ir.redirect(found, node.outputs[0], made)
    ir.prune(found)
    return found


WAYS: tuple[tuple[str, str, Callable[[Writer, ir.Node], ir.Value], str], ...] = (
    ("softmax-8-bit", "Softmax", eighths, "softmax on 1/256"),
    ("softmax-i-bert", "Softmax", ibert, "softmax with I-BERT's polynomial"),
    ("sigmoid-8-bit", "Sigmoid", eighths, "sigmoid on 1/256"),
    ("sigmoid-hard", "Sigmoid", hard, "hard sigmoid"),
    ("sigmoid-plan", "Sigmoid", plan, "sigmoid of four straight pieces"),
)


def options(subject: Subject) -> Offer:
    there = {node.op_type for node in ir.nodes(subject.graph)}
    if not there & {"Softmax", "Sigmoid"}:
        return [LeftOut("", "the network has no softmax and no sigmoid")]
    found: list[Option | LeftOut] = []
    for name, op, by, words in WAYS:
        rewrite = partial(approximate, op=op, by=by)
        why = f"the network has no {op}" if op not in there else ""
        why = why or fits(subject.graph, rewrite)
        step = Step(name, rewrite)
        found.append(
            LeftOut(name, why) if why else Option(name, words, partial(add_rewrite, step=step))
        )
    return found


PLUGIN = Noise("activation", "operators", "approximations of softmax and sigmoid", options)
