"""Fewer bits than a target's own formats: a precision such as w4a8, and bits layer by layer.

Codes of 2..7 bits lie in the 8-bit types and run on the 8-bit kernels: a narrower weight costs
accuracy and, where the file packs it, saves bytes. An engine saturates activations at 8 bits when
it quantizes them, so fewer bits there can be simulated only.

The first and the last layer keep 8 bits by default, as in the papers (Esser et al., Learned Step
Size Quantization, ICLR 2020, section 3; BRECQ, ICLR 2021; QDrop, ICLR 2022). First: layers that
read an input of the graph with no layer between; last: those before an output.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from modelmill import ir
from modelmill.ir import Plan, Point
from modelmill.numerics import Encoding, QuantSpec, parse_precision
from modelmill.targets.target import Scheme, Target

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
BASE_BITS = 8  # of weights, and of activations unless 16 are asked for
WIDE_BITS = 16
PACKED_BITS = 4  # the widest codes of which two fit in a byte

LayerBits = Mapping[str, tuple[int, int]]  # node -> (bits of its weight, of what it reads)


def at_precision(target: Target, precision: str) -> Target:
    """The target with formats for `precision`; itself where it lists it.

    The formats are those of its 8-bit precision (or of its w8a16): `with_bits` narrows them layer
    by layer. With narrower activations no engine is left, and the file is AIMET's encodings.

    Raises:
        ValueError: not of the form wXaY, bits out of range, logarithmic codes, or the target has
            nothing that could be narrowed.
    """
    if any(scheme.precision == precision for scheme in target.schemes):
        return target
    weights, activations = parse_precision(precision)
    if not 2 <= weights <= BASE_BITS or not (2 <= activations <= BASE_BITS or activations == 16):
        raise ValueError(
            f"precision {precision}: weights have 2 to {BASE_BITS} bits, activations 2 to "
            f"{BASE_BITS} or {WIDE_BITS}"
        )
    base = _base(target, precision, WIDE_BITS if activations > BASE_BITS else BASE_BITS)
    schemes = (*target.schemes, replace(base, precision=precision))
    if target.runtime is not None and activations in (BASE_BITS, WIDE_BITS):
        return replace(target, schemes=schemes)
    if activations < BASE_BITS:
        why = f"no engine here computes on {activations}-bit activations"
        if target.runtime is not None:
            why += f": {target.runtime} quantizes them to {BASE_BITS} bits"
    else:
        why = f"no engine here runs {target.name}, and its own files know no {weights}-bit weights"
    return replace(
        target,
        schemes=schemes,
        runtime=None,
        emulated=False,
        export=("aimet",),
        guards=(),  # they speak of an engine's kernels
        simulated=f"{precision} is simulated: {why}",
    )


def _base(target: Target, precision: str, activations: int) -> Scheme:
    fitting = [s for s in target.schemes if s.activation.bits == activations]
    fitting = [s for s in fitting if s.weight.bits == BASE_BITS]
    if not fitting:
        return target.scheme(precision)  # raises, and lists what there is
    if fitting[0].activation.logarithmic or fitting[0].weight.logarithmic:
        raise ValueError(
            f"target {target.name} has no precision {precision!r}: its codes are logarithmic, "
            f"always of {BASE_BITS} bits. Choices: {', '.join(s.precision for s in target.schemes)}"
        )
    return fitting[0]


def layer_bits(
    graph: ir.Graph, plan: Plan, precision: str, first_last: int = BASE_BITS
) -> dict[str, tuple[int, int]]:
    """The bits of every layer that `plan` quantizes, by node name, in graph order.

    first_last: the first and the last layer have at least so many; 0: they are like the others.

    Raises:
        ValueError: `first_last` is neither 0 nor 2..8.
    """
    if first_last != 0 and not 2 <= first_last <= BASE_BITS:
        raise ValueError(f"--first-last-bits is 2 to {BASE_BITS}, or 0 for none, not {first_last}")
    weights, activations = parse_precision(precision)
    ends = _ends(graph)
    found = {}
    for node in ir.nodes(graph):
        if node.op_type in LAYERS and _points(node, plan):
            least = first_last if node.name in ends else 0
            found[node.name or ""] = max(weights, least), max(activations, least)
    return found


def with_bits(graph: ir.Graph, plan: Plan, bits: LayerBits) -> Plan:
    """`plan`, not yet calibrated, with the specs that `bits` asks for.

    A value that several layers read has the largest of their activation bits (a layer that `bits`
    does not name wants what the plan says), and so has a group of tied values. A weight that is
    narrower already, by a guard of the target, stays so. Below 8 bits no weight is `narrow`: one of
    four codes is too much to leave out.

    Raises:
        ValueError: a layer asks for more activation bits than the target's format has.
    """
    weights, values = _wanted(graph, plan, bits)
    for group in plan.ties:
        largest = max((values.get(point, 0) for point in group), default=0)
        values |= {point: largest for point in group if largest and point in plan}
    changes: dict[Point, QuantSpec | Encoding] = {}
    for point, number in values.items():
        spec = plan.spec(point)
        if number > spec.bits:
            raise ValueError(f"{point}: {number} bits are asked for, the target has {spec.bits}")
        if number < spec.bits:
            changes[point] = replace(spec, bits=number)
    for point, number in weights.items():
        spec = plan.spec(point)
        if number < spec.bits:
            changes[point] = replace(spec, bits=number, narrow=False)
    return plan.replace(changes) if changes else plan


def bits_in_words(target: Target, bits: LayerBits) -> tuple[str, ...]:
    """What the user must be told of bits below 8; nothing where all have 8."""
    if target.simulated:
        return (f"{target.name}: {target.simulated}",)
    few = [name for name, (weight, _) in bits.items() if weight < BASE_BITS]
    if not few or target.runtime is None:
        return ()
    packed = [name for name in few if bits[name][0] <= PACKED_BITS]
    said = f"{target.name}: {len(few)} of {len(bits)} layers have weights of fewer than 8 bits"
    if target.packed_weights and packed:
        said += f", {len(packed)} of them stored as INT4, two codes in a byte"
    return (f"{said}; {target.runtime} computes on them as 8-bit codes",)


def _points(node: ir.Node, plan: Plan) -> list[tuple[Point, ir.Value]]:
    """The points that hold for the two operands of a layer; empty where one is float."""
    found = []
    for index, value in enumerate(node.inputs[:2]):
        if value is not None:
            own = Point(value.name or "", node.name or "", index)
            found.append((own if own in plan else Point(value.name or ""), value))
    return found if len(found) == 2 and all(point in plan for point, _ in found) else []


def _wanted(
    graph: ir.Graph, plan: Plan, bits: LayerBits
) -> tuple[dict[Point, int], dict[Point, int]]:
    """Bits wanted at the points of weights, and at those of what layers read."""
    weights: dict[Point, int] = {}
    values: dict[Point, int] = {}
    for node in ir.nodes(graph):
        if node.op_type not in LAYERS:
            continue
        asked = bits.get(node.name or "")
        for point, value in _points(node, plan):
            constant = ir.constant(value) is not None
            own = plan.spec(point).bits
            number = own if asked is None else asked[0 if constant else 1]
            kind = weights if constant else values
            kind[point] = max(kind.get(point, 0), number)
    return weights, values


def _ends(graph: ir.Graph) -> frozenset[str]:
    """Names of the first and the last layers.

    Of several layers that read one input with none between, as where a shortcut leads past others,
    those count that lie behind none of the rest; of those before one output, those before none.
    """
    near: dict[str, frozenset[str]] = {}  # value -> layers that made it, none between
    fed: dict[str, frozenset[str]] = {  # value -> inputs it comes from, no layer between
        v.name or "": frozenset({v.name or ""}) for v in graph.graph.inputs
    }
    above: dict[str, frozenset[str]] = {}  # layer -> all layers it depends on
    readers: dict[str, list[str]] = {}  # input -> layers that read it, none between
    for node in ir.nodes(graph):
        name, reads = node.name or "", [v.name or "" for v in node.inputs if v is not None]
        makers = _union(near.get(read, frozenset()) for read in reads)
        sources = _union(fed.get(read, frozenset()) for read in reads)
        if node.op_type in LAYERS:
            above[name] = makers | _union(above[maker] for maker in makers)
            for source in sources:
                readers.setdefault(source, []).append(name)
            makers, sources = frozenset({name}), frozenset()
        for output in node.outputs:
            near[output.name or ""], fed[output.name or ""] = makers, sources
    ends = {n for names in readers.values() for n in names if not above[n] & set(names)}
    for output in graph.graph.outputs:
        before = near.get(output.name or "", frozenset())
        ends |= before - _union(above[n] for n in before)
    return frozenset(ends)


def _union(sets: Iterable[Collection[str]]) -> frozenset[str]:
    return frozenset().union(*sets)
