"""Read a target's rules against a graph: who is quantized, by which rule, and what stays float.

The plan of a target follows from four steps. (1) Every node takes the first rule that matches it.
(2) Chains that the engine fuses become units; only the last value of a unit exists in the
deployment. (3) Anchors (convolutions, matrix products) get their inputs and outputs quantized;
other ops follow where their inputs already are codes. (4) Ops that only
move codes share the encoding of their input: the value before and after is one tie.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from modelmill import ir
from modelmill.ir import Plan, Point
from modelmill.numerics import Encoding, QuantSpec
from modelmill.targets import limits
from modelmill.targets.target import IsaGuard, OpRule, Role, Scheme, Target

# Where the output channels of a weight lie: ONNX operator definitions.
OUTPUT_CHANNEL = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}
FULL_RANGE_BELOW = 8  # bits: with fewer, a narrow format may use its lowest code as well


@dataclass(frozen=True)
class Verdict:
    """What becomes of one node: `runs` is "integer", "fused" (into the unit of an earlier node) or
    "float", and why.
    """

    node: str
    op: str
    runs: str
    why: str


@dataclass(frozen=True)
class Planned:
    """The outcome for one graph.

    plan: specs without numbers. inner: values inside fused units, which do not exist in the
    deployment. verdicts: one per node, in graph order. notes: what the user must be told.
    """

    plan: Plan
    inner: frozenset[str]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]


def guarded_scheme(
    target: Target, precision: str, architecture: str, flags: frozenset[str]
) -> tuple[Scheme, IsaGuard | None]:
    """The formats of `precision` on a CPU with these flags, and the guard that narrowed the
    weights, if one did.
    """
    scheme = target.scheme(precision)
    for guard in target.guards:
        concerned = architecture in guard.architectures and not flags & set(guard.needs_one_of)
        if concerned and scheme.weight.bits > guard.weight_bits:
            narrowed = replace(scheme, weight=replace(scheme.weight, bits=guard.weight_bits))
            return narrowed, guard
    return scheme, None


def plan(
    graph: ir.Graph,
    target: Target,
    precision: str,
    architecture: str,
    flags: frozenset[str],
    keep_float: frozenset[str] = frozenset(),
) -> Planned:
    """Plan `graph` for `target` at `precision` on a CPU of `architecture` with `flags`.

    `keep_float` names nodes that no rule shall match.

    Raises:
        ValueError: the target does not have this precision.
    """
    scheme, guard = guarded_scheme(target, precision, architecture, flags)
    run = _Planner(graph, target, scheme, keep_float)
    run.mark_units()
    run.mark_integer_nodes()
    notes: tuple[str, ...] = ()
    if guard is not None:
        notes = (
            f"{target.name}: weights have {guard.weight_bits} bits because the CPU has none of "
            f"{', '.join(guard.needs_one_of)}: {guard.why} ({guard.source})",
        )
    verdicts = tuple(run.verdict(node) for node in ir.nodes(graph))
    return Planned(run.plan(), frozenset(run.inner), verdicts, notes)


def check(graph: ir.Graph, target: Target, precision: str, plan: Plan) -> None:
    """Raise ValueError when a point's format is not one the target's rules give to that place.

    Fewer bits are taken, and below 8 bits a format that is not `narrow`.
    """
    scheme = target.scheme(precision)
    allowed = {
        "activation": scheme.activation,
        "weight": scheme.weight,
        "bias": scheme.bias,
    }
    roles = _roles(graph, target)
    for point in plan:
        spec, role = plan.spec(point), roles.get(point.value, "float")
        want = allowed.get(role)
        if want is not None and role in ("activation", "weight") and spec.bits < want.bits:
            narrow = want.narrow and (spec.narrow or spec.bits >= FULL_RANGE_BELOW)
            want = replace(want, bits=spec.bits, narrow=narrow)
        if want is None or replace(spec, axis=None) != replace(want, axis=None):
            raise ValueError(
                f"{target.name} does not take {spec} at {point}: its rules say {want or 'float'} "
                "there. "
                f"See 'modelmill check MODEL -t {target.name}'."
            )


def _roles(graph: ir.Graph, target: Target) -> dict[str, Role]:
    """The role each value may play: an activation unless a rule makes it a weight or a bias."""
    roles: dict[str, Role] = {}
    for node in ir.nodes(graph):
        rule, _ = match(node, target)
        for index, value in enumerate(node.inputs):
            if rule is not None and value is not None:
                role = _role(rule, index)
                if role != "float":
                    roles[value.name or ""] = role
        for output in node.outputs:
            roles.setdefault(output.name or "", "activation")
    return roles


def match(node: ir.Node, target: Target) -> tuple[OpRule | None, str]:
    """The first rule that holds for `node`, and in words why, or why none does. Rules are numbered
    from 1, as the target lists them.
    """
    refused: list[str] = []
    for number, rule in enumerate(target.rules, 1):
        if rule.op != node.op_type:
            continue
        reason = _mismatch(node, rule)
        if reason is None:
            said = rule.note or f"rule {rule.op}({', '.join(rule.inputs)})"
            return rule, "; ".join([said, *refused])
        refused.append(f"rule {number} refuses: {reason}")
    why = dict(target.refuses).get(node.op_type)
    if not refused:
        refused = [f"{target.name} has no rule for {node.op_type}" + (f": {why}" if why else "")]
    return None, "; ".join(refused)


def _mismatch(node: ir.Node, rule: OpRule) -> str | None:
    attributes = ir.attributes(node)
    for name, values in rule.attributes:
        found = attributes.get(
            name, values[0]
        )  # an absent attribute counts as the first value listed
        if found not in values:
            return f"{name} is {found!r}, the rule takes {', '.join(map(repr, values))}"
    for index, number in rule.constants:
        value = node.inputs[index] if index < len(node.inputs) else None
        constant = ir.constant(value)
        if value is not None and (constant is None or not np.all(constant == number)):
            return f"input {index} must be the constant {number:g}"
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        role = _role(rule, index)
        is_constant = ir.constant(value) is not None
        if role in ("weight", "bias") and not is_constant:
            return (
                f"input {index} ({value.name}) is computed at run time, the rule takes a constant "
                f"{role}"
            )
        if role == "activation" and ir.dtype(value) is not None and ir.dtype(value) != np.float32:
            return f"input {index} ({value.name}) is {ir.dtype(value)}, not float32"
    return limits.refusal(node, rule)


def _role(rule: OpRule, index: int) -> Role:
    if index < len(rule.inputs):
        return rule.inputs[index]
    return rule.inputs[-1] if rule.variadic else "float"


class _Planner:
    """The state of one `plan` call."""

    def __init__(
        self, graph: ir.Graph, target: Target, scheme: Scheme, keep_float: frozenset[str]
    ) -> None:
        self.graph, self.target, self.scheme = graph, target, scheme
        self.nodes = ir.nodes(graph)
        kept = (None, "kept in float: its quantization costs too much, or it was asked for")
        self.matches = {
            id(n): kept if n.name in keep_float else match(n, target) for n in self.nodes
        }
        self.last: dict[int, ir.Node] = {}  # first node of a unit -> its last node
        self.fused_into: dict[int, ir.Node] = {}  # follower -> first node of its unit
        self.inner: set[str] = set()
        self.integer: set[int] = set()
        self.quantized: set[str] = set()  # activation values that are codes

    def mark_units(self) -> None:
        """Join chains like Conv - Relu, each value inside being used by the next node alone."""
        for node in self.nodes:
            if self.matches[id(node)][0] is None or id(node) in self.fused_into:
                continue
            for chain in sorted(self.target.fused, key=len, reverse=True):
                members = self._chain(node, chain)
                if members:
                    self.last[id(node)] = members[-1]
                    self.fused_into.update({id(m): node for m in members[1:]})
                    self.inner.update(m.outputs[0].name or "" for m in members[:-1])
                    break

    def _chain(self, node: ir.Node, chain: tuple[str, ...]) -> list[ir.Node]:
        members = [node]
        if node.op_type != chain[0]:
            return []
        for op in chain[1:]:
            output = members[-1].outputs[0]
            uses = list(output.uses())
            if len(uses) != 1 or output.is_graph_output() or uses[0].node.op_type != op:
                return []
            if id(uses[0].node) in self.fused_into:  # the other operand of an Add was fused first
                return []
            if not self._fusible(uses[0].node):
                return []
            members.append(uses[0].node)
        return members

    def _fusible(self, node: ir.Node) -> bool:
        """Whether no rule speaks against a member of a chain: where the target has rules for its
        op, one must hold.
        """
        ruled = any(rule.op == node.op_type for rule in self.target.rules)
        return not ruled or self.matches[id(node)][0] is not None

    def mark_integer_nodes(self) -> None:
        """Anchors first, as their inputs are wanted as codes; then every node whose inputs are
        codes by then.
        """
        anchors = [n for n in self.nodes if (r := self.matches[id(n)][0]) is not None and r.anchor]
        for node in anchors:
            self.quantized.update(self._activations(node))
        for node in self.nodes:
            rule = self.matches[id(node)][0]
            if rule is None or id(node) in self.fused_into:
                continue
            reads = self._activations(node)
            if rule.anchor or (reads and all(self._available(name) for name in reads)):
                self.integer.add(id(node))
                self.quantized.update(reads)
                for output in self.last.get(id(node), node).outputs:
                    if self._wants_codes(rule, output):
                        self.quantized.add(output.name or "")

    def _available(self, name: str) -> bool:
        """Codes already, or a constant that can be stored as codes."""
        return name in self.quantized or name in self.graph.graph.initializers

    def _wants_codes(self, rule: OpRule, output: ir.Value) -> bool:
        if rule.output == "float":
            return False
        if not rule.float_output:
            return True
        consumers = [use.node for use in output.uses()]
        return any(
            self.matches[id(n)][0] is not None and id(n) not in self.fused_into for n in consumers
        )

    def _activations(self, node: ir.Node) -> list[str]:
        rule = self.matches[id(node)][0]
        assert rule is not None
        return [
            value.name or ""
            for index, value in enumerate(node.inputs)
            if value is not None and _role(rule, index) == "activation"
        ]

    def plan(self) -> Plan:
        specs: dict[Point, QuantSpec | Encoding] = {
            Point(name): self.scheme.activation for name in self.quantized
        }
        ties: list[tuple[str, str]] = []
        for node in self.nodes:
            if id(node) not in self.integer:
                continue
            rule = self.matches[id(node)][0]
            assert rule is not None
            specs |= self._constant_points(node, rule)
            if rule.output == "same":
                written = [o.name or "" for o in self.last.get(id(node), node).outputs]
                ties += [(name, read) for name in written for read in self._activations(node)]
        return Plan(specs, _groups(ties))

    def _constant_points(self, node: ir.Node, rule: OpRule) -> dict[Point, QuantSpec]:
        found: dict[Point, QuantSpec] = {}
        for index, value in enumerate(node.inputs):
            role = _role(rule, index)
            spec = (
                self.scheme.weight
                if role == "weight"
                else self.scheme.bias
                if role == "bias"
                else None
            )
            if value is None or spec is None:
                continue
            if role == "weight" and spec.axis is not None:
                spec = replace(
                    spec,
                    axis=_output_channel(
                        node, len(ir.constants(self.graph)[value.name or ""].shape)
                    ),
                )
            if role == "bias" and self.scheme.weight.axis is None:
                spec = replace(spec, axis=None)
            shared = len(list(value.uses())) > 1
            point = (
                Point(value.name or "", node.name or "", index)
                if shared
                else Point(value.name or "")
            )
            found[point] = spec
        return found

    def verdict(self, node: ir.Node) -> Verdict:
        rule, why = self.matches[id(node)]
        name = node.name or ""
        if id(node) in self.fused_into:
            first = self.fused_into[id(node)]
            runs = "fused" if id(first) in self.integer else "float"
            return Verdict(name, node.op_type, runs, f"part of the kernel of {first.name}")
        if id(node) in self.integer:
            return Verdict(name, node.op_type, "integer", why)
        if rule is not None:
            why = f"its inputs are float: {self._float_input(node)}"
        return Verdict(name, node.op_type, "float", why)

    def _float_input(self, node: ir.Node) -> str:
        """Who hands floats to a node that would run on codes."""
        name = next((n for n in self._activations(node) if not self._available(n)), "")
        for maker in self.nodes:
            if name in (output.name for output in maker.outputs):
                return f"{name!r} comes from {maker.op_type} {maker.name!r}"
        return f"{name!r} is an input of the model"


def _output_channel(node: ir.Node, rank: int) -> int:
    if node.op_type == "Gemm":
        return 0 if ir.attributes(node).get("transB", 0) else 1
    axis = OUTPUT_CHANNEL[node.op_type]
    return axis if axis >= 0 else rank + axis


def _groups(ties: list[tuple[str, str]]) -> tuple[tuple[Point, ...], ...]:
    """Values linked by `ties`, directly or through others, gathered; each in one group."""
    group_of: dict[str, dict[str, None]] = {}
    for pair in ties:
        merged: dict[str, None] = {}
        for name in pair:
            merged |= group_of.get(name, {name: None})
        group_of.update(dict.fromkeys(merged, merged))
    groups = {id(group): group for group in group_of.values()}
    return tuple(tuple(Point(name) for name in group) for group in groups.values())
