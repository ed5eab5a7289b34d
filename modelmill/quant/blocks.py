"""Cut a graph into units that are reconstructed one after the other, by its structure alone.

Walk the nodes in order. A value crosses a place between two nodes if it is made before and read
behind it. A cut is a place that one value crosses at most: all that follows knows of what came
before is that value, so what lies between two cuts is a block. A residual block is one, as its
input crosses every place up to the addition; so are an Inception module, a transformer's attention
with its shortcut, or one layer of a chain. Three kinds of values do not count:

    long-lived   a value on its way over more than `max_layers` layers from one reader to the next:
                 a skip of a U-Net, a level of a pyramid. It becomes one more input of the unit
                 that reads it.
    waiting      a value that no layer reads any more and that is at most gathered with others: the
                 outputs of a detector's heads.
    no data      shapes, indices, and what follows from shapes alone. A unit works them out again.

Where a value crosses that does not have the images along its first axis (the two halves of a
channel shuffle, stacked) there is no cut: nobody could keep it image by image.

A unit ends at the first cut behind its last layer, or behind the activation that follows there.
Where every block ends and starts with one value there would be no inverted residual without a
shortcut, nor the pair of a MobileNet: a depthwise convolution is joined with the pointwise one
behind it and, where that one is not followed by an activation (a linear bottleneck), with the
pointwise one before it.

Why blocks: Li et al., BRECQ, ICLR 2021: errors of layers in one block depend on each other, those
of different blocks hardly.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np

from modelmill import ir

MAX_LAYERS = 10  # the largest Inception module has ten convolutions
# What stays with the layer before it. Other ops move, average or normalise what the next layer
# reads; the loss is better taken before them, where there is more of it.
FOLLOWING = frozenset({
    "Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Sigmoid",
    "HardSigmoid", "HardSwish", "Swish", "Tanh", "Softplus", "Softsign", "Mish", "Gelu", "Erf",
    "Exp", "Pow", "Sqrt", "Add", "Sub", "Mul", "Div", "Min", "Max", "BatchNormalization", "MaxPool",
})  # fmt: skip
GATHER = "Concat"
SHAPES = ("Shape", "Size")
SQUEEZE = 2  # layers of a squeeze and excitation


@dataclass(frozen=True)
class Unit:
    """A part of the graph that is reconstructed at once.

    nodes: in graph order; layers: those with a weight to round. inputs: values, no constants, that
    it reads and that are made elsewhere. outputs: its values that others read or the graph gives.
    """

    name: str
    nodes: tuple[str, ...]
    layers: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Partition:
    """Units in graph order, disjoint, every layer in one; what a unit reads, units before it give
    or the graph is fed with. Nodes that no layer follows may belong to none, and those that work on
    shapes do. notes: what was not cut as blocks, and why.
    """

    units: tuple[Unit, ...]
    notes: tuple[str, ...] = ()


def blocks(graph: ir.Graph, layers: Collection[str], max_layers: int = MAX_LAYERS) -> Partition:
    """Cut into blocks of at most `max_layers` layers; a larger one is taken layer by layer.

    Raises:
        ValueError: a layer is no node of the graph.
    """
    walk = _Walk(graph, layers)
    found: list[tuple[int, ...]] = []
    notes: list[str] = []
    for segment in _joined(walk, _segments(walk, max_layers)):
        held = [walk.nodes[p].name or "" for p in segment if p in walk.layers]
        if len(held) <= max_layers:
            found.append(segment)
            continue
        notes.append(
            f"{len(held)} layers from {held[0]} to {held[-1]} are taken one by one: at every place "
            f"between them two or more values are on their way to layers at most {max_layers} "
            "behind, so there are no blocks"
        )
        found += [_with_tail(walk, p) for p in segment if p in walk.layers]
    return Partition(_units(walk, found), tuple(notes))


def by_layer(graph: ir.Graph, layers: Collection[str]) -> Partition:
    """Every layer alone, with the activation that follows it.

    Raises:
        ValueError: a layer is no node of the graph.
    """
    walk = _Walk(graph, layers)
    return Partition(_units(walk, [_with_tail(walk, p) for p in walk.layers]))


class _Walk:
    """A graph by positions of its nodes. Values are names; constants are left out."""

    def __init__(self, graph: ir.Graph, layers: Collection[str]) -> None:
        self.nodes = ir.nodes(graph)
        missing = set(layers) - {node.name or "" for node in self.nodes}
        if missing:
            raise ValueError(
                f"the graph has no node {min(missing)!r} to take as a layer; name nodes of the "
                "graph that the plan was made for"
            )
        listed = set(layers)
        self.layers = [p for p, n in enumerate(self.nodes) if (n.name or "") in listed]
        self.given = {value.name or "" for value in graph.graph.outputs}
        self.reads = [_names(v for v in n.inputs if ir.constant(v) is None) for n in self.nodes]
        self.writes = [_names(node.outputs) for node in self.nodes]
        self.readers: dict[str, list[int]] = {}
        for position, names in enumerate(self.reads):
            for name in names:
                self.readers.setdefault(name, []).append(position)
        self.maker = {name: p for p, names in enumerate(self.writes) for name in names}
        held = ir.values(graph)
        self.no_data: set[str] = set()
        for node, reads, writes in zip(self.nodes, self.reads, self.writes, strict=True):
            if node.op_type in SHAPES or self.no_data.issuperset(reads):
                self.no_data.update(writes)
            self.no_data.update(v.name or "" for v in node.outputs if not _is_real(v))

        self.dataless = {p for p, names in enumerate(self.writes) if self.no_data.issuperset(names)}

        batch = {info.shape[0] for info in ir.inputs(graph).values() if info.shape}
        # Values that do not have the images along their first axis: no unit may end there.
        self.moved = {
            name
            for name in self.maker.keys() - self.no_data
            if (dims := ir.shape(held[name])) and isinstance(dims[0], int) and dims[0] not in batch
        }

    def way(self, name: str) -> list[int]:
        """Where a value is made and read; a graph input comes where it is first read."""
        start = [self.maker[name]] if name in self.maker else []
        return start + self.readers.get(name, [])

    def span(self, start: int, end: int) -> int:
        """How many layers lie between two positions."""
        return bisect_left(self.layers, end) - bisect_right(self.layers, start)

    @cached_property
    def waiting(self) -> set[str]:
        """Values with no layer behind them that are at most gathered with others."""
        found: set[str] = set()
        layers = set(self.layers)
        for position in reversed(range(len(self.nodes))):
            for name in self.writes[position]:
                if all(
                    p not in layers and self._passes(p, found) for p in self.readers.get(name, ())
                ):
                    found.add(name)
        return found

    def _passes(self, position: int, waiting: set[str]) -> bool:
        real = set(self.reads[position]) - self.no_data
        alone = len(real) == 1 or self.nodes[position].op_type == GATHER
        return alone and waiting.issuperset(self.writes[position])

    def sources(self, position: int) -> tuple[str, ...]:
        """The data that a node reads, or that the shapes it reads are worked out from."""
        found: dict[str, None] = {}
        for name in self.reads[position]:
            inner = self.sources(self.maker[name]) if name in self.no_data else (name,)
            found.update(dict.fromkeys(inner))
        return tuple(found)

    @cached_property
    def data_readers(self) -> dict[str, list[int]]:
        """By value: the nodes that read it, directly or its shape; those that give data."""
        found: dict[str, list[int]] = {}
        for position in sorted(set(range(len(self.nodes))) - self.dataless):
            for name in self.sources(position):
                found.setdefault(name, []).append(position)
        return found

    def crossing(self, max_layers: int) -> list[int]:
        """How many values that count cross the place behind each node; a moved one counts twice."""
        change = [0] * (len(self.nodes) + 1)
        for name in self.readers.keys() - self.no_data - (self.waiting - self.moved):
            weight = 2 if name in self.moved else 1
            for start, end in pairwise(self.way(name)):
                if self.span(start, end) <= max_layers or name in self.moved:
                    change[start] += weight
                    change[end] -= weight
        return list(accumulate(change))[:-1]


def _names(values: Iterable[ir.Value | None]) -> tuple[str, ...]:
    """Names of the values that are there, each once."""
    return tuple(dict.fromkeys(v.name for v in values if v is not None and v.name))


def _is_real(value: ir.Value) -> bool:
    kind = ir.dtype(value)
    return kind is None or bool(np.issubdtype(kind, np.floating))


def _segments(walk: _Walk, max_layers: int) -> Iterator[tuple[int, ...]]:
    """Positions of the nodes between two cuts, for every two with a layer between them."""
    crossing = walk.crossing(max_layers)
    start = first = 0
    for number, (layer, following) in enumerate(pairwise([*walk.layers, len(walk.nodes)]), start=1):
        cut = next((p for p in range(layer, following) if crossing[p] <= 1), None)
        if cut is None:
            continue
        made = {name for p in range(start, cut + 1) for name in walk.writes[p]}
        for p in range(cut + 1, following):
            if walk.nodes[p].op_type not in FOLLOWING or made.isdisjoint(walk.reads[p]):
                break
            made.update(walk.writes[p])
            cut = p if crossing[p] <= 1 else cut
        yield _serving(walk, range(start, cut + 1), walk.layers[first:number])
        start, first = cut + 1, number


def _joined(walk: _Walk, segments: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Segments with those of a depthwise convolution joined to what belongs to it."""
    found: list[tuple[int, ...]] = []
    is_open = False  # the last one waits for its pointwise convolution
    for segment in segments:
        layers = _layers(walk, segment)
        if is_open and len(layers) <= SQUEEZE and all(_is_1x1(n) for n in layers):
            is_open = all(_on_averages(n) for n in layers)
            segment = (*found.pop(), *segment)
            if not is_open and segment[-1] in walk.layers and _expands_to(walk, found, segment):
                segment = (*found.pop(), *segment)
        else:
            is_open = len(layers) == 1 and _is_depthwise(layers[0])
        found.append(segment)
    return found


