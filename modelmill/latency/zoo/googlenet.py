"""GoogLeNet (Szegedy et al., CVPR 2015): inception modules of four branches; batch norms in the
place of local response normalisation, no auxiliary outputs.
"""

from modelmill.latency.zoo.dice import Random, between, chance, near, pick
from modelmill.latency.zoo.net import CLASSES, IMAGES, Net, Tensor


def draw(random: Random) -> tuple[Net, Tensor]:
    """Three stages of one to four inception modules, widths from a quarter of the published."""
    net = Net(pick(random, IMAGES))
    small = net.input.size <= 64
    factor = pick(random, (0.25, 0.5, 1.0))
    kernel = 3 if small else pick(random, (5, 7))
    x = _unit(net, net.input, near(random, 64 * factor), kernel, 1 if small else 2)
    if not small:
        x = net.max_pool(x, 3, 2, 1)
    x = _unit(net, x, near(random, 64 * factor), 1)
    x = _unit(net, x, near(random, 192 * factor), 3)
    large = pick(random, (3, 5, 5))
    for stage in range(3):
        x = net.max_pool(x, 3, 2, 1)
        for _ in range(between(random, 1, 4)):
            x = _inception(net, x, random, (256 + 256 * stage) * factor, large)
    return net, net.linear(net.flatten(net.global_pool(x)), pick(random, CLASSES))


def _inception(net: Net, x: Tensor, random: Random, width: float, large: int) -> Tensor:
    a = _unit(net, x, near(random, width / 4))
    b = _unit(net, _unit(net, x, near(random, width * 3 / 8)), near(random, width / 2), 3)
    c = _unit(net, _unit(net, x, near(random, width / 16)), near(random, width / 8), large)
    pool = net.average_pool if chance(random, 0.2) else net.max_pool
    d = _unit(net, pool(x, 3, 1, 1), near(random, width / 8))
    return net.concat([a, b, c, d])


def _unit(net: Net, x: Tensor, channels: int, kernel: int = 1, stride: int = 1) -> Tensor:
    return net.activation(net.conv(x, channels, kernel, stride), "relu")


PLUGIN = draw
