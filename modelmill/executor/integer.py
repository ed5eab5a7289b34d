"""Simulate a quantized graph in an engine's own integer arithmetic.

A tensor with an encoding is held as its codes minus the zero point ("centred codes"), integers in a
float32 tensor: padding with the real 0 is then padding with 0, and ops that move elements run
unchanged. The formulas (s scale, z zero point, a centred code; x, w inputs, y output; round is half
to even, every operation in float32 unless said otherwise):

    Conv, Gemm, MatMul   acc = sum x_a w_a + b_a                      exact integers
      "multiply"         y = clamp(round(acc * (s_x s_w / s_y)))      clamp also does ReLU and Clip
      "range"            y = clamp(round(fma(acc * (s_x s_w) + b, k, -low k)))
      "dequantize"       r = acc * (s_x s_w) + b;  activation;  y = clamp(round(r / s_y))
    Add "fma"            y = round(fma(x1, s1/sy, fma(x2, s2/sy, z_y - (s1/sy z1 + s2/sy z2)))), x1,
                         x2 codes
    Mul "multiply"       y = round(x1_a x2_a * (s1 s2 / sy) + z_y)
    AveragePool          sum of dequantized elements in window order, / count, round(r / s_y + z_y)
    GlobalAveragePool    sum of x_a, exact, y = clamp(round(sum * (s_x / (s_y * count))))
    anything else        dequantized, computed in float32, quantized again

An accumulator is exact in float32 as long as every partial sum stays below 2^24, which is checked
against the weights of the layer; otherwise the layer is computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelmill import ir
from modelmill.executor.bind import Call, bind, tensor, unsupported
from modelmill.ir import Plan
from modelmill.numerics import Arithmetic, Encoding

# Ops that only move, repeat or select elements: the same on centred codes as on real numbers.
MOVEMENT = frozenset(
    [
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Slice",
        "Gather",
        "Expand",
        "Tile",
        "Pad",
        "MaxPool",
        "Resize",
        "Identity",
        "Concat",
        "Split",
        "DepthToSpace",
        "SpaceToDepth",
    ]
)
EXACT_FLOAT32 = 2**24
Visit = Callable[[str, Tensor], Tensor | None]


@dataclass(frozen=True)
class Codes:
    """A quantized tensor: centred codes in float32, and what they mean."""

    centred: Tensor
    encoding: Encoding

    @property
    def real(self) -> Tensor:
        """The real numbers, float32."""
        return self.centred * _scale(self.encoding, self.centred.dim())

    @property
    def codes(self) -> Tensor:
        """The codes as the engine stores them, int32."""
        return (
            self.centred + _along(self.encoding.zero_point, self.encoding, self.centred.dim())
        ).int()


class IntegerModule:
    """A float graph, its plan and an engine's arithmetic: what the engine will compute.

    Peak memory: the values alive at once of one batch, four bytes an element.
    """

    def __init__(self, graph: ir.Graph, plan: Plan, arithmetic: Arithmetic) -> None:
        """Prepare every node.

        Raises:
            ValueError: an operator is not supported, or a point has no encoding.
        """
        missing = unsupported(graph)
        if missing:
            where, op = missing[0]
            raise ValueError(
                f"the executor has no operator {op} (node {where!r}); it cannot be simulated"
            )
        self.plan, self.arithmetic = plan, arithmetic
        self.encodings = plan.encodings()
        self.nodes = ir.nodes(graph)
        self.inputs = [v.name or "" for v in graph.graph.inputs if not v.is_initializer()]
        self.outputs = [v.name or "" for v in graph.graph.outputs]
        self.calls = {id(n): bind(n, ir.opset(graph)) for n in self.nodes}
        self.arrays = ir.constants(graph)
        self.constants = {name: tensor(array) for name, array in self.arrays.items()}
        self.weights: dict[tuple[str, int], Codes] = {}
        self.kernels = {id(n): self._kernel(n) for n in self.nodes}
        self.uses: dict[str, int] = {}
        for node in self.nodes:
            for value in node.inputs:
                if value is not None:
                    self.uses[value.name or ""] = self.uses.get(value.name or "", 0) + 1

    def __call__(
        self, feeds: Mapping[str, np.ndarray | Tensor], visit: Visit | None = None
    ) -> dict[str, Tensor]:
        """The outputs, float32.

        `visit(name, codes)` is called for every quantized value, int32 codes, in graph order; codes
        that it gives back take the value's place.
        """
        found: dict[str, Tensor | Codes] = {}
        left = dict(self.uses)
        with torch.inference_mode():
            for name in self.inputs:
                fed = feeds[name]
                self._store(found, name, fed if isinstance(fed, Tensor) else tensor(fed), visit)
            for node in self.nodes:
                results = self._run(node, found)
                for output, result in zip(node.outputs, results, strict=False):
                    if output.name and result is not None:
                        self._store(found, output.name, result, visit)
                for value in node.inputs:
                    name = value.name or "" if value is not None else ""
                    if name in left:
                        left[name] -= 1
                        if not left[name] and name not in self.outputs:
                            found.pop(name, None)
        return {name: _real(found[name]) for name in self.outputs}

    def _store(
        self,
        found: dict[str, Tensor | Codes],
        name: str,
        result: Tensor | Codes,
        visit: Visit | None,
    ) -> None:
        encoding = self.encodings.get(ir.Point(name))
        if encoding is not None and isinstance(result, Tensor):
            result = self._quantize(result, encoding)
        found[name] = result
        if visit is None or encoding is None or not isinstance(result, Codes):
            return
        replaced = visit(name, result.codes)
        if replaced is not None:
            zero_point = _along(encoding.zero_point, encoding, replaced.dim())
            found[name] = Codes(replaced.float() - zero_point, encoding)

    def _quantize(self, x: Tensor, encoding: Encoding) -> Codes:
        if self.arithmetic.quantize == "range" and encoding.spec.axis is None:
            return Codes(_by_range(x, encoding), encoding)
        return Codes(_clamp(torch.round(x / _scale(encoding, x.dim())), encoding), encoding)

    # ------------------------------------------------------------ one node

    def _run(
        self, node: ir.Node, found: dict[str, Tensor | Codes]
    ) -> tuple[Tensor | Codes | None, ...]:
        kernel = self.kernels[id(node)]
        if kernel is not None:
            return (kernel(node, found),)
        first = self._input(node, 0, found)
        output = self.encodings.get(ir.Point(node.outputs[0].name or ""))
        if isinstance(first, Codes) and node.op_type == "Relu" and output == first.encoding:
            return (Codes(first.centred.clamp(min=0), first.encoding),)
        if (
            isinstance(first, Codes)
            and node.op_type in MOVEMENT
            and self._same(node, found, output)
        ):
            results = self._call(node, found, centred=True)
            return tuple(Codes(r, first.encoding) if r is not None else None for r in results)
        return self._call(node, found, centred=False)

    def _same(
        self, node: ir.Node, found: dict[str, Tensor | Codes], output: Encoding | None
    ) -> bool:
        """Whether the codes go through a movement node unchanged: every quantized side has one
        encoding.
        """
        sides = [
            self._input(node, i, found)
            for i in range(len(node.inputs) if node.op_type == "Concat" else 1)
        ]
        encodings = {s.encoding for s in sides if isinstance(s, Codes)}
        return (
            len(encodings) == 1 and all(isinstance(s, Codes) for s in sides) and output in encodings
        )

    def _call(
        self, node: ir.Node, found: dict[str, Tensor | Codes], centred: bool
    ) -> tuple[Tensor | None, ...]:
        call: Call = self.calls[id(node)]
        arguments = []
        for index, reader in enumerate(call.readers):
            held = self._input(node, index, found)
            x = held.centred if isinstance(held, Codes) and centred else _real(held)
            arguments.append(reader(x) if reader is not None and x is not None else x)
        result = call.function(*arguments)
        return (result,) if isinstance(result, Tensor) else result

    def _input(
        self, node: ir.Node, index: int, found: dict[str, Tensor | Codes]
    ) -> Tensor | Codes | None:
        """Input `index` as the node reads it: quantized if the plan says so for this node or for
        the value.
        """
        if index >= len(node.inputs) or node.inputs[index] is None:
            return None
        name = node.inputs[index].name or ""  # type: ignore[union-attr]
        if name in self.constants:
            key = (node.name or "", index)
            encoding = self.plan.at(name, *key)
            if not isinstance(encoding, Encoding):
                return self.constants[name]
            if key not in self.weights:
                array = self.arrays[name]
                zero_point = encoding.zero_point
                if encoding.spec.axis is not None:
                    zero_point = zero_point.reshape(
                        [-1 if d == encoding.spec.axis else 1 for d in range(array.ndim)]
                    )
                centred = encoding.quantize(array).astype(np.int64) - zero_point
                kind = torch.float64 if encoding.spec.bits > 16 else torch.float32
                self.weights[key] = Codes(torch.as_tensor(centred).to(kind), encoding)
            return self.weights[key]
        held = found[name]
        own = self.encodings.get(ir.Point(name, node.name or "", index))
        return self._quantize(_real(held), own) if own is not None else held

    # ------------------------------------------------------------ kernels on codes

    def _kernel(
        self, node: ir.Node
    ) -> Callable[[ir.Node, dict[str, Tensor | Codes]], Tensor | Codes] | None:
        """The integer kernel of a node whose inputs are quantized, None where it is computed in
        float.
        """
        sides = [
            self.plan.at(v.name or "", node.name or "", i)
            for i, v in enumerate(node.inputs[:2])
            if v is not None
        ]
        if not sides or any(not isinstance(s, Encoding) for s in sides):
            return None
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and len(sides) == 2:
            return self._accumulate
        if self._output(node) is None:
            return None
        if node.op_type == "Add" and len(sides) == 2 and self.arithmetic.add == "fma":
            return self._add
        if node.op_type == "Mul" and len(sides) == 2 and self.arithmetic.requantize == "multiply":
            return self._multiply
        if node.op_type == "AveragePool" and self.arithmetic.average_pool == "sequential":
            return self._average_pool
        if node.op_type == "GlobalAveragePool" and self.arithmetic.average_pool == "sequential":
            return self._global_average_pool
        return None

    def _output(self, node: ir.Node) -> Encoding | None:
        """The encoding a kernel writes: of its output, or of the ReLU or Clip that alone reads it
        and is fused.
        """
        value = node.outputs[0]
        while ir.Point(value.name or "") not in self.encodings:
            uses = list(value.uses())
            if (
                len(uses) != 1
                or uses[0].node.op_type not in ("Relu", "Clip")
                or value.is_graph_output()
            ):
                return None
            value = uses[0].node.outputs[0]
        return self.encodings[ir.Point(value.name or "")]

    def _accumulate(self, node: ir.Node, found: dict[str, Tensor | Codes]) -> Tensor | Codes:
        x, w = self._input(node, 0, found), self._input(node, 1, found)
        bias = self._input(node, 2, found)
        assert isinstance(x, Codes) and isinstance(w, Codes)
        as_integers = isinstance(bias, Codes)
        offset = bias.centred if isinstance(bias, Codes) else None
        reach = _reach(node, x.encoding, w.centred, offset)
        kind = torch.float32 if reach < EXACT_FLOAT32 else torch.float64
        arguments = [x.centred.to(kind), w.centred.to(kind)]
        if offset is not None:
            arguments.append(offset.to(kind))
        call = self.calls[id(node)]
        accumulator = call.function(*arguments)
        assert isinstance(accumulator, Tensor)
        axis = -1 if node.op_type in ("Gemm", "MatMul") else 1
        scales = x.encoding.scale * w.encoding.scale
        output = self._output(node)
        if (
            output is not None
            and self.arithmetic.requantize == "multiply"
            and (bias is None or as_integers)
        ):
            ratio = _channels(scales / output.scale, accumulator.dim(), axis)
            return Codes(_clamp(torch.round(accumulator.float() * ratio), output), output)
        real = accumulator.float() * _channels(scales, accumulator.dim(), axis)
        if isinstance(bias, Tensor):
            real = real + (bias if axis == -1 else bias.reshape(1, -1, *[1] * (real.dim() - 2)))
        if output is not None and self.arithmetic.requantize == "range":
            return Codes(_by_range(real, output), output)
        return real

    def _add(self, node: ir.Node, found: dict[str, Tensor | Codes]) -> Codes:
        a, b = self._input(node, 0, found), self._input(node, 1, found)
        output = self._output(node)
        assert isinstance(a, Codes) and isinstance(b, Codes) and output is not None
        ratio_a, ratio_b = a.encoding.scale / output.scale, b.encoding.scale / output.scale
        z_a, z_b, z = (np.float32(e.zero_point) for e in (a.encoding, b.encoding, output))
        fixed = z - (ratio_a * z_a + ratio_b * z_b)
        # A fused multiply-add rounds once: the product is exact in float64, and so is the sum
        # before it is rounded.
        inner = ((b.centred.double() + float(z_b)) * float(ratio_b) + float(fixed)).float()
        outer = ((a.centred.double() + float(z_a)) * float(ratio_a) + inner.double()).float()
        return Codes(_clamp(torch.round(outer) - float(z), output), output)

    def _multiply(self, node: ir.Node, found: dict[str, Tensor | Codes]) -> Codes:
        a, b = self._input(node, 0, found), self._input(node, 1, found)
        output = self._output(node)
        assert isinstance(a, Codes) and isinstance(b, Codes) and output is not None
        ratio, z = (
            float(a.encoding.scale * b.encoding.scale / output.scale),
            float(output.zero_point),
        )
        return Codes(_clamp(torch.round(a.centred * b.centred * ratio + z) - z, output), output)

    def _global_average_pool(self, node: ir.Node, found: dict[str, Tensor | Codes]) -> Codes:
        x, output = self._input(node, 0, found), self._output(node)
        assert isinstance(x, Codes) and output is not None
        axes = tuple(range(2, x.centred.dim()))
        size = np.float32(x.centred[0, 0].numel())
        ratio = float(x.encoding.scale / (output.scale * size))
        total = x.centred.double().sum(axes, keepdim=True).float()
        return Codes(_clamp(torch.round(total * ratio), output), output)

    def _average_pool(self, node: ir.Node, found: dict[str, Tensor | Codes]) -> Tensor | Codes:
        x = self._input(node, 0, found)
        output = self._output(node)
        attributes = ir.attributes(node)
        assert isinstance(x, Codes) and output is not None
        if (
            x.centred.dim() != 4
            or attributes.get("auto_pad", "NOTSET") != "NOTSET"
            or attributes.get("ceil_mode", 0)
        ):
            return self._call(node, found, centred=False)[0]  # type: ignore[return-value]
        total, count = _sequential_sum(x.real, attributes)
        z = float(output.zero_point)
        steps = total / count / _scale(output, 4)
        return Codes(_clamp(torch.round(steps + z) - z, output), output)


def _by_range(x: Tensor, encoding: Encoding) -> Tensor:
    """Centred codes of float32 `x`: fma(x, steps / (high - low), -low steps / (high - low)), the
    two numbers in float32. The product is exact in float64: only the sum is rounded, as fma does.
    """
    low, high = np.float32(encoding.low), np.float32(encoding.high)
    steps = np.float32(encoding.spec.qmax - encoding.spec.qmin)
    factor, shift = steps / (high - low), (-low * steps) / (high - low)
    codes = torch.round((x.double() * float(factor) + float(shift)).float())
    return _clamp(codes + float(encoding.spec.qmin - encoding.zero_point), encoding)


def _sequential_sum(x_NCHW: Tensor, attributes: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Window sums, added element by element in row order, and the number to divide each by."""
    kernel_h, kernel_w = map(int, attributes["kernel_shape"])
    stride_h, stride_w = map(int, attributes.get("strides", (1, 1)))
    top, left, bottom, right = map(int, attributes.get("pads", (0, 0, 0, 0)))
    padded = torch.nn.functional.pad(x_NCHW, (left, right, top, bottom))
    inside = torch.nn.functional.pad(torch.ones_like(x_NCHW[:1, :1]), (left, right, top, bottom))
    rows = (padded.shape[2] - kernel_h) // stride_h + 1
    columns = (padded.shape[3] - kernel_w) // stride_w + 1
    total = x_NCHW.new_zeros((*x_NCHW.shape[:2], rows, columns))
    count = x_NCHW.new_zeros((1, 1, rows, columns))
    for h in range(kernel_h):
        for w in range(kernel_w):
            window = (
                ...,
                slice(h, h + rows * stride_h, stride_h),
                slice(w, w + columns * stride_w, stride_w),
            )
            total += padded[window]
            count += inside[window]
    if attributes.get("count_include_pad", 0):
        count.fill_(kernel_h * kernel_w)
    return total, count


