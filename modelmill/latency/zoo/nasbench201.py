"""NAS-Bench-201 (Dong and Yang, ICLR 2020): one cell of four nodes and six edges, each edge one of
five operations, in three stages with a residual block between them.

Edges that can only carry zeros are left out, as an engine's constant folding would; the published
networks have 16 channels, five cells per stage and pictures of 32 pixels, here these vary too.
"""

from __future__ import annotations

from modelmill.latency.zoo.dice import Random, between, pick
from modelmill.latency.zoo.net import Net, Tensor

OPERATIONS = ("none", "skip", "conv1", "conv3", "pool3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


def draw(random: Random) -> tuple[Net, Tensor]:
    """A cell whose output is connected to its input, 8 to 32 channels, one to five cells."""
    cell = _cell(random)
    net = Net(pick(random, (32, 32, 64)))
    channels, repeats = pick(random, (8, 16, 16, 24, 32)), between(random, 1, 5)
    x = net.conv(net.input, channels, 3)
    for stage in range(3):
        if stage:
            x = _reduce(net, x, channels * 2**stage)
        for _ in range(repeats):
            x = _apply(net, x, cell)
    x = net.activation(net.batch_norm(x), "relu")
    return net, net.linear(net.flatten(net.global_pool(x)), pick(random, (10, 100, 120)))


def _cell(random: Random) -> dict[tuple[int, int], str]:
    """Operations of the edges that lie on a way from the input to the output."""
    while True:
        cell = {edge: pick(random, OPERATIONS) for edge in EDGES}
        live = {edge: op for edge, op in cell.items() if op != "none"}
        forward, backward = {0}, {3}
        for a, b in EDGES:
            forward |= {b} if (a, b) in live and a in forward else set()
        for a, b in sorted(EDGES, reverse=True):
            backward |= {a} if (a, b) in live and b in backward else set()
        kept = {e: op for e, op in live.items() if e[0] in forward and e[1] in backward}
        if kept:
            return kept


def _apply(net: Net, x: Tensor, cell: dict[tuple[int, int], str]) -> Tensor:
    nodes = {0: x}
    for end in (1, 2, 3):
        for (a, b), operation in cell.items():
            if b != end:
                continue
            y = _edge(net, nodes[a], operation)
            nodes[end] = net.add(nodes[end], y) if end in nodes else y
    return nodes[3]


def _edge(net: Net, x: Tensor, operation: str) -> Tensor:
    if operation == "skip":
        return x
    if operation == "pool3":
        return net.average_pool(x, 3, 1, 1)
    kernel = 1 if operation == "conv1" else 3
    return net.conv(net.activation(x, "relu"), x.channels, kernel)


def _reduce(net: Net, x: Tensor, channels: int) -> Tensor:
    """The residual block with stride 2 between two stages."""
    y = net.conv(net.activation(x, "relu"), channels, 3, 2)
    y = net.conv(net.activation(y, "relu"), channels, 3)
    return net.add(net.conv(net.average_pool(x, 2, 2), channels), y)


PLUGIN = draw
