"""Which layer's quantization costs what: a model with some layers quantized, the rest in float.

Two questions about every layer, since either alone deceives:

    alone     everything in float but this layer: the noise it makes by itself
    without   everything quantized but this layer: what would be won back by mending it

Noise of different layers is nearly uncorrelated, so energies add: the noise of all is about the sum
of what each makes alone, and the share of a layer is its part of that sum. A layer is a node with
what it reads as constants (weights, bias) and the activation that it, or the chain that the engine
fuses behind it, writes: every point of a plan belongs to exactly one layer.

The bias of a quantized layer was corrected for the noise of all layers. It is taken where most have
quantized weights; elsewhere the bias is that of the float model, rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from modelmill import executor, ir
from modelmill.executor.fake import FakeQuantize
from modelmill.ir import Plan, Point
from modelmill.numerics import Encoding
from modelmill.quant.bias_correction import LAYERS
from modelmill.quant.observe import decibels

BIAS = 2  # which input of a layer


@dataclass(frozen=True)
class Layer:
    """One layer in a plan. node: its name, or that of the graph's input. constants: names of the
    quantized values it reads, weights first. activations: the quantized values it writes.
    """

    node: str
    op: str
    constants: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """What is quantized: the constants of the layers named in `weights`, and the values named in
    `activations`.
    """

    weights: frozenset[str] = frozenset()
    activations: frozenset[str] = frozenset()


def part_of(layers: Iterable[Layer]) -> Part:
    """Constants and activations of these layers."""
    held = tuple(layers)
    values = frozenset(value for layer in held for value in layer.activations)
    return Part(frozenset(layer.node for layer in held), values)


def find_layers(graph: ir.Graph, plan: Plan) -> tuple[Layer, ...]:
    """The layers that have a point in `plan`, in graph order, the graph's inputs first."""
    points = {point.value for point in plan}
    constants = ir.constants(graph)
    owners = _owners(graph, plan, points)
    held: dict[str, tuple[list[str], list[str]]] = {n: ([], []) for n in ir.inputs(graph)}
    ops = dict.fromkeys(held, "input")
    for node in ir.nodes(graph):
        name = node.name or ""
        ops[name] = node.op_type
        held.setdefault(name, ([], []))
        for index, value in enumerate(node.inputs):
            known = value is not None and value.name in constants
            if known and value is not None and plan.at(value.name or "", name, index) is not None:
                held[name][0].append(value.name or "")
    for value_name, owner in owners.items():
        if value_name in points:
            held[owner][1].append(value_name)
    return tuple(
        Layer(name, ops[name], tuple(dict.fromkeys(c)), tuple(a))
        for name, (c, a) in held.items()
        if c or a
    )


def _owners(graph: ir.Graph, plan: Plan, points: set[str]) -> dict[str, str]:
    """Value -> the layer that writes it: the first node of the chain that ends there."""
    owners = {name: name for name in ir.inputs(graph)}
    for node in ir.nodes(graph):
        inputs = [v.name or "" for v in node.inputs if v is not None and v.name in owners]
        through = [name for name in inputs if name not in points]  # inside a chain
        weighted = any(
            v is not None and i > 0 and plan.at(v.name or "", node.name or "", i) is not None
            for i, v in enumerate(node.inputs)
        )
        owner = node.name or ""
        if through and not weighted:
            owner = owners[through[0]]
        elif len(inputs) == 1 and not through and _moves(node, plan, inputs[0]):
            owner = owners[inputs[0]]  # the same codes, elsewhere
        owners.update((o.name or "", owner) for o in node.outputs)
    return owners


def _moves(node: ir.Node, plan: Plan, source: str) -> bool:
    """Whether the output has the encoding of the input: then nothing is rounded again."""
    before, after = plan.get(Point(source)), plan.get(Point(node.outputs[0].name or ""))
    return before is not None and before == after


