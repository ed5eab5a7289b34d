"""VGG (Simonyan and Zisserman, ICLR 2015): stages of convolutions, each ended by a max pool."""

from modelmill.latency.zoo.dice import Random, between, near, pick
from modelmill.latency.zoo.net import CLASSES, IMAGES, Net, Tensor


def draw(random: Random) -> tuple[Net, Tensor]:
    """Three to five stages of one to four convolutions, then one to three fully connected layers.
    Widths from an eighth of the published ones.
    """
    net = Net(pick(random, IMAGES))
    base = near(random, pick(random, (8, 16, 32, 64)))
    kernel = pick(random, (3, 3, 3, 5))
    x = net.input
    for stage in range(between(random, 3, 5)):
        width = near(random, base * min(2**stage, 8), 1.3)
        for _ in range(between(random, 1, 4)):
            x = net.activation(net.conv(x, width, kernel), "relu")
        x = net.max_pool(x, 2, 2)
    y = net.flatten(x)
    for _ in range(between(random, 0, 2)):
        y = net.activation(net.linear(y, near(random, 512, 4, 32)), "relu")
    return net, net.linear(y, pick(random, CLASSES))


PLUGIN = draw
