"""MobileNetV3 (Howard et al., ICCV 2019), tables 1 and 2: large and small."""

from modelmill.latency.zoo.dice import Random, between, chance, near, pick
from modelmill.latency.zoo.mbconv import MBConv, depths, widths
from modelmill.latency.zoo.net import CLASSES, IMAGES, Net, Tensor

# channels, blocks, stride, kernel, squeeze-and-excitation, activation
LARGE = (
    (16, 1, 1, 3, False, "relu"),
    (24, 2, 2, 3, False, "relu"),
    (40, 3, 2, 5, True, "relu"),
    (80, 4, 2, 3, False, "hardswish"),
    (112, 2, 1, 3, True, "hardswish"),
    (160, 3, 2, 5, True, "hardswish"),
)
SMALL = (
    (16, 1, 2, 3, True, "relu"),
    (24, 2, 2, 3, False, "relu"),
    (40, 3, 2, 5, True, "hardswish"),
    (48, 2, 1, 5, True, "hardswish"),
    (96, 3, 2, 5, True, "hardswish"),
)


def draw(random: Random) -> tuple[Net, Tensor]:
    """Stages around the published; in a fifth of them another kernel, squeeze or activation."""
    net = Net(pick(random, IMAGES))
    first = 1 if net.input.size <= 64 and chance(random, 0.7) else 2
    factor = pick(random, (0.35, 0.5, 0.75, 1.0, 1.25))
    x = net.activation(net.conv(net.input, near(random, 16 * factor), 3, first), "hardswish")
    for channels, blocks, stride, kernel, squeezed, activation in pick(random, (LARGE, SMALL)):
        width = widths(random, channels, factor)
        if chance(random, 0.2):
            kernel, squeezed = pick(random, (3, 5, 7)), chance(random, 0.5)
        expand = between(random, 4, 12) / 2
        for block in range(depths(random, blocks)):
            inside = max(8, round(x.channels * expand / 4 / 8) * 8) if squeezed else 0
            how = MBConv(
                width, kernel, 1 if block else stride, expand, activation, inside, "hardsigmoid"
            )
            x = how(net, x)
    x = net.activation(net.conv(x, x.channels * 6), "hardswish")
    y = net.flatten(net.global_pool(x))
    y = net.activation(net.linear(y, near(random, 1024)), "hardswish")
    return net, net.linear(y, pick(random, CLASSES))


PLUGIN = draw
