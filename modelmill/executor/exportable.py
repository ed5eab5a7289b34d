"""A float graph and its plan as a torch module that `torch.export` can trace: plain aten ops, with
`quantized_decomposed` operators at the points of the plan.

torch's own tool chains (ExecuTorch's XNNPACK partitioner, inductor's x86 lowering) recognise
quantized layers by these operators around a layer. Written with the plan's numbers they make the
tool chain run the plan: no observer sees any data.

    a value     x -> quantize_per_tensor -> dequantize_per_tensor, one of it for each reader
    a weight    its 8-bit codes -> dequantize_per_tensor or _per_channel
    a bias      rounded by its encoding, float: these tool chains find the same codes again

Shapes are those of one fixed batch. What follows from shapes and constants alone is computed when
the module is built, so that no number of the trace depends on a tensor.
https://docs.pytorch.org/ao/stable/pt2e_quantization/index.html
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import Tensor, nn
from torch.nn import functional

from modelmill import ir
from modelmill.executor import ops_activation, ops_math, ops_shape
from modelmill.executor.bind import Ints, Result, bind, tensor, unsupported
from modelmill.ir import Plan, Point
from modelmill.numerics import Encoding

FROM_SHAPES = ("Shape", "Size")
BITS = 8
PADDED = "_Pad"  # behind the name of a pool
decomposed = torch.ops.quantized_decomposed


@dataclass(frozen=True)
class _Step:
    """One node: `function` of `template` with the values of `reads` filled in.

    on_codes: it moves codes; what it reads is not dequantized, what it gives not quantized.
    """

    function: Callable[..., Result]
    template: tuple[Any, ...]
    reads: tuple[tuple[int, Point], ...]
    outputs: tuple[str, ...]
    on_codes: bool


class Exportable(nn.Module):
    """The graph. `forward(*inputs)` gives the outputs, then the codes asked for."""

    def __init__(
        self,
        graph: ir.Graph,
        plan: Plan | None = None,
        codes: Collection[str] = (),
        on_codes: Collection[str] = (),
        signed: bool = True,
    ) -> None:
        """Prepare every node of `graph`, whose batch is fixed.

        Args:
            graph: a float graph.
            plan: encodings of its points; None or empty for none.
            codes: values of the plan whose codes are outputs as well, behind those of the graph.
            on_codes: names of nodes to be run on codes where all their sides have one encoding.
            signed: write unsigned codes as signed ones, 128 less.

        Raises:
            ValueError: an operator is not supported, a point cannot be written in 8 bits, or a
                shape depends on the numbers of the input.
        """
        super().__init__()
        missing = unsupported(graph)
        if missing:
            where, op = missing[0]
            raise ValueError(f"the executor has no operator {op} (node {where!r})")
        self.input_names = tuple(v.name or "" for v in graph.graph.inputs if not v.is_initializer())
        self.output_names = tuple(v.name or "" for v in graph.graph.outputs)
        self.code_names = tuple(codes)
        self.example = tuple(_zeros(graph, name) for name in self.input_names)
        graph, plan = _known_forms(graph, plan or Plan())
        pads = [n.name or "" for n in ir.nodes(graph) if n.op_type == "Pad"]
        on_codes = {*on_codes, *(name for name in pads if name.endswith(PADDED))}
        encodings = plan.encodings()
        self._encodings = {p: as_signed(e) if signed else e for p, e in encodings.items()}
        self._held: dict[Point, str] = {}  # a constant as one node reads it -> its attribute
        self._steps: list[_Step] = []
        with torch.inference_mode(False), torch.no_grad():
            self._build(graph, on_codes)

    # ------------------------------------------------------------ run

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs for inputs of the very shapes of `example`."""
        found: dict[str, Tensor] = {}
        for name, x in zip(self.input_names, inputs, strict=True):
            self._store(found, name, x)
        for step in self._steps:
            self._run(step, found)
        outputs = [self._read(found, Point(name)) for name in self.output_names]
        return (*outputs, *(found[name] for name in self.code_names))

    def _run(self, step: _Step, found: dict[str, Tensor]) -> None:
        arguments = list(step.template)
        for position, point in step.reads:
            raw = step.on_codes and point not in self._held
            arguments[position] = found[point.value] if raw else self._read(found, point)
        results = _several(step.function(*arguments))
        for name, result in zip(step.outputs, results, strict=False):
            if result is not None and step.on_codes:
                found[name] = result
            elif result is not None:
                self._store(found, name, result)

    def _store(self, found: dict[str, Tensor], name: str, x: Tensor) -> None:
        """Keep a value: its codes, where the plan quantizes it for all its readers."""
        encoding = self._encodings.get(Point(name))
        found[name] = x if encoding is None else _quantize(x, encoding)

    def _read(self, found: Mapping[str, Tensor], point: Point) -> Tensor:
        """A value as this reader wants it, float. Every reader has a dequantization of its own:
        the tool chains take away those of a quantized layer.
        """
        if point in self._held:
            return self._constant(point)
        whole, own = self._encodings.get(Point(point.value)), self._encodings.get(point)
        x = found[point.value]
        if whole is not None:
            x = _dequantize(x, whole)
        if own is not None and point.node:
            x = _dequantize(_quantize(x, own), own)
        return x

    def _encoding(self, point: Point) -> Encoding | None:
        return self._encodings.get(point) or self._encodings.get(Point(point.value))

    def _constant(self, point: Point) -> Tensor:
        key = self._held[point]
        held: Tensor = getattr(self, key)
        encoding = self._encoding(point)
        if encoding is None or encoding.spec.bits > BITS:
            return held
        spec = encoding.spec
        if spec.axis is None:
            return _dequantize(held, encoding)
        scale, zero_point = getattr(self, f"{key}_scale"), getattr(self, f"{key}_zero_point")
        limits = (spec.axis, spec.qmin, spec.qmax, held.dtype)
        real: Tensor = decomposed.dequantize_per_channel(held, scale, zero_point, *limits)
        return real

    # ------------------------------------------------------------ build

    def _build(self, graph: ir.Graph, on_codes: Collection[str]) -> None:
        """The steps of what depends on the input, tried on zeros; the rest is computed here."""
        fixed = {name: tensor(array) for name, array in ir.constants(graph).items()}
        found: dict[str, Tensor] = {}
        for name, x in zip(self.input_names, self.example, strict=True):
            self._store(found, name, x)
        for node in ir.nodes(graph):
            step = self._step(node, ir.opset(graph), fixed, on_codes)
            known = all(point.value in fixed for _, point in step.reads)
            if known or node.op_type in FROM_SHAPES:
                arguments = list(step.template)
                for position, point in step.reads:
                    arguments[position] = fixed.get(point.value, found.get(point.value))
                results = _several(step.function(*arguments))
                named = zip(step.outputs, results, strict=False)
                fixed.update({name: r for name, r in named if r is not None})
                continue
            for _, point in step.reads:
                if point.value in fixed:
                    self._hold(point, fixed[point.value])
            self._run(step, found)
            self._steps.append(step)
        for name in self.output_names:
            if name in fixed:
                self._hold(Point(name), fixed[name])

    def _step(
        self, node: ir.Node, opset: int, fixed: Mapping[str, Tensor], on_codes: Collection[str]
    ) -> _Step:
        call = bind(node, opset, EXPORTED)
        template: list[Any] = [None] * len(node.inputs)
        reads: list[tuple[int, Point]] = []
        for i, (value, reader) in enumerate(zip(node.inputs, call.readers, strict=True)):
            if value is None or not value.name:
                continue
            if node.op_type == "Gather" and i == 1 and _is_number(fixed.get(value.name)):
                template[i] = int(fixed[value.name])
            elif reader is None:
                reads.append((i, Point(value.name, node.name or "", i)))
            elif value.name in fixed:
                template[i] = reader(fixed[value.name])
            else:
                raise ValueError(
                    f"{node.op_type} {node.name!r}: input {value.name!r} depends on the numbers of "
                    "the input; only a fixed shape can be exported"
                )
        outputs = tuple(v.name or "" for v in node.outputs)
        sides = [self._encoding(point) for _, point in reads if point.value not in fixed]
        sides += [self._encodings.get(Point(name)) for name in outputs]
        side = sides[0]
        moved = node.name in on_codes and side is not None and len(set(sides)) == 1
        if moved and side is not None and node.op_type == "Pad":  # the real 0 is the zero point
            template[2:3] = [int(side.zero_point)]
        return _Step(call.function, tuple(template), tuple(reads), outputs, moved)

    def _hold(self, point: Point, value: Tensor) -> None:
        """Keep a constant as buffers: its codes and scales where the plan says 8 bits."""
        key = f"constant_{len(self._held)}"
        self._held[point] = key
        encoding = self._encoding(point)
        if encoding is not None and encoding.spec.bits > BITS:
            value = tensor(encoding.fake(value.numpy()))
        elif encoding is not None:
            value = tensor(encoding.quantize(value.numpy()))
            if encoding.spec.axis is not None:
                zero_point = tensor(encoding.zero_point.astype(np.int64))
                self.register_buffer(f"{key}_scale", tensor(encoding.scale))
                self.register_buffer(f"{key}_zero_point", zero_point)
        self.register_buffer(key, value.detach().clone())


