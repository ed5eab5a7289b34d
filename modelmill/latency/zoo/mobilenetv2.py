"""MobileNetV2 (Sandler et al., CVPR 2018), table 2: inverted residuals with linear bottlenecks."""

from modelmill.latency.zoo.dice import Random, chance, near, pick
from modelmill.latency.zoo.mbconv import MBConv, depths, widths
from modelmill.latency.zoo.net import CLASSES, IMAGES, Net, Tensor

STAGES = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))


def draw(random: Random) -> tuple[Net, Tensor]:
    """Stages (channels, blocks, stride) around the published; expansion 1 to 6, kernel 3 to 7."""
    net = Net(pick(random, IMAGES))
    first = 1 if net.input.size <= 64 and chance(random, 0.7) else 2
    factor = pick(random, (0.35, 0.5, 0.75, 1.0, 1.4))
    x = net.activation(net.conv(net.input, near(random, 32 * factor), 3, first), "relu6")
    for stage, (channels, blocks, stride) in enumerate(STAGES):
        width, kernel = widths(random, channels, factor), pick(random, (3, 3, 5, 7))
        expand = pick(random, (3, 4, 6)) if stage else 1
        for block in range(depths(random, blocks)):
            x = MBConv(width, kernel, 1 if block else stride, expand)(net, x)
    x = net.activation(net.conv(x, near(random, 1280 * min(factor, 1))), "relu6")
    return net, net.linear(net.flatten(net.global_pool(x)), pick(random, CLASSES))


PLUGIN = draw
