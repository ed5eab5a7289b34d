"""AlexNet (Krizhevsky, 2014: "One weird trick", without local response normalisation): five
convolutions with large kernels first, then fully connected layers.
"""

from modelmill.latency.zoo.dice import Random, between, chance, near, pick
from modelmill.latency.zoo.net import CLASSES, IMAGES, Net, Tensor

WIDTHS = (64, 192, 384, 256, 256)


def draw(random: Random) -> tuple[Net, Tensor]:
    """Kernels and widths around the published ones; on small pictures the first steps are short."""
    net = Net(pick(random, IMAGES))
    small = net.input.size <= 64
    factor = pick(random, (0.25, 0.5, 1.0))
    kernels = [
        pick(random, (3, 5) if small else (7, 9, 11)),
        pick(random, (3, 5)),
        *(pick(random, (3, 3, 5)) for _ in range(between(random, 2, 4))),
    ]
    x = net.input
    for index, kernel in enumerate(kernels):
        stride = 1 if index else pick(random, (1, 2) if small else (2, 4))
        width = near(random, WIDTHS[min(index, 4)] * factor)
        x = net.activation(net.conv(x, width, kernel, stride), "relu")
        last = index == len(kernels) - 1
        if (index < 2 or last or chance(random, 0.1)) and x.size >= 3:
            x = net.max_pool(x, pick(random, (2, 3)), 2)
    y = net.flatten(x)
    for _ in range(between(random, 1, 2)):
        y = net.activation(net.linear(y, near(random, 1024, 4, 32)), "relu")
    return net, net.linear(y, pick(random, CLASSES))


PLUGIN = draw