def _layers(walk: _Walk, positions: Iterable[int]) -> list[ir.Node]:
    return [walk.nodes[p] for p in positions if p in walk.layers]


def _expands_to(walk: _Walk, found: list[tuple[int, ...]], segment: tuple[int, ...]) -> bool:
    """Whether the last of `found` is a pointwise convolution that only this segment reads."""
    before = _layers(walk, found[-1]) if found else []
    if len(before) != 1 or not _is_1x1(before[0]):
        return False
    made = {name for p in found[-1] for name in walk.writes[p]}
    return made.isdisjoint(_seen_outside(walk, (*found[-1], *segment)))


def _is_depthwise(node: ir.Node) -> bool:
    weight = ir.constant(node.inputs[1]) if node.op_type == "Conv" else None
    group = ir.attributes(node).get("group", 1)
    return weight is not None and group > 1 and group == len(weight)


def _is_1x1(node: ir.Node) -> bool:
    weight = ir.constant(node.inputs[1]) if node.op_type == "Conv" else None
    group = ir.attributes(node).get("group", 1)
    return weight is not None and group == 1 and all(d == 1 for d in weight.shape[2:])


def _on_averages(node: ir.Node) -> bool:
    """Whether the map has one place, as in a squeeze and excitation."""
    return set((ir.shape(node.outputs[0]) or ())[2:]) == {1}


