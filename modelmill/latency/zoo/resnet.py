"""ResNet (He et al., CVPR 2016): basic or bottleneck blocks; groups as in ResNeXt (CVPR 2017)."""

from modelmill.latency.zoo.dice import Random, between, chance, near, pick
from modelmill.latency.zoo.net import CLASSES, IMAGES, Net, Tensor


def draw(random: Random) -> tuple[Net, Tensor]:
    """Three or four stages of one to four blocks, widths around 16 to 64 and doubling."""
    net = Net(pick(random, IMAGES))
    small = net.input.size <= 64
    base = near(random, pick(random, (16, 32, 64)))
    kernel = 3 if small else pick(random, (3, 5, 7))
    x = net.activation(net.conv(net.input, base, kernel, 1 if small else 2), "relu")
    if not small and chance(random, 0.8):
        x = net.max_pool(x, 3, 2, 1)
    bottleneck, inner = chance(random, 0.4), pick(random, (3, 3, 3, 5))
    groups = pick(random, (1, 1, 2, 4, 8)) if bottleneck else 1
    for stage in range(between(random, 3, 4)):
        width = near(random, base * 2**stage, 1.3)
        for block in range(between(random, 1, 4)):
            stride = 2 if stage and not block else 1
            x = _block(net, x, width, stride, bottleneck, inner, groups)
    return net, net.linear(net.flatten(net.global_pool(x)), pick(random, CLASSES))


def _block(
    net: Net, x: Tensor, width: int, stride: int, bottleneck: bool, kernel: int, groups: int
) -> Tensor:
    if bottleneck:
        channels = 4 * width
        y = net.activation(net.conv(x, width, 1), "relu")
        y = net.activation(net.conv(y, width, kernel, stride, groups), "relu")
        y = net.conv(y, channels, 1)
    else:
        channels = width
        y = net.activation(net.conv(x, width, kernel, stride), "relu")
        y = net.conv(y, width, kernel)
    if stride > 1 or x.channels != channels:
        x = net.conv(x, channels, 1, stride)
    return net.activation(net.add(y, x), "relu")


PLUGIN = draw
