"""Vision transformer (Dosovitskiy et al., ICLR 2021), small ones as in DeiT (Touvron et al.,
ICML 2021).
"""

from __future__ import annotations

from modelmill.latency.zoo.dice import Random, between, chance, pick
from modelmill.latency.zoo.net import CLASSES, IMAGES, Net, Tensor

TOKENS = 257  # at most


def draw(random: Random) -> tuple[Net, Tensor]:
    """2 to 12 blocks of width 64 to 384, heads of 16 to 64, patches of 4 to 32 pixels."""
    pixels = pick(random, IMAGES)
    patches = [p for p in (4, 8, 16, 32) if pixels // p >= 4 and (pixels // p) ** 2 < TOKENS]
    net, patch = Net(pixels), pick(random, patches)
    head = pick(random, (16, 32, 64))
    width = head * between(random, max(1, 64 // head), 384 // head)
    ratio, apart = pick(random, (2, 3, 4)), chance(random, 0.4)
    x = net.conv(net.input, width, patch, patch, padding=0)
    count = x.size**2
    x = net.transpose(net.reshape(x, (1, width, count)), (0, 2, 1))
    class_token = chance(random, 0.5)
    if class_token:
        x = net.concat([net.parameter((1, 1, width)), x], axis=1)
    x = net.add(x, net.parameter((1, x.shape[1], width)))
    for _ in range(between(random, 2, 12)):
        x = net.add(x, _attention(net, net.layer_norm(x), head, apart))
        y = net.activation(net.project(net.layer_norm(x), ratio * width), "gelu")
        x = net.add(x, net.project(y, width))
    x = net.layer_norm(x)
    y = net.take(x, 0, axis=1) if class_token else net.mean(x)
    return net, net.linear(y, pick(random, CLASSES))


def _attention(net: Net, x: Tensor, head: int, apart: bool) -> Tensor:
    """Self-attention with heads of width `head`; query, key and value projected apart
    or at once.
    """
    _, count, width = x.shape
    heads = width // head
    if apart:
        parts = [net.reshape(net.project(x, width), (1, count, heads, head)) for _ in range(3)]
        q, v = (net.transpose(part, (0, 2, 1, 3)) for part in (parts[0], parts[2]))
        k = net.transpose(parts[1], (0, 2, 3, 1))
    else:
        joined = net.reshape(net.project(x, 3 * width), (1, count, 3, heads, head))
        joined = net.transpose(joined, (2, 0, 3, 1, 4))
        q, k, v = (net.take(joined, index) for index in range(3))
        k = net.transpose(k, (0, 1, 3, 2))
    scores = net.scale(net.matmul(q, k), head**-0.5)
    mixed = net.transpose(net.matmul(net.softmax(scores), v), (0, 2, 1, 3))
    return net.project(net.reshape(mixed, (1, count, width)), width)


PLUGIN = draw
