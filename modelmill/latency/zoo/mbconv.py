"""The inverted residual block (Sandler et al., CVPR 2018) with squeeze-and-excitation (Hu et al.,
CVPR 2018), which MobileNetV2, V3, MnasNet and EfficientNet are made of.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelmill.latency.zoo.dice import Random, between, near
from modelmill.latency.zoo.net import Net, Tensor


@dataclass(frozen=True)
class MBConv:
    """Expand by 1x1, depthwise convolution, squeeze-and-excitation, project by 1x1, residual.

    squeeze: channels of the squeeze, 0 for none; gate: the activation that ends it, inner: the one
    inside. activation: of the two other convolutions.
    """

    channels: int
    kernel: int = 3
    stride: int = 1
    expand: float = 6
    activation: str = "relu6"
    squeeze: int = 0
    gate: str = "sigmoid"
    inner: str = "relu"

    def __call__(self, net: Net, x: Tensor) -> Tensor:
        y = x
        if self.expand != 1:
            width = max(8, round(x.channels * self.expand / 8) * 8)
            y = net.activation(net.conv(x, width), self.activation)
        y = net.activation(net.depthwise(y, self.kernel, self.stride), self.activation)
        if self.squeeze:
            s = net.activation(net.conv(net.global_pool(y), self.squeeze), self.inner)
            y = net.mul(y, net.activation(net.conv(s, y.channels), self.gate))
        y = net.conv(y, self.channels)
        return net.add(x, y) if y.shape == x.shape else y


def depths(random: Random, published: int) -> int:
    """Blocks of a stage: one fewer to two more than published, at least one."""
    return max(1, between(random, published - 1, published + 2))


def widths(random: Random, published: int, factor: float) -> int:
    """Channels of a stage: the published ones times the factor of the network, and a little."""
    return near(random, published * factor, 1.25)
