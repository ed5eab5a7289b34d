"""SqueezeNet (Iandola et al., 2016): fire modules, which squeeze channels by 1x1 convolutions and
expand them by 1x1 and 3x3 ones side by side.
"""

from modelmill.latency.zoo.dice import Random, between, chance, near, pick
from modelmill.latency.zoo.net import CLASSES, IMAGES, Net, Tensor


def draw(random: Random) -> tuple[Net, Tensor]:
    """Six to ten fire modules; squeeze ratio, share of 3x3, growth and bypass drawn as in the
    paper's design space.
    """
    net = Net(pick(random, IMAGES))
    small = net.input.size <= 64
    base, growth = near(random, pick(random, (32, 64, 128))), near(random, 96, 2)
    ratio, share = pick(random, (0.125, 0.25, 0.5)), pick(random, (0.25, 0.5, 0.75))
    bypass, kernel = chance(random, 0.4), pick(random, (3, 3, 5))
    first = pick(random, (3,) if small else (3, 5, 7))
    x = net.activation(net.conv(net.input, near(random, 64), first, 1 if small else 2), "relu")
    every = between(random, 2, 4)
    for index in range(between(random, 6, 10)):
        if index % every == 0 and x.size >= 3:
            x = net.max_pool(x, 3, 2)
        width = base + growth * (index // 2)
        wide = max(8, round(width * share / 8) * 8)
        squeeze = max(8, round(width * ratio / 8) * 8)
        x = _fire(net, x, squeeze, (max(8, width - wide), wide, kernel), bypass)
    x = net.activation(net.conv(x, pick(random, CLASSES)), "relu")
    return net, net.flatten(net.global_pool(x))


def _fire(net: Net, x: Tensor, squeeze: int, expand: tuple[int, int, int], bypass: bool) -> Tensor:
    """`expand` is (channels of the 1x1, of the other convolution, its kernel)."""
    narrow, wide, kernel = expand
    s = net.activation(net.conv(x, squeeze), "relu")
    a = net.activation(net.conv(s, narrow), "relu")
    b = net.activation(net.conv(s, wide, kernel), "relu")
    y = net.concat([a, b])
    return net.add(y, x) if bypass and y.shape == x.shape else y


PLUGIN = draw
