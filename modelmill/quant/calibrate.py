"""Calibration: give every point of a plan its numbers.

Activations take their range from streamed statistics (`observe`, `ranges`); weights from their own
values, per output channel; int32 biases follow from both: s_bias = s_x * s_w, zero point 0, so that
a bias adds to the accumulator as it is. Narrower biases, as some chips hold them, are calibrated
like weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from modelmill import ir
from modelmill.ir import Plan, Point
from modelmill.numerics import Encoding, QuantSpec, choose_encoding
from modelmill.quant.observe import Batches, Statistics, merge, observe
from modelmill.quant.ranges import choose_range

WEIGHT_SHRINK = np.linspace(1.0, 0.8, 11)  # below 0.8 no 8-bit or 7-bit weight tensor gains
FEW_BITS = 6  # from here on down each end of the range is sought, and further in
FEW_BITS_SHRINK = np.linspace(1.0, 0.3, 71)
PAIRED_SHRINK = np.linspace(1.0, 0.3, 15)  # where each end has its own
POWERS_OF_TWO = np.array([1.0, 0.5, 0.25])  # the exponent that covers a weight, and two below
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # their second input, if constant, is a weight
BIAS_BITS = 32


@dataclass(frozen=True)
class Calibrate:
    """The calibration step.

    activations: minmax, percentile, mse or kl. before_leaky: the same, for tensors that only a
    LeakyReLU reads, whose negative side deserves fewer codes. weights: minmax or mse, per channel.
    """

    activations: str = "percentile"
    before_leaky: str = "mse"
    weights: str = "mse"

    def __call__(self, graph: ir.Graph, plan: Plan, batches: Batches) -> tuple[ir.Graph, Plan]:
        """The same graph, and the plan with an encoding at every point."""
        return graph, encode(
            graph, plan, observe(graph, activation_names(graph, plan), batches), self
        )


def activation_names(graph: ir.Graph, plan: Plan) -> list[str]:
    """The values of the plan that only calibration data can tell the range of.

    Of a tie only the value that the others come from: they hold no element that it does not hold,
    but zeros.
    """
    group_of = {p.value: number for number, group in enumerate(plan.ties) for p in group}
    moved = {
        output.name
        for node in ir.nodes(graph)
        for value in node.inputs[:1]
        for output in node.outputs
        if value is not None
        and output.name in group_of
        and group_of.get(value.name or "") == group_of[output.name]
    }
    constants = graph.graph.initializers
    return sorted({p.value for p in plan if p.value not in constants and p.value not in moved})


def encode(
    graph: ir.Graph, plan: Plan, statistics: Mapping[str, Statistics], options: Calibrate
) -> Plan:
    """Encodings for all points of `plan`; points in one tie get one encoding."""
    tied = {point: group for group in plan.ties for point in group}
    constants = ir.constants(graph)
    numbers: dict[Point, QuantSpec | Encoding] = {}
    biases: list[Point] = []
    leaky = leaky_weights(graph)
    weights = weight_names(graph)
    for point in plan:
        spec = plan.spec(point)
        if spec.bits == BIAS_BITS:
            biases.append(point)
        elif point.value in constants and (
            point.value in weights or _is_weight(spec, constants[point.value])
        ):
            numbers[point] = weight_encoding(constants[point.value], spec, options.weights)
        elif point not in numbers:
            group = [p for p in tied.get(point, (point,)) if p in plan]
            known = [p.value for p in group if p.value in statistics or p.value in constants]
            seen = [_statistics(name, statistics, constants) for name in known]
            negative_weight = max(leaky.get(p.value, 1.0) for p in group)
            method = options.before_leaky if negative_weight < 1 else options.activations
            limits = choose_range(method, merge(seen), spec, negative_weight)
            encoding = choose_encoding(spec, *limits)
            numbers.update(dict.fromkeys(group, encoding))
    encoded = plan.replace(numbers)
    return encode_biases(graph, encoded, biases)


def leaky_weights(graph: ir.Graph) -> dict[str, float]:
    """Values that only a LeakyReLU reads: the square of its slope, by which errors below 0 matter
    less.
    """
    found = {}
    for node in ir.nodes(graph):
        value = node.inputs[0] if node.op_type == "LeakyRelu" else None
        if value is not None and len(list(value.uses())) == 1 and not value.is_graph_output():
            found[value.name or ""] = min(float(ir.attributes(node).get("alpha", 0.01)) ** 2, 1.0)
    return found


def weight_names(graph: ir.Graph) -> frozenset[str]:
    """Constants that a layer reads as its weight."""
    constants = graph.graph.initializers
    read = (n.inputs[1] for n in ir.nodes(graph) if n.op_type in LAYERS)
    return frozenset(v.name or "" for v in read if v is not None and v.name in constants)


def _is_weight(spec: QuantSpec, array: np.ndarray) -> bool:
    return spec.axis is not None or spec.symmetric or array.ndim == 0


def _statistics(
    name: str, statistics: Mapping[str, Statistics], constants: Mapping[str, np.ndarray]
) -> Statistics:
    if name in constants:  # a constant operand of Add or Mul: its range is known
        low, high = float(constants[name].min()), float(constants[name].max())
        return Statistics(
            low, high, (min(low, 0.0), max(high, 0.0)), np.zeros(len(_any(statistics).counts)), 0.0
        )
    return statistics[name]


def _any(statistics: Mapping[str, Statistics]) -> Statistics:
    return next(iter(statistics.values()))


def weight_encoding(weight: np.ndarray, spec: QuantSpec, method: str) -> Encoding:
    """The encoding of a weight: full range, or per channel the shrunk range with the smallest
    squared error.

    Args:
        weight: float, any shape that has `spec.axis`.
        spec: symmetric or not, per tensor or per channel.
        method: "minmax" or "mse".

    Raises:
        ValueError: unknown method.
    """
    if method not in ("minmax", "mse"):
        raise ValueError(f"unknown weight calibration {method!r}. Choices: minmax, mse")
    rows = (
        weight.reshape(1, -1)
        if spec.axis is None
        else np.moveaxis(weight, spec.axis, 0).reshape(weight.shape[spec.axis], -1)
    )
    low, high = rows.min(axis=1), rows.max(axis=1)
    if method == "mse":
        ends = _best_ends if spec.bits <= FEW_BITS else _best_share
        low_share, high_share = ends(rows, low, high, spec)
        low, high = low * low_share, high * high_share
    if spec.axis is None:
        return choose_encoding(spec, low[0], high[0])
    return choose_encoding(spec, low, high)


def _best_share(
    rows: np.ndarray, low: np.ndarray, high: np.ndarray, spec: QuantSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Per row the share of its range with the smallest squared error, the largest at a tie; the
    same for both ends.
    """
    share = np.ones(len(rows))
    if spec.logarithmic:  # the same relative precision at any range
        return share, share
    best = np.full(len(rows), np.inf)
    for a in POWERS_OF_TWO if spec.power_of_two else WEIGHT_SHRINK:
        errors = _squared_errors(rows, choose_encoding(replace(spec, axis=0), low * a, high * a))
        better = errors < best
        best[better], share[better] = errors[better], a
    return share, share