class Ablation:
    """A float model and its quantized twin, of which any part can be run.

    layers: see `find_layers`. Peak memory: the weights twice, and the activations of one batch that
    are alive at once.
    """

    def __init__(self, reference: ir.Graph, graph: ir.Graph, plan: Plan) -> None:
        """Prepare both.

        Args:
            reference: the float model, with the node and value names of `graph`.
            graph: the same with the constants that were quantized, before or after that.
            plan: with encodings.
        """
        self.layers = find_layers(graph, plan)
        self.module = executor.Module(reference)
        self.outputs = [v.name or "" for v in reference.graph.outputs]
        known = set(ir.values(reference))
        self.fakes = {
            value: FakeQuantize(encoding)
            for layer in self.layers
            for value in layer.activations
            if value in known and (encoding := encoding_of(plan, value)) is not None
        }
        self._weights: dict[str, dict[str, torch.Tensor]] = {}
        self._biases: dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]] = {}
        self._hold(reference, graph, plan)

    def _hold(self, reference: ir.Graph, graph: ir.Graph, plan: Plan) -> None:
        real, coded = ir.constants(reference), ir.constants(graph)
        for node in ir.nodes(graph):
            name = node.name or ""
            for index, value in enumerate(node.inputs):
                key = value.name or "" if value is not None else ""
                if key not in coded or key not in real or real[key].dtype != np.float32:
                    continue
                encoding = plan.at(key, name, index)
                if index == BIAS and node.op_type in LAYERS:
                    pair = (_tensor(coded[key], encoding), _tensor(real[key], encoding))
                    self._biases.setdefault(name, {})[key] = pair
                elif encoding is not None:
                    self._weights.setdefault(name, {})[key] = _tensor(coded[key], encoding)

    @property
    def everything(self) -> Part:
        """All that is quantized."""
        return part_of(self.layers)

    def run(self, feeds: Mapping[str, np.ndarray], part: Part) -> dict[str, torch.Tensor]:
        """The outputs for one batch with `part` quantized."""
        fed: dict[str, np.ndarray | torch.Tensor] = dict(feeds)
        weighted = {node for node in self._weights if node in part.weights}
        corrected = len(weighted) > len(self._weights) / 2
        for node in part.weights:
            fed |= self._weights.get(node, {})
            for name, (coded, rounded) in self._biases.get(node, {}).items():
                fed[name] = coded if corrected else rounded
        chosen = part.activations & self.fakes.keys()
        found: dict[str, torch.Tensor] = {}

        def look(name: str, x: torch.Tensor) -> torch.Tensor | None:
            y = self.fakes[name](x) if name in chosen else None
            if name in self.outputs:
                found[name] = (x if y is None else y).clone()
            return y

        with torch.inference_mode():
            self.module.visit(fed, {*self.outputs, *chosen}, look)
        return found


def _tensor(array: np.ndarray, encoding: object) -> torch.Tensor:
    real = encoding.fake(array) if isinstance(encoding, Encoding) else array
    made = torch.from_numpy(np.array(real, np.float32))
    return made.contiguous(memory_format=torch.channels_last) if made.dim() == 4 else made


def encoding_of(plan: Plan, value: str) -> Encoding | None:
    """The encoding of a value for all its readers, else that of the first reader with its own."""
    found = plan.get(Point(value))
    own = (plan[point] for point in plan if point.value == value)
    found = found if found is not None else next(own, None)
    return found if isinstance(found, Encoding) else None


@dataclass
class Energy:
    """Signal and noise at the outputs, summed over batches."""

    signal: float = 0.0
    noise: float = 0.0

    @property
    def db(self) -> float:
        """SQNR in dB."""
        return decibels(self.signal, self.noise)


@dataclass
class Measured:
    """Energies of each part asked for, under its key."""

    parts: dict[str, Energy] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Energy:
        return self.parts[key]


def measure(
    ablation: Ablation,
    parts: Mapping[str, Part],
    batches: Iterable[Mapping[str, np.ndarray]],
    advance: Callable[[int], None] = lambda done: None,
) -> Measured:
    """Signal and noise of all float outputs for every part; `advance` counts model runs."""
    found = Measured({key: Energy() for key in parts})
    done = 0
    for feeds in batches:
        reference = ablation.run(feeds, Part())
        real = {n: y.double() for n, y in reference.items() if y.is_floating_point()}
        signal = sum(float(y.square().sum()) for y in real.values())
        for key, part in parts.items():
            outputs = ablation.run(feeds, part)
            noise = sum(float((y - outputs[n].double()).square().sum()) for n, y in real.items())
            found[key].signal += signal
            found[key].noise += noise
            done += 1
            advance(done)
    return found


def alone(node: str) -> str:
    """Key of the part in which this layer alone is quantized."""
    return f"alone {node}"


def without(node: str) -> str:
    """Key of the part in which all but this layer is quantized."""
    return f"without {node}"


def alone_parts(layers: Iterable[Layer]) -> dict[str, Part]:
    """Every layer by itself, by `alone`."""
    return {alone(layer.node): part_of([layer]) for layer in layers}


def without_parts(layers: Iterable[Layer], left_out: Iterable[Layer]) -> dict[str, Part]:
    """All layers but each of `left_out` in turn, by `without`."""
    held = tuple(layers)
    return {without(x.node): part_of(y for y in held if y is not x) for x in left_out}
