"""Simulate a quantized graph in an engine's own integer arithmetic.

The walk over the graph: a tensor with an encoding is held as codes, a node whose inputs are codes
runs the kernel that the engine's `Arithmetic` names (`kernels` has the formulas), one that only
moves elements runs on the codes, and anything else is dequantized, computed in float32, and
quantized again.

An accumulator is exact in float32 as long as every partial sum stays below 2^24, which is checked
against the weights of the layer; otherwise the layer is computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelmill import ir
from modelmill.executor import kernels_openvino as openvino
from modelmill.executor.bind import Call, bind, tensor, unsupported
from modelmill.executor.codes import Codes, from_codes, real, to_logarithm
from modelmill.executor.kernels import (
    ADD,
    AVERAGE_POOL,
    GLOBAL_AVERAGE_POOL,
    LEAKY_RELU,
    MULTIPLY,
    QUANTIZE,
    REQUANTIZE,
    SUBTRACT,
    Sums,
)
from modelmill.executor.kernels_float import convolve_in_turn, multiply_in_turn
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
Found = dict[str, Tensor | Codes]  # values so far, by name
Kernel = Callable[[ir.Node, Found], Tensor | Codes]


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
        self.exact: dict[int, torch.dtype] = {}
        self.kernels = {id(n): self._kernel(n) for n in self.nodes}
        self.places = {v.name or "": self._place(v) for n in self.nodes for v in n.outputs}
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
        found: Found = {}
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
        return {name: real(found[name]) for name in self.outputs}

    def _store(
        self,
        found: Found,
        name: str,
        result: Tensor | Codes,
        visit: Visit | None,
    ) -> None:
        encoding = self.encodings.get(ir.Point(name))
        if encoding is not None and isinstance(result, Tensor):
            result = self._quantize(result, encoding, name)
        found[name] = result
        if visit is None or encoding is None or not isinstance(result, Codes):
            return
        replaced = visit(name, result.codes)
        if replaced is not None:
            found[name] = from_codes(replaced, encoding)

    def _quantize(self, x: Tensor, encoding: Encoding, name: str = "") -> Codes:
        if encoding.spec.logarithmic:
            return to_logarithm(x, encoding)
        if self.arithmetic.quantize == "range" and encoding.spec.axis is None:
            return openvino.QUANTIZE[self.places.get(name, "alone")](x, encoding)
        return QUANTIZE[self.arithmetic.quantize](x, encoding)

    def _place(self, value: ir.Value) -> str:
        """Whose kernel quantizes the value in OpenVINO: a float or an integer product's, which
        activations join, or one "alone".
        """
        node = value.producer()
        while node is not None and node.op_type in openvino.IN_PRODUCTS:
            before = node.inputs[0]
            alone = before is not None and ir.used_once(before)
            node = before.producer() if alone and before is not None else None
        if node is None or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            return "alone"
        return "integer" if self.kernels[id(node)] == self._accumulate else "float"

    # ------------------------------------------------------------ one node

    def _run(self, node: ir.Node, found: Found) -> tuple[Tensor | Codes | None, ...]:
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

    def _same(self, node: ir.Node, found: Found, output: Encoding | None) -> bool:
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

    def _call(self, node: ir.Node, found: Found, centred: bool) -> tuple[Tensor | None, ...]:
        call: Call = self.calls[id(node)]
        arguments = []
        for index, reader in enumerate(call.readers):
            held = self._input(node, index, found)
            x = held.centred if isinstance(held, Codes) and centred else real(held)
            arguments.append(reader(x) if reader is not None and x is not None else x)
        result = call.function(*arguments)
        return (result,) if isinstance(result, Tensor) else result

    def _input(self, node: ir.Node, index: int, found: Found) -> Tensor | Codes | None:
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
            if key not in self.weights and encoding.spec.logarithmic:
                self.weights[key] = to_logarithm(self.constants[name], encoding)
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
        return self._quantize(real(held), own) if own is not None else held

    # ------------------------------------------------------------ kernels on codes

    def _kernel(self, node: ir.Node) -> Kernel | None:
        """The integer kernel of a node whose inputs are quantized, None where it is computed in
        float.
        """
        sides = [
            self.plan.at(v.name or "", node.name or "", i)
            for i, v in enumerate(node.inputs[:2])
            if v is not None
        ]
        if node.op_type == "Add" and self.arithmetic.add == "in_steps" and len(sides) == 2:
            known = self._output(node) is not None and any(isinstance(s, Encoding) for s in sides)
            return self._add_in_steps if known else None
        if not all(isinstance(s, Encoding) and not s.spec.logarithmic for s in sides) or not sides:
            in_turn = node.op_type in ("Conv", "Gemm", "MatMul")
            in_turn = in_turn and self.arithmetic.float_products != "any"
            known = len(node.inputs) > 1 and ir.constant(node.inputs[1]) is not None
            return self._float_product if in_turn and known else None
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and len(sides) == 2:
            return self._accumulate if self.arithmetic.requantize in REQUANTIZE else None
        if self._output(node) is None:
            return None
        how, two = self.arithmetic, len(sides) == 2
        if node.op_type == "Add" and two and how.add in ADD:
            return self._pairwise(ADD[how.add])
        if node.op_type == "Sub" and two and how.add in SUBTRACT:
            return self._pairwise(SUBTRACT[how.add])
        if node.op_type == "LeakyRelu" and how.leaky_relu in LEAKY_RELU:
            return self._leaky_relu
        if node.op_type == "Mul" and two and how.multiply in MULTIPLY:
            return self._pairwise(MULTIPLY[how.multiply])
        if node.op_type == "AveragePool" and how.average_pool in AVERAGE_POOL:
            return self._average_pool
        if node.op_type == "GlobalAveragePool" and how.global_average_pool in GLOBAL_AVERAGE_POOL:
            return self._global_average_pool
        return None

    def _float_product(self, node: ir.Node, found: Found) -> Tensor | Codes:
        x, w, bias = (real(self._input(node, i, found)) for i in range(3))
        attributes, made = ir.attributes(node), None
        from_bias = self.arithmetic.float_products == "from_bias"
        if node.op_type == "Conv":
            made = convolve_in_turn(x, w, bias, attributes, from_bias)
        elif w.dim() == 2 and not attributes.get("transA", 0) and _plain(attributes):
            turned = w.T if attributes.get("transB", 0) else w
            made = multiply_in_turn(x, turned, bias, from_bias)
        if made is None:
            return self._call(node, found, centred=False)[0]  # type: ignore[return-value]
        return made

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

    def _accumulate(self, node: ir.Node, found: Found) -> Tensor | Codes:
        x, w = self._input(node, 0, found), self._input(node, 1, found)
        bias = self._input(node, 2, found)
        assert isinstance(x, Codes) and isinstance(w, Codes)
        scales = x.encoding.scale * w.encoding.scale
        offset = _in_steps_of(scales, bias) if isinstance(bias, Codes) else None
        kind = self._exact(node, x.encoding, w.centred, offset)
        arguments = [x.centred.to(kind), w.centred.to(kind)]
        if offset is not None:
            arguments.append(offset.to(kind))
        accumulator = self.calls[id(node)].function(*arguments)
        assert isinstance(accumulator, Tensor)
        axis = -1 if node.op_type in ("Gemm", "MatMul") else 1
        if isinstance(bias, Tensor) and axis == 1:
            bias = bias.reshape(1, -1, *[1] * (accumulator.dim() - 2))
        sums = Sums(
            accumulator,
            scales,
            axis,
            bias if isinstance(bias, Tensor) else None,
            self._output(node),
            x.encoding,
            w,
            depthwise=node.op_type == "Conv" and w.centred.shape[1] == 1,
        )
        return REQUANTIZE[self.arithmetic.requantize](sums)

    def _exact(
        self, node: ir.Node, x: Encoding, w_centred: Tensor, offset: Tensor | None
    ) -> torch.dtype:
        """The float type that holds every partial sum of this layer exactly."""
        key = id(node)
        if key not in self.exact or ir.constant(node.inputs[1]) is None:
            reach = _reach(node, x, w_centred, offset)
            self.exact[key] = torch.float32 if reach < EXACT_FLOAT32 else torch.float64
        return self.exact[key]

    def _pairwise(self, kernel: Callable[[Codes, Codes, Encoding], Codes]) -> Kernel:
        def run(node: ir.Node, found: Found) -> Codes:
            a, b = self._input(node, 0, found), self._input(node, 1, found)
            output = self._output(node)
            assert isinstance(a, Codes) and isinstance(b, Codes) and output is not None
            return kernel(a, b, output)

        return run

    def _add_in_steps(self, node: ir.Node, found: Found) -> Codes:
        sides = [self._input(node, i, found) for i in range(2)]
        kept = _kept(node, [isinstance(side, Codes) for side in sides])
        output, other = self._output(node), sides[1 - kept]
        codes = sides[kept]
        assert output is not None and other is not None and isinstance(codes, Codes)
        return openvino.add_in_steps(other, codes, output)

    def _leaky_relu(self, node: ir.Node, found: Found) -> Codes:
        x, output = self._input(node, 0, found), self._output(node)
        assert isinstance(x, Codes) and output is not None
        alpha = float(ir.attributes(node).get("alpha", 0.01))
        return LEAKY_RELU[self.arithmetic.leaky_relu](x, alpha, output)

    def _global_average_pool(self, node: ir.Node, found: Found) -> Codes:
        x, output = self._input(node, 0, found), self._output(node)
        assert isinstance(x, Codes) and output is not None
        return GLOBAL_AVERAGE_POOL[self.arithmetic.global_average_pool](x, output)

    def _average_pool(self, node: ir.Node, found: Found) -> Tensor | Codes:
        x, output = self._input(node, 0, found), self._output(node)
        assert isinstance(x, Codes) and output is not None
        made = AVERAGE_POOL[self.arithmetic.average_pool](x, ir.attributes(node), output)
        if made is None:
            return self._call(node, found, centred=False)[0]  # type: ignore[return-value]
        return made


def _kept(node: ir.Node, quantized: list[bool]) -> int:
    """Which side of an addition OpenVINO adds as codes: the quantized one; of two the one that
    others read too, then the one that no convolution or matrix product gives, then the second.
    """
    if not all(quantized):
        return quantized.index(True)
    values = [value for value in node.inputs[:2] if value is not None]
    alone = [len(list(value.uses())) == 1 for value in values]
    if alone[0] != alone[1]:
        return alone.index(False)
    makers = [value.producer() for value in values]
    products = [m is not None and m.op_type in ("Conv", "Gemm", "MatMul") for m in makers]
    return products.index(False) if products[0] != products[1] else 1


def _in_steps_of(scales: np.ndarray, bias: Codes) -> Tensor:
    """A bias in units of the accumulator; one that has a scale of its own is brought there."""
    if bias.encoding.spec.bits == 32 or np.array_equal(bias.encoding.scale, scales):
        return bias.centred
    return torch.round(bias.real.double() / torch.tensor(np.asarray(scales, np.float64)))


def _plain(attributes: dict[str, Any]) -> bool:
    return all(attributes.get(factor, 1.0) == 1.0 for factor in ("alpha", "beta"))


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