def _best_ends(
    rows: np.ndarray, low: np.ndarray, high: np.ndarray, spec: QuantSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Per row the shares of its two ends with the smallest squared error; one share where the
    format is symmetric.
    """
    shares = FEW_BITS_SHRINK if spec.symmetric else PAIRED_SHRINK
    shares = POWERS_OF_TWO if spec.power_of_two else shares
    pairs = [(a, a) for a in shares] if spec.symmetric else [(a, b) for a in shares for b in shares]
    best, found = np.full(len(rows), np.inf), np.ones((2, len(rows)))
    for a, b in pairs:
        errors = _squared_errors(rows, choose_encoding(replace(spec, axis=0), low * a, high * b))
        better = errors < best
        best[better], found[0, better], found[1, better] = errors[better], a, b
    return found[0], found[1]


def _squared_errors(rows: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Squared error of each row under its encoding."""
    scale, zero_point = encoding.scale[:, None], encoding.zero_point[:, None]
    codes = np.rint(rows / scale)
    np.clip(codes, encoding.spec.qmin - zero_point, encoding.spec.qmax - zero_point, out=codes)
    codes *= scale
    codes -= rows
    return np.asarray(np.einsum("ij,ij->i", codes, codes))


def encode_biases(graph: ir.Graph, plan: Plan, points: list[Point] | None = None) -> Plan:
    """The plan with every int32 bias scaled by the product of its node's input and weight scales.

    Without `points` also narrower biases are calibrated again, as when their numbers changed.
    """
    if points is None:
        points = [p for p in plan if plan.spec(p).bits == BIAS_BITS]
        plan = _narrow_biases(graph, plan)
    wanted = set(points)
    found: dict[Point, QuantSpec | Encoding] = {}
    for node in ir.nodes(graph):
        if len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        name = node.name or ""
        value = node.inputs[2].name or ""
        point = next((p for p in (Point(value, name, 2), Point(value)) if p in wanted), None)
        data, weight = node.inputs[0], node.inputs[1]
        if point is None or data is None or weight is None:
            continue
        x, w = plan.at(data.name or "", name, 0), plan.at(weight.name or "", name, 1)
        assert isinstance(x, Encoding) and isinstance(w, Encoding)
        scale = (x.scale * w.scale).astype(np.float32)
        if plan.spec(point).axis is not None and scale.ndim == 0:
            scale = np.full(ir.constants(graph)[value].shape[0], scale, np.float32)
        found[point] = Encoding(plan.spec(point), scale, np.zeros(scale.shape, np.int32))
    return plan.replace(found)


def _narrow_biases(graph: ir.Graph, plan: Plan) -> Plan:
    """Encodings of biases that have a range of their own, from what they are now."""
    constants, found = ir.constants(graph), {}
    for node in ir.nodes(graph):
        bias = node.inputs[2] if node.op_type in LAYERS and len(node.inputs) > 2 else None
        name = bias.name or "" if bias is not None else ""
        for point in (Point(name), Point(name, node.name or "", 2)):
            if point in plan and plan.spec(point).bits < BIAS_BITS and name in constants:
                found[point] = weight_encoding(constants[name], plan.spec(point), "mse")
    return plan.replace(found)


PLUGIN = Calibrate
