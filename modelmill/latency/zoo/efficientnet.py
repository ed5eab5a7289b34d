"""EfficientNet (Tan and Le, ICML 2019), table 1: inverted residuals with squeeze-and-excitation and
SiLU, scaled in width, depth and resolution together.
"""

from math import ceil

from modelmill.latency.zoo.dice import Random, chance, near, pick
from modelmill.latency.zoo.mbconv import MBConv, widths
from modelmill.latency.zoo.net import CLASSES, IMAGES, Net, Tensor

# expansion, channels, blocks, stride, kernel
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


def draw(random: Random) -> tuple[Net, Tensor]:
    """Width 0.25 to 1.1 and depth 0.5 to 1.4 of B0; kernels and expansions vary around it."""
    net = Net(pick(random, IMAGES))
    first = 1 if net.input.size <= 64 and chance(random, 0.7) else 2
    factor, depth = pick(random, (0.25, 0.5, 0.75, 1.0, 1.1)), random.uniform(0.5, 1.4)
    x = net.activation(net.conv(net.input, near(random, 32 * factor), 3, first), "silu")
    for expand, channels, blocks, stride, kernel in STAGES:
        width = widths(random, channels, factor)
        if chance(random, 0.3) and expand > 1:
            expand, kernel = pick(random, (3, 4, 6)), pick(random, (3, 5, 7))
        for block in range(ceil(blocks * depth)):
            inside = max(4, x.channels // 4)
            how = MBConv(
                width, kernel, 1 if block else stride, expand, "silu", inside, "sigmoid", "silu"
            )
            x = how(net, x)
    x = net.activation(net.conv(x, near(random, 1280 * min(factor, 1))), "silu")
    return net, net.linear(net.flatten(net.global_pool(x)), pick(random, CLASSES))


PLUGIN = draw
