"""A quantized model as MNN's converter takes it: the float graph it is to read, and the codes of
its layers and tensors.

    Conv, Gemm, MatMul  a layer: codes of weights, scales and zero points of what it reads and
                        writes; a ReLU behind it stays, the engine clamps at the zero point
    sum + ReLU, Clip    the activation goes: the lowest code is its zero, or the clamp is noted
    anything else       is on codes where MNN has a kernel and all tensors around it have codes

MNN decides by itself what runs on codes: it hands scale and zero point on through every operator
that moves, pools, resizes or rectifies, over what is noted there, and runs whatever has them on all
sides. Where the plan says otherwise a maximum with the lowest float32 is put in between: a constant
without codes, in an operator that hands nothing on and that the converter does not see through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from modelmill import ir
from modelmill.export.mnn_file import MATMUL, UNSIGNED, Layer, TensorCodes
from modelmill.ir import Plan, Point
from modelmill.numerics import Encoding

IMAGE = 4  # dimensions
ROUNDED = "_rounded"
LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
ACTIVATIONS = frozenset({"Relu", "Clip"})
SUMS = frozenset({"Add", "Sub", "Mul"})
# Others that MNN runs on codes, in an arithmetic that nobody planned with.
UNPLANNED = frozenset({
    "Div", "Max", "Min", "Pow", "Mod", "Softmax", "LayerNormalization", "BatchNormalization",
    "PRelu", "Abs", "Neg", "Sign", "Concat",
})  # fmt: skip
# Never on codes: MNN's x86 maximum takes codes from 0 on for negative, its resize is very slow.
FLOAT_ONLY = frozenset({"MaxPool", "Resize"})
POOLS = FLOAT_ONLY | {"AveragePool", "GlobalAveragePool"}
PASSING_ON = frozenset({
    "LeakyRelu", "Relu", "Clip", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice",
    "Gather", "Pad", "Split", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Identity",
})  # fmt: skip


@dataclass(frozen=True)
class Deployed:
    """graph: float, without the activations that the codes do by themselves. plan: of the graph as
    it came. codes: {name of an output that shall hold codes: the value they are of}. clamps: codes
    between which a value stays, narrower than its encoding. fences: values that a fence writes.
    """

    graph: ir.Graph
    plan: Plan
    codes: dict[str, str]
    clamps: dict[str, tuple[int, int]]
    fences: frozenset[str]

    def _tensor(self, names: Sequence[str], value: str) -> str:
        for candidate in (value, value + MATMUL):
            if candidate in names:
                return candidate
        raise ValueError(f"MNN's converter dissolved the value {value!r}, which the plan quantizes")

    def _held(self, value: str) -> TensorCodes:
        encoding = self.plan.encodings()[Point(value)]
        held = TensorCodes.of(encoding)
        low, high = self.clamps.get(value, (held.low, held.high))
        return replace(held, low=low, high=high)

    def layer_outputs(self, made: Mapping[str, int]) -> dict[str, int]:
        """{node: number of the tensor that its layer writes} of every layer on codes; `made` is
        what `convolutions` found.
        """
        return {node.name or "": self._written(made, node) for node in self._layer_nodes()}

    def layers(self, names: Sequence[str], made: Mapping[str, int]) -> list[Layer]:
        """What the converter is told about each."""
        found = []
        for node in self._layer_nodes():
            read, weight = node.inputs[0], node.inputs[1]
            assert read is not None and weight is not None
            encoding = self.plan.at(weight.name or "", node.name or "", 1)
            assert isinstance(encoding, Encoding)
            found.append(
                Layer(
                    names[self._written(made, node)],
                    self._held(read.name or ""),
                    self._held(self._value_written(node)),
                    np.atleast_1d(encoding.scale),
                )
            )
        return found

    def tensors(self, names: Sequence[str]) -> dict[int, TensorCodes]:
        """{number of a tensor: its codes} of every quantized activation."""
        values = set(ir.values(self.graph)) - set(ir.constants(self.graph))
        found = {}
        for point in self.plan.encodings():
            if point.value in values and point.value in names:
                found[names.index(point.value)] = self._held(point.value)
        return found

    def facts(self, names: Sequence[str]) -> dict[str, Any]:
        """What a session must know, as JSON."""
        return {
            "inputs": list(ir.inputs(self.graph)),
            "outputs": {name: self._tensor(names, name) for name in ir.outputs(self.graph)},
            "codes": {
                name: {
                    "tensor": self._tensor(names, value),
                    "type": str(self.plan.spec(Point(value)).storage),
                    **vars(self._held(value)),
                }
                for name, value in self.codes.items()
            },
            "fences": sorted(self.fences),
        }

    def _layer_nodes(self) -> list[ir.Node]:
        return [n for n in ir.nodes(self.graph) if n.op_type in LAYERS and self._on_codes(n)]

    def _on_codes(self, node: ir.Node) -> bool:
        weight = node.inputs[1]
        assert weight is not None
        return self.plan.at(weight.name or "", node.name or "", 1) is not None

    def _written(self, made: Mapping[str, int], node: ir.Node) -> int:
        name = node.outputs[0].name or ""  # the converter names operators after what they wrote
        for candidate in (name, name + MATMUL):
            if candidate in made:
                return made[candidate]
        raise ValueError(f"MNN's converter made no layer of {node.name!r}; --keep-float keeps it")

    def _value_written(self, node: ir.Node) -> str:
        """The value with codes that a layer writes: its own, or that of the ReLU behind it."""
        value = node.outputs[0]
        while Point(value.name or "") not in self.plan:
            uses = list(value.uses())
            if len(uses) != 1 or uses[0].node.op_type not in ACTIVATIONS:
                raise ValueError(f"{node.name!r}: MNN's layers on codes write codes")
            value = uses[0].node.outputs[0]
        return value.name or ""


def prepare(source: ir.Graph) -> Deployed:
    """Read a QDQ graph, or a float one.

    Raises:
        ValueError: MNN cannot hold the plan: what, where and why.
    """
    inner, codes = ir.without_exposed(source)
    graph, plan = ir.from_qdq(inner)
    clamps: dict[str, tuple[int, int]] = {}
    for node in ir.nodes(graph):
        if node.op_type in ACTIVATIONS and _is_saturation(node, plan):
            output = node.outputs[0].name or ""
            encoding = plan[Point(output)]
            assert isinstance(encoding, Encoding)
            clamps[output] = _clamp(node, encoding)
            _drop(graph, node)
    plan = plan.replace(_round_for_floats(graph, plan))
    fences = _fence_all(graph, plan) if len(plan) else []
    _spell_out(graph)
    ir.prune(graph)
    return Deployed(graph, plan, codes, clamps, frozenset(v.name or "" for v in fences))


def _spell_out(graph: ir.Graph) -> None:
    """Attributes that may be left out: without them the converter crashes on pools."""
    for node in ir.nodes(graph):
        given = ir.attributes(node)
        if node.op_type not in ("Conv", "MaxPool", "AveragePool") or "auto_pad" in given:
            continue
        weight = ir.constant(node.inputs[1]) if node.op_type == "Conv" else None
        kernel = given.get("kernel_shape") or (weight.shape[2:] if weight is not None else ())
        ones = [1] * len(kernel)
        defaults = {"kernel_shape": list(kernel), "strides": ones, "pads": [0, 0] * len(kernel)}
        for name, numbers in defaults.items():
            if kernel and name not in given:
                ir.set_attribute(node, name, numbers)


def _is_saturation(node: ir.Node, plan: Plan) -> bool:
    """Whether the codes of its output can do what this activation does: it follows an operator on
    codes, and the value between them has none. A layer does its ReLU itself.
    """
    value, output = node.inputs[0], node.outputs[0]
    assert value is not None
    producer = value.producer()
    return (
        producer is not None
        and (producer.op_type not in LAYERS or node.op_type == "Clip")
        and Point(value.name or "") not in plan
        and Point(output.name or "") in plan
        and len(list(value.uses())) == 1
        and all(
            v is not None and plan.at(v.name or "", producer.name or "", i) is not None
            for i, v in enumerate(producer.inputs)
        )
    )


def _clamp(node: ir.Node, encoding: Encoding) -> tuple[int, int]:
    low: np.ndarray | None = np.zeros((), np.float32)
    high: np.ndarray | None = None
    if node.op_type == "Clip":
        bounds = [ir.constant(v) for v in node.inputs[1:]] + [None, None]
        low, high = bounds[0], bounds[1]
    spec = encoding.spec
    lowest = spec.qmin if low is None else int(encoding.quantize(low))
    highest = spec.qmax if high is None else int(encoding.quantize(high))
    moved = 0 if spec.signed else UNSIGNED
    return lowest - moved, highest - moved


def _drop(graph: ir.Graph, node: ir.Node) -> None:
    """Take a node out; what it read takes over the name of what it wrote."""
    value, output = node.inputs[0], node.outputs[0]
    assert value is not None
    name = output.name
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    output.name = ir.fresh_name(graph, f"{name}_was")
    value.name = name


# ------------------------------------------------------------ fences


def _round_for_floats(graph: ir.Graph, plan: Plan) -> dict[Point, Encoding]:
    """What an operator on floats wrote is rounded only where codes are read; where floats are read
    too, both shall read it through a maximum over one element, which is on codes. Returns the
    encodings of the new values.
    """
    found = {}
    for value in list(ir.values(graph).values()):
        encoding, producer = _encoding(plan, value), value.producer()
        if encoding is None or not _is_activation(value) or len(ir.shape(value) or ()) != IMAGE:
            continue
        if producer is not None and _runs_on_codes(producer, plan):
            continue
        uses = list(value.uses())
        if all(_runs_on_codes(use.node, plan) for use in uses):
            continue
        first = min((use.node for use in uses), key=ir.nodes(graph).index)
        ones = {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0, 0, 0, 0]}
        stem = f"{value.name}{ROUNDED}"
        made = ir.add_node(graph, "MaxPool", [value], ones, before=first, stem=stem)
        made.shape = value.shape
        for use in uses:
            use.node.replace_input_with(use.idx, made)
        found[Point(made.name or "")] = encoding
    return found


def _runs_on_codes(node: ir.Node, plan: Plan) -> bool:
    if node.op_type in LAYERS:
        weight = node.inputs[1]
        return weight is not None and plan.at(weight.name or "", node.name or "", 1) is not None
    read = [v for v in node.inputs if v is not None and _is_activation(v)]
    able = SUMS | PASSING_ON | {"AveragePool", "GlobalAveragePool", "Concat"}
    return (
        node.op_type in able - {"LeakyRelu"}
        and all(_encoding(plan, v) is not None for v in (*read, node.outputs[0]))
        and _agree(node, read, plan)
    )


def _fence_all(graph: ir.Graph, plan: Plan) -> list[ir.Value]:
    """Put a maximum that changes nothing wherever MNN would run on codes what the plan leaves in
    float, or hand on scales that are not the plan's; the values that these write.
    """
    fences: list[ir.Value] = []
    lowest: list[ir.Value] = []
    nodes = ir.nodes(graph)
    for node, following in zip(nodes, [*nodes[1:], None], strict=True):
        read = [v for v in node.inputs if v is not None and _is_activation(v)]
        if not read or node.op_type in LAYERS or _agree(node, read, plan):
            continue
        quantized = _encoding(plan, node.outputs[0]) is not None
        all_codes = all(_encoding(plan, v) is not None for v in read)
        pool, constant = node.op_type in POOLS, len(read) < len(node.inputs)
        folded = node.op_type in SUMS and constant and all_codes
        before = pool or folded or (node.op_type in PASSING_ON and all_codes and quantized)
        after = pool or (quantized and not folded and node.op_type in UNPLANNED | SUMS)
        if not lowest and (before or after):
            number = np.asarray(np.finfo(np.float32).min, np.float32)
            lowest.append(ir.add_constant(graph, "lowest", number))
        if before:
            fences.append(_fence(graph, read[0], lowest[0], node))
            node.replace_input_with(0, fences[-1])
        if after and following is not None:
            fences.append(_fence_after(graph, node.outputs[0], lowest[0], following))
    return fences


def _is_activation(value: ir.Value | None) -> bool:
    return (
        value is not None and ir.constant(value) is None and ir.dtype(value) in (None, np.float32)
    )


def _encoding(plan: Plan, value: ir.Value) -> Encoding | None:
    found = plan.get(Point(value.name or ""))
    return found if isinstance(found, Encoding) else None


def _agree(node: ir.Node, read: Sequence[ir.Value], plan: Plan) -> bool:
    """Whether what MNN does with the codes around this node is what the plan says."""
    around = [_encoding(plan, v) for v in (*read, node.outputs[0])]
    if not any(around):
        return node.op_type not in POOLS  # codes noted further away would reach them
    if node.op_type in SUMS and len(read) == len(node.inputs):
        return all(around) or around[-1] is None
    if node.op_type in FLOAT_ONLY:
        return (node.name or "").endswith(ROUNDED)
    uncounted = any(ir.attributes(node).get("pads", ())) and node.op_type == "AveragePool"
    if uncounted and ir.attributes(node).get("count_include_pad", 0):
        return False
    if node.op_type in POOLS or node.op_type in PASSING_ON or node.op_type == "Concat":
        return len(set(around)) == 1 or (node.op_type in PASSING_ON and None in around)
    return not all(around)


def _fence(graph: ir.Graph, value: ir.Value, lowest: ir.Value, before: ir.Node) -> ir.Value:
    made = ir.add_node(graph, "Max", [value, lowest], before=before, stem=f"{value.name}_fence")
    made.shape = value.shape
    return made


def _fence_after(
    graph: ir.Graph, value: ir.Value, lowest: ir.Value, following: ir.Node
) -> ir.Value:
    """A fence that all who read `value` read instead, under its name."""
    uses = list(value.uses())
    made = _fence(graph, value, lowest, following)
    for use in uses:
        use.node.replace_input_with(use.idx, made)
    if value.is_graph_output():
        outputs = graph.graph.outputs
        outputs[list(outputs).index(value)] = made
    name, value.name = value.name, ir.fresh_name(graph, f"{value.name}_before")
    made.name = name
    return made