# ---------------------------------------------------------------- forms that the tool chains know


def _gemm(
    A: Tensor,
    B: Tensor,
    C: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """aten.linear, the form with weights (out, in), where it is no more than that."""
    plain = alpha == 1 and beta == 1 and not transA and transB and (C is None or C.dim() == 1)
    if plain:
        return functional.linear(A, B, C)
    return ops_math.Gemm(A, B, C, alpha=alpha, beta=beta, transA=transA, transB=transB)


def _clip(input: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    low, high = -math.inf if min is None else min, math.inf if max is None else max
    return functional.hardtanh(input, low, high)


def _squeeze(data: Tensor, axes: Ints | None = None) -> Tensor:
    dropped = {a % data.dim() for a in axes or [i for i, n in enumerate(data.shape) if n == 1]}
    return data.reshape([n for i, n in enumerate(data.shape) if i not in dropped])


def _unsqueeze(data: Tensor, axes: Ints) -> Tensor:
    sizes = list(data.shape)
    for axis in sorted(a % (data.dim() + len(axes)) for a in axes):
        sizes.insert(axis, 1)
    return data.reshape(sizes)


def _gather(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """A slice, then a reshape, where `indices` is one number (an int in spite of its type)."""
    if isinstance(indices, Tensor):
        return ops_shape.Gather(data, indices, axis=axis)
    sizes = list(data.shape)
    del sizes[axis]
    return data.narrow(axis, indices % data.shape[axis], 1).reshape(sizes)


def _softmax(input: Tensor, *, axis: int | None = None, opset: int) -> Tensor:
    """Over rows of a matrix: ExecuTorch 1.5 normalizes a four-dimensional tensor that comes from a
    transposition along another axis than the last.
    """
    axis = (-1 if opset >= 13 else 1) if axis is None else axis
    last = axis % input.dim() == input.dim() - 1
    if not last or input.dim() < 3:
        return ops_activation.Softmax(input, axis=axis, opset=opset)
    rows = input.reshape(-1, input.shape[-1])
    return functional.softmax(rows, -1).reshape(input.shape)


def _split(
    input: Tensor,
    split: Ints | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    n_outputs: int,
) -> tuple[Tensor, ...]:
    size = input.shape[axis]
    part = -(-size // (num_outputs or n_outputs))
    sizes = split or [max(min(part, size - i * part), 0) for i in range(n_outputs)]
    starts = np.cumsum([0, *sizes]).tolist()
    return tuple(input.narrow(axis, b, n) for b, n in zip(starts, sizes, strict=False))


# Instead of the executor's functions of these operators.
EXPORTED: dict[str, Callable[..., Result]] = {
    "Gemm": _gemm,
    "Clip": _clip,
    "Gather": _gather,
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Split": _split,
}


def _known_forms(graph: ir.Graph, plan: Plan) -> tuple[ir.Graph, Plan]:
    """A graph and plan of the same meaning, without what the tool chains take in another form."""
    made = ir.infer_shapes(graph)
    for node in ir.nodes(made):
        if node.op_type == "Gemm":
            plan = _rows_first(made, plan, node)
        elif node.op_type == "AveragePool":
            plan = _padded_before(made, plan, node)
    ir.prune(made)
    return made, plan


def _rows_first(made: ir.Graph, plan: Plan, node: ir.Node) -> Plan:
    """Constant weights of Gemm as (out, in), which is what aten.linear takes; the plan to that."""
    value = node.inputs[1]
    array = ir.constant(value)
    if value is None or array is None or ir.attributes(node).get("transB", 0):
        return plan
    found = plan.at(value.name or "", node.name or "", 1)
    ir.set_constant(made, node, 1, np.ascontiguousarray(array.T))
    ir.set_attribute(node, "transB", 1)
    turned = node.inputs[1]
    if not isinstance(found, Encoding) or turned is None:
        return plan
    spec = found.spec
    spec = replace(spec, axis=None if spec.axis is None else 1 - spec.axis)
    point = Point(turned.name or "", node.name or "", 1)
    return plan.replace({point: Encoding(spec, found.scale, found.zero_point)})


def _padded_before(made: ir.Graph, plan: Plan, node: ir.Node) -> Plan:
    """Padding that a pool counts as a Pad of its own, with the encoding of what it pads: XNNPACK
    has no such pool, and ExecuTorch's own kernel is a hundred times slower.
    """
    given, data = ir.attributes(node), node.inputs[0]
    pads = [int(n) for n in given.get("pads", ())]
    own = data is not None and Point(data.name or "", node.name or "", 0) in plan
    counted = given.get("count_include_pad") and not given.get("ceil_mode")
    if data is None or len(pads) != 4 or not any(pads) or not counted or own:
        return plan
    amounts = np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64)
    widths = ir.add_constant(made, f"{node.name}_pads", amounts)
    padded = ir.add_node(made, "Pad", [data, widths], before=node, stem=f"{node.name}{PADDED}")
    node.replace_input_with(0, padded)
    ir.set_attribute(node, "pads", None)
    whole = plan.encodings().get(Point(data.name or ""))
    return plan if whole is None else plan.replace({Point(padded.name or ""): whole})


# ---------------------------------------------------------------- quantization


def as_signed(encoding: Encoding) -> Encoding:
    """The same real numbers with signed codes: code and zero point 128 less."""
    spec = encoding.spec
    if spec.signed:
        return encoding
    shifted = replace(spec, signed=True, symmetric=False)
    return Encoding(shifted, encoding.scale, encoding.zero_point - 2 ** (spec.bits - 1))


def _quantize(x: Tensor, encoding: Encoding) -> Tensor:
    codes: Tensor = decomposed.quantize_per_tensor(x, *_numbers(encoding))
    return codes


def _dequantize(codes: Tensor, encoding: Encoding) -> Tensor:
    real: Tensor = decomposed.dequantize_per_tensor(codes, *_numbers(encoding))
    return real


def _numbers(encoding: Encoding) -> tuple[float, int, int, int, torch.dtype]:
    spec = encoding.spec
    if spec.bits > BITS or spec.axis is not None:
        raise ValueError(f"activations in {spec} cannot be exported; 8 bits per tensor can")
    kind = torch.int8 if spec.signed else torch.uint8
    return float(encoding.scale), int(encoding.zero_point), spec.qmin, spec.qmax, kind


def _is_number(held: Tensor | None) -> bool:
    return held is not None and held.dim() == 0


def _several(result: Result) -> tuple[Tensor | None, ...]:
    return (result,) if isinstance(result, Tensor) else result


def _zeros(graph: ir.Graph, name: str) -> Tensor:
    info = ir.inputs(graph)[name]
    sizes = [n for n in info.shape if isinstance(n, int)]
    if len(sizes) != len(info.shape):
        raise ValueError(f"input {name!r} has the open shape {info.shape}; fix it to export")
    return tensor(np.zeros(sizes, info.dtype))
