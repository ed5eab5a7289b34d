"""Families of networks, drawn at random: what the latency of is measured to learn from.

Each family is a file with a `draw(random) -> (Net, output)`: the architecture of its paper, with
widths, depths, kernels, strides, expansions and input size drawn around the published ones, as
NNLQP did (Liu et al., "NNLQP", ICPP 2022). A draw counts if its size lies within MACS and PARAMS,
which on one core of a server is an inference of about 0.1 to 30 ms; else it is drawn again. To
reach small and large ones alike, the MACs aimed at are drawn first, and of a few draws the nearest
to them is taken.
"""

from __future__ import annotations

import zlib
from math import log

import numpy as np

from modelmill import ir, plugins
from modelmill.latency.zoo.dice import Random
from modelmill.latency.zoo.net import Net, Tensor

MACS = (5e6, 6e8)
PARAMS = 1e7
CANDIDATES = 4
_ATTEMPTS = 4000


def families() -> tuple[str, ...]:
    """Names of the families."""
    return tuple(plugins.names(__name__))


def draw(family: str, number: int, seed: int = 0) -> tuple[str, ir.Graph]:
    """Network `number` of a family: its name and graph. Same arguments, same bytes.

    Raises:
        ValueError: no such family (lists them).
    """
    random = np.random.default_rng([seed, number, zlib.crc32(family.encode())])
    aim = log(MACS[0]) + random.random() * (log(MACS[1]) - log(MACS[0]))
    found = [_fitting(family, random) for _ in range(CANDIDATES)]
    net, output = min(found, key=lambda pair: abs(log(pair[0].macs) - aim))
    name = f"{family}-{seed}-{number}"
    return name, net.graph(name, output, random)


def reference() -> ir.Graph:
    """A fixed network that is timed beside every other: convolutions of the usual kinds and a
    matrix product, about 40 million MACs, and with 2.5 million weights more than most second-level
    caches hold, so that it feels what neighbours do to memory; 0.5 to 3 ms.
    """
    net = Net(48)
    x = net.activation(net.conv(net.input, 32, 3, 2), "relu")
    x = net.activation(net.conv(x, 64, 3), "relu")
    x = net.activation(net.depthwise(x, 3), "relu")
    y = net.activation(net.conv(x, 128, 1), "relu")
    x = net.add(net.conv(y, 64, 1), x)
    x = net.activation(net.conv(x, 128, 3, 2), "relu")
    x = net.activation(net.conv(x, 256, 1), "relu")
    x = net.linear(net.flatten(x), 64)
    return net.graph("reference", x, np.random.default_rng(0))


def _fitting(family: str, random: Random) -> tuple[Net, Tensor]:
    make = plugins.load(__name__, family)
    for _ in range(_ATTEMPTS):
        net, output = make(random)
        if MACS[0] <= net.macs <= MACS[1] and net.params <= PARAMS:
            return net, output
    raise AssertionError(f"family {family} gives nothing of the wanted size")