def _serving(walk: _Walk, places: range, layers: Sequence[int]) -> tuple[int, ...]:
    """Those of the nodes that follow from one of the layers or lead to such, with data."""
    serving = set(layers)
    made = {name for p in layers for name in walk.writes[p]}
    for p in places:
        if p in serving or not made.isdisjoint(walk.reads[p]):
            serving.add(p)
            made.update(walk.writes[p])
    wanted = {name for p in serving for name in walk.reads[p]}
    for p in reversed(places):
        if p in serving or not wanted.isdisjoint(walk.writes[p]):
            serving.add(p)
            wanted.update(walk.reads[p])
    return tuple(p for p in places if p in serving and p not in walk.dataless)


def _with_tail(walk: _Walk, layer: int) -> tuple[int, ...]:
    """A layer and the activation behind it, as long as one value comes out."""
    held, best = [layer], 1
    made = set(walk.writes[layer])
    for p in range(layer + 1, len(walk.nodes)):
        if made.isdisjoint(walk.reads[p]):
            continue
        if walk.nodes[p].op_type not in FOLLOWING or not made.issuperset(walk.reads[p]):
            break
        held.append(p)
        made.update(walk.writes[p])
        if len(_seen_outside(walk, held)) == 1:
            best = len(held)
    return tuple(held[:best])


def _seen_outside(walk: _Walk, positions: Sequence[int]) -> tuple[str, ...]:
    """Values of these nodes that others read or the graph gives."""
    inside = set(positions)
    return tuple(
        name
        for p in positions
        for name in walk.writes[p]
        if name in walk.given or not inside.issuperset(walk.data_readers.get(name, ()))
    )


def _units(walk: _Walk, found: Sequence[tuple[int, ...]]) -> tuple[Unit, ...]:
    """Units of these nodes and of those between them that lead to one of them.

    What follows directly on a unit's values is its last part, as the addition behind the last layer
    of a residual block; anything else comes to the first unit that reads it.
    """
    home = {p: number for number, positions in enumerate(found) for p in positions}
    leading = set(home)
    for p in reversed(range(len(walk.nodes))):
        if any(r in leading for name in walk.writes[p] for r in walk.data_readers.get(name, ())):
            leading.add(p)
    between = sorted(leading - home.keys() - walk.dataless)
    latest = dict.fromkeys(range(len(walk.nodes)), -1)
    for p in sorted(leading):
        makers = [walk.maker[name] for name in walk.sources(p) if name in walk.maker]
        last = max((latest[maker] for maker in makers), default=-1)
        follows = walk.nodes[p].op_type in FOLLOWING and last in map(home.get, makers)
        if p in between and follows:
            home[p] = last
        latest[p] = home.get(p, last)
    for p in reversed(between):
        readers = {r for name in walk.writes[p] for r in walk.data_readers.get(name, ())}
        home.setdefault(p, min(home[r] for r in readers & home.keys()))
    for p in between:
        makers = [walk.maker[name] for name in walk.sources(p) if name in walk.moved]
        first = min((home[maker] for maker in makers if maker in home), default=home[p])
        home[p] = first if latest[p] <= first else home[p]
    return tuple(
        _unit(walk, tuple(p for p in sorted(home) if home[p] == number))
        for number in range(len(found))
    )


def _unit(walk: _Walk, positions: tuple[int, ...]) -> Unit:
    made = {name for p in positions for name in walk.writes[p]}
    layers = [walk.nodes[p].name or "" for p in positions if p in walk.layers]
    reads = dict.fromkeys(name for p in positions for name in walk.sources(p))
    return Unit(
        name=layers[0] if len(layers) == 1 else f"{layers[0]}..{layers[-1]}",
        nodes=tuple(walk.nodes[p].name or "" for p in positions),
        layers=tuple(layers),
        inputs=tuple(name for name in reads if name not in made),
        outputs=_seen_outside(walk, positions),
    )
