"""A network in the making: layers are noted with their shapes, weights are drawn when it is done.

So a draw that turns out too large costs microseconds. Batch norms are folded into the convolutions
before them, as exporters do and as `build` does. Weights are uniform with the variance 2 / fan-in
of He et al. (2015), biases small: no value overflows and none is denormal, which would be slow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelmill import ir
from modelmill.ir.assemble import Call, assemble

OPSET = 17  # the first with LayerNormalization
BIAS = 0.1  # biases are uniform in +-BIAS
IMAGES = (32, 64, 96, 128, 160, 224)  # pixels, square
CLASSES = (10, 100, 1000)


@dataclass(frozen=True)
class Tensor:
    """A value of the network, by name."""

    name: str
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        return self.shape[1]

    @property
    def size(self) -> int:
        """Height and width, which are equal."""
        return self.shape[2]


class Net:
    """Layers of one network whose input `x` is a square picture of three channels, batch 1.

    macs, params: multiply-accumulates and weights of its layers so far.
    """

    def __init__(self, pixels: int) -> None:
        self.input = Tensor("input", (1, 3, pixels, pixels))
        self.macs = 0
        self.params = 0
        self._calls: list[Call] = []
        self._weights: dict[str, tuple[tuple[int, ...], float]] = {}  # name -> shape, half width
        self._given: dict[str, np.ndarray] = {}

    # ------------------------------------------------------------ layers with weights

    def conv(
        self,
        x: Tensor,
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        padding: int | None = None,
    ) -> Tensor:
        """Convolution with bias; `padding` None keeps the size at stride 1."""
        pad = kernel // 2 if padding is None else padding
        size = (x.size + 2 * pad - kernel) // stride + 1
        shape = (channels, x.channels // groups, kernel, kernel)
        attributes = {
            "dilations": [1, 1],
            "group": groups,
            "kernel_shape": [kernel, kernel],
            "pads": [pad] * 4,
            "strides": [stride, stride],
        }
        made = (1, channels, size, size)
        self.macs += math.prod(made) * math.prod(shape[1:])
        weight, bias = self._weight(shape, math.prod(shape[1:])), self._bias(channels)
        return self._call("Conv", (x.name, weight, bias), made, attributes)

    def depthwise(self, x: Tensor, kernel: int, stride: int = 1) -> Tensor:
        """Convolution of each channel with a kernel of its own."""
        return self.conv(x, x.channels, kernel, stride, groups=x.channels)

    def linear(self, x: Tensor, width: int) -> Tensor:
        """A fully connected layer on (1, n)."""
        n = x.shape[1]
        self.macs += n * width
        read = (x.name, self._weight((width, n), n), self._bias(width))
        attributes = {"alpha": 1.0, "beta": 1.0, "transB": 1}
        return self._call("Gemm", read, (1, width), attributes)

    def project(self, x: Tensor, width: int) -> Tensor:
        """A linear layer on the last of three dimensions: MatMul, then Add, as exporters write."""
        n = x.shape[-1]
        self.macs += math.prod(x.shape) * width
        shape = (*x.shape[:-1], width)
        product = self._call("MatMul", (x.name, self._weight((n, width), n)), shape)
        return self._call("Add", (product.name, self._bias(width)), shape)

    def layer_norm(self, x: Tensor) -> Tensor:
        """Over the last dimension."""
        width = x.shape[-1]
        scale = self.constant("scale", np.ones(width, np.float32))
        read = (x.name, scale, self._bias(width))
        return self._call("LayerNormalization", read, x.shape, {"axis": -1, "epsilon": 1e-6})

    def batch_norm(self, x: Tensor) -> Tensor:
        """One that stands behind no convolution, and therefore stays."""
        ones, n = np.ones(x.channels, np.float32), x.channels
        scale, variance = self.constant("scale", ones), self.constant("variance", ones)
        read = (x.name, scale, self._bias(n), self._bias(n), variance)
        return self._call("BatchNormalization", read, x.shape, {"epsilon": 1e-5})

    def parameter(self, shape: tuple[int, ...]) -> Tensor:
        """A learned tensor, such as the positions of a transformer."""
        name = f"parameter_{len(self._weights)}"
        self._weights[name] = (shape, BIAS)
        self.params += math.prod(shape)
        return Tensor(name, shape)

    # ------------------------------------------------------------ layers without

    def activation(self, x: Tensor, kind: str) -> Tensor:
        """relu, relu6, hardswish, hardsigmoid, sigmoid, silu, gelu; silu and gelu in the operators
        that exporters spell them with.
        """
        if kind == "relu6":
            low = self.constant("zero", np.float32(0))
            return self._call("Clip", (x.name, low, self.constant("six", np.float32(6))), x.shape)
        if kind == "silu":
            return self.mul(x, self.activation(x, "sigmoid"))
        if kind == "gelu":  # x / 2 * (1 + erf(x / sqrt 2))
            root = self.constant("root2", np.float32(math.sqrt(2)))
            scaled = self._call("Div", (x.name, root), x.shape)
            erf = self._call("Erf", (scaled.name,), x.shape)
            one, half = (self.constant(f"c{c}", np.float32(c)) for c in (1, 0.5))
            more = self._call("Add", (erf.name, one), x.shape)
            return self._call("Mul", (self.mul(x, more).name, half), x.shape)
        names = {"relu": "Relu", "hardswish": "HardSwish", "sigmoid": "Sigmoid"}
        if kind == "hardsigmoid":
            return self._call("HardSigmoid", (x.name,), x.shape, {"alpha": 1 / 6})
        return self._call(names[kind], (x.name,), x.shape)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self._call("Add", (a.name, b.name), a.shape)

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        """`b` may have height and width 1."""
        return self._call("Mul", (a.name, b.name), a.shape)

    def scale(self, x: Tensor, factor: float) -> Tensor:
        return self._call("Mul", (x.name, self.constant("factor", np.float32(factor))), x.shape)

    def concat(self, tensors: Sequence[Tensor], axis: int = 1) -> Tensor:
        shape = list(tensors[0].shape)
        shape[axis] = sum(t.shape[axis] for t in tensors)
        return self._call("Concat", tuple(t.name for t in tensors), tuple(shape), {"axis": axis})

    def max_pool(self, x: Tensor, kernel: int, stride: int, padding: int = 0) -> Tensor:
        attributes = self._window(kernel, stride, padding)
        return self._call(
            "MaxPool", (x.name,), self._pooled(x, kernel, stride, padding), attributes
        )

    def average_pool(self, x: Tensor, kernel: int, stride: int, padding: int = 0) -> Tensor:
        """Padding is not counted."""
        attributes = self._window(kernel, stride, padding) | {"count_include_pad": 0}
        shape = self._pooled(x, kernel, stride, padding)
        return self._call("AveragePool", (x.name,), shape, attributes)

    def global_pool(self, x: Tensor) -> Tensor:
        return self._call("GlobalAveragePool", (x.name,), (1, x.channels, 1, 1))

    def flatten(self, x: Tensor) -> Tensor:
        return self._call("Flatten", (x.name,), (1, math.prod(x.shape[1:])), {"axis": 1})

    def reshape(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        target = self.constant("shape", np.array(shape, np.int64))
        return self._call("Reshape", (x.name, target), shape)

    def transpose(self, x: Tensor, order: tuple[int, ...]) -> Tensor:
        shape = tuple(x.shape[i] for i in order)
        return self._call("Transpose", (x.name,), shape, {"perm": list(order)})

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        shape = (*a.shape[:-1], b.shape[-1])
        self.macs += math.prod(shape) * a.shape[-1]
        return self._call("MatMul", (a.name, b.name), shape)

    def softmax(self, x: Tensor) -> Tensor:
        return self._call("Softmax", (x.name,), x.shape, {"axis": -1})

    def take(self, x: Tensor, index: int, axis: int = 0) -> Tensor:
        """Element `index` of a dimension, which goes."""
        where = self.constant("index", np.array(index, np.int64))
        shape = x.shape[:axis] + x.shape[axis + 1 :]
        return self._call("Gather", (x.name, where), shape, {"axis": axis})

    def mean(self, x: Tensor) -> Tensor:
        """Over dimension 1, which goes."""
        shape = (x.shape[0], *x.shape[2:])
        return self._call("ReduceMean", (x.name,), shape, {"axes": [1], "keepdims": 0})

    # ------------------------------------------------------------ the whole

    def graph(self, name: str, output: Tensor, random: np.random.Generator) -> ir.Graph:
        """The network as a graph, with weights drawn from `random`."""
        drawn = dict(self._given)
        for key, (shape, half) in self._weights.items():
            drawn[key] = (random.random(shape, np.float32) - np.float32(0.5)) * np.float32(2 * half)
        inputs = {self.input.name: self.input.shape}
        return assemble(name, inputs, self._calls, [output.name], drawn, OPSET)

    def constant(self, stem: str, array: Any) -> str:
        """A constant with that content; its name."""
        name = f"{stem}_{len(self._given)}"
        self._given[name] = np.asarray(array)
        return name

    def _weight(self, shape: tuple[int, ...], fan_in: int) -> str:
        name = f"weight_{len(self._weights)}"
        self._weights[name] = (shape, math.sqrt(6 / fan_in))  # variance of U(-a, a): a^2 / 3
        self.params += math.prod(shape)
        return name

    def _bias(self, n: int) -> str:
        name = f"bias_{len(self._weights)}"
        self._weights[name] = ((n,), BIAS)
        self.params += n
        return name

    def _call(
        self,
        op: str,
        inputs: tuple[str, ...],
        shape: tuple[int, ...],
        attributes: dict[str, Any] | None = None,
    ) -> Tensor:
        made = Tensor(f"value_{len(self._calls)}", shape)
        self._calls.append(Call(op, inputs, {made.name: shape}, attributes or {}))
        return made

    @staticmethod
    def _pooled(x: Tensor, kernel: int, stride: int, padding: int) -> tuple[int, ...]:
        size = (x.size + 2 * padding - kernel) // stride + 1
        return (1, x.channels, size, size)

    @staticmethod
    def _window(kernel: int, stride: int, padding: int) -> dict[str, Any]:
        return {
            "kernel_shape": [kernel, kernel],
            "pads": [padding] * 4,
            "strides": [stride, stride],
            "ceil_mode": 0,
        }