def _reach(node: ir.Node, x: Encoding, w_centred: Tensor, offset: Tensor | None) -> float:
    """Largest magnitude any partial sum of an accumulator can have."""
    largest = float(max(x.spec.qmax - x.zero_point.min(), x.zero_point.max() - x.spec.qmin))
    if node.op_type == "Conv":
        sums = w_centred.abs().double().flatten(1).sum(1)
    elif node.op_type == "ConvTranspose":  # sums run over input channels, the first axis
        sums = w_centred.abs().double().sum()
    else:  # an upper bound that needs no knowledge of the layout
        sums = (
            w_centred.abs().double().flatten(1).sum(1).max()
            if w_centred.dim() > 2
            else _matrix_sums(node, w_centred)
        )
    reach = float(torch.as_tensor(sums).max()) * largest
    return reach + (float(offset.abs().max()) if offset is not None else 0.0)


def _matrix_sums(node: ir.Node, w_centred: Tensor) -> Tensor:
    transposed = bool(ir.attributes(node).get("transB", 0))
    return w_centred.abs().double().sum(1 if transposed else 0)


def _channels(values: np.ndarray, rank: int, axis: int) -> Tensor:
    """Per-channel float32 values in the shape that broadcasts along `axis` of a tensor of
    `rank`.
    """
    values = np.asarray(values, np.float32)
    if values.ndim == 0:
        return torch.tensor(values)
    shape = [1] * rank
    shape[axis] = -1
    return torch.tensor(values).reshape(shape)


def _scale(encoding: Encoding, rank: int) -> Tensor:
    return _along(encoding.scale, encoding, rank)


def _along(values: np.ndarray, encoding: Encoding, rank: int) -> Tensor:
    array = torch.tensor(np.asarray(values, np.float32))
    if encoding.spec.axis is None:
        return array
    return array.reshape([-1 if d == encoding.spec.axis else 1 for d in range(rank)])


def _clamp(centred: Tensor, encoding: Encoding) -> Tensor:
    low, high = encoding.spec.qmin - encoding.zero_point, encoding.spec.qmax - encoding.zero_point
    if encoding.spec.axis is None:
        return centred.clamp_(float(low), float(high))
    rank = centred.dim()
    return torch.minimum(
        torch.maximum(centred, _along(low, encoding, rank)), _along(high, encoding, rank)
    )


def _real(held: Tensor | Codes | None) -> Tensor:
    return held.real if isinstance(held, Codes) else held  # type: ignore[return-value]
