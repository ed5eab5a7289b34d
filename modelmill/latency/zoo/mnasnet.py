"""MnasNet (Tan et al., CVPR 2019), figure 7 and its search space: a separable convolution, then
inverted residuals with or without squeeze-and-excitation, ReLU throughout.
"""

from modelmill.latency.zoo.dice import Random, chance, near, pick
from modelmill.latency.zoo.mbconv import MBConv, depths, widths
from modelmill.latency.zoo.net import CLASSES, IMAGES, Net, Tensor

STAGES = ((24, 2, 2), (40, 3, 2), (80, 4, 2), (112, 2, 1), (160, 3, 2), (320, 1, 1))


def draw(random: Random) -> tuple[Net, Tensor]:
    """Stages (channels, blocks, stride) around MnasNet-A1; expansion 3 or 6, kernel 3 or 5."""
    net = Net(pick(random, IMAGES))
    first = 1 if net.input.size <= 64 and chance(random, 0.7) else 2
    factor = pick(random, (0.35, 0.5, 0.75, 1.0, 1.3))
    x = net.activation(net.conv(net.input, near(random, 32 * factor), 3, first), "relu")
    x = net.activation(net.depthwise(x, 3), "relu")
    x = net.conv(x, near(random, 16 * factor))
    for channels, blocks, stride in STAGES:
        width, kernel, expand = (
            widths(random, channels, factor),
            pick(random, (3, 5)),
            pick(random, (3, 6)),
        )
        squeezed = chance(random, 0.4)
        for block in range(depths(random, blocks)):
            inside = max(4, x.channels // 4) if squeezed else 0
            x = MBConv(width, kernel, 1 if block else stride, expand, "relu", inside)(net, x)
    x = net.activation(net.conv(x, near(random, 1280 * min(factor, 1))), "relu")
    return net, net.linear(net.flatten(net.global_pool(x)), pick(random, CLASSES))


PLUGIN = draw
