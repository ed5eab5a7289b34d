"""A float graph and its plan as an ONNX graph of explicit integer arithmetic, for compilers.

A compiler that reads QDQ graphs decides on its own what becomes integer; with one scale per channel
several compute all of it in float. Here nothing is left to decide:

    Conv, Gemm, MatMul   sum = ConvInteger | MatMulInteger(q_x, q_w) + (b - z_x sum q_w)     int32
                         y = round(clamp(float(sum) * (s_x s_w / s_y)))     clamp also does ReLU
    Add                  q1 * s1/sy + (q2 * s2/sy + c), products and sums to be contracted into
                         fused multiply-adds, as the compiler does where the processor has them
    AveragePool          sum = ConvInteger(q_x, ones) - z_x n;  round(clamp(float(sum) * ratio))
    movement             on codes
    anything else        (q - z) * s, in float, then clamp(x / s) rounded

The zero point is folded into the bias and the padding is made explicit, because a compiler that is
given zero points subtracts them element by element. Rounding half to even is adding and subtracting
1.5 * 2^23, which costs two instructions where a compiler without a maths library writes twenty; the
clamp before it keeps the sum in range and the product from being contracted with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from modelmill import ir
from modelmill.ir import Plan, Point
from modelmill.numerics import Encoding

MAGIC = np.float32(1.5 * 2**23)  # float32 numbers near it are 1 apart
INT8, UINT8, INT32, FLOAT = 3, 2, 6, 1  # TensorProto.DataType
# Movement that compilers take on 8-bit tensors as they are.
ON_CODES = frozenset([
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Expand",
    "Concat", "Split", "Identity", "Tile", "Pad", "MaxPool",
])  # fmt: skip
# The same on codes in float32: for the importers that take these operators on floats only.
ON_FLOAT_CODES = frozenset(["Resize", "DepthToSpace", "SpaceToDepth"])
SUMS = ("Conv", "Gemm", "MatMul")


@dataclass
class _Held:
    """A value as codes, and as the real numbers they stand for once somebody asked."""

    codes: ir.Value
    encoding: Encoding
    real: ir.Value | None = None


def write(graph: ir.Graph, plan: Plan, fetch: Mapping[str, str]) -> ir.Graph:
    """A clone of `graph` that computes on int8 codes wherever `plan` has encodings.

    Args:
        graph: a float graph with known shapes and a fixed batch.
        plan: encodings; 8-bit activations, one scale per tensor. Unsigned codes are held as signed
            ones, less 128, so that both operands of a product have one sign.
        fetch: {name of a further output: value whose codes it holds}.

    Raises:
        ValueError: a format that this form does not have.
    """
    made = ir.clone(graph)
    writer = _Writer(made, plan)
    writer.write()
    writer.show(fetch)
    ir.prune(made)
    return made


class _Writer:
    """One run of `write` over a fresh clone."""

    def __init__(self, graph: ir.Graph, plan: Plan) -> None:
        given = plan.encodings()
        self.unsigned = {p.value for p, e in given.items() if not e.spec.signed}
        self.graph, self.plan = graph, plan.replace({p: _signed(e) for p, e in given.items()})
        self.encodings = self.plan.encodings()
        self.nodes = ir.nodes(graph)
        self.held: dict[str, _Held] = {}
        self.numbers: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}
        self.fused: set[int] = set()
        self.at = self.nodes[0]
        self.end = self._last_node()
        self.following = dict(zip(map(id, self.nodes), [*self.nodes[1:], self.end], strict=True))
        for point, encoding in self.encodings.items():
            spec = encoding.spec
            constant = point.value in graph.graph.initializers
            if not constant and (spec.bits > 8 or spec.axis is not None):
                raise ValueError(f"{point}: activations must be 8 bits per tensor, not {spec}")

    def write(self) -> None:
        for value in list(self.graph.graph.inputs):
            self._quantized(value.name or "", value)
        for node in self.nodes:
            if id(node) in self.fused:
                continue
            self.at = node
            if not self._on_codes(node):
                self._in_float(node)
        self.at = self.end
        for index, value in enumerate(list(self.graph.graph.outputs)):
            held = self.held.get(value.name or "")
            if held is not None and not value.is_graph_input():
                name, real = value.name, self._real(held)
                value.name = ir.fresh_name(self.graph, f"{name}_before")
                real.name, real.shape = name, value.shape
                self.graph.graph.outputs[index] = real

    def show(self, fetch: Mapping[str, str]) -> None:
        """Give the codes of these values back as outputs."""
        for name, value in fetch.items():
            if value not in self.held:
                raise ValueError(f"{value!r} has no codes in this form")
            codes = self.held[value].codes
            kind = np.asarray(np.int8(0))
            if value in self.unsigned:
                shift = self._number(np.int32(128))
                wide = self._node("Add", [self._cast(codes, INT32), shift])
                codes, kind = self._node("Cast", [wide], {"to": UINT8}), np.asarray(np.uint8(0))
            copy = self._node("Identity", [codes])
            copy.name, copy.shape = name, self.held[value].codes.shape
            copy.type = self._number(kind).type
            self.graph.graph.outputs.append(copy)

    # ------------------------------------------------------------ nodes

    def _on_codes(self, node: ir.Node) -> bool:
        first = self._read(node, 0)
        if not isinstance(first, _Held):
            return False
        output = self.encodings.get(Point(node.outputs[0].name or ""))
        if node.op_type in SUMS and isinstance(self._weight(node), Encoding):
            self._sum(node, first)
        elif node.op_type == "Add" and isinstance(self._read(node, 1), _Held):
            return self._add(node)
        elif node.op_type in ("AveragePool", "GlobalAveragePool") and output is not None:
            return self._average(node, first, output)
        elif node.op_type == "Relu" and output == first.encoding:
            zero = self._number(np.int8(output.zero_point))
            self._store(node.outputs[0], self._node("Max", [first.codes, zero]), output)
        elif node.op_type in ON_CODES | ON_FLOAT_CODES and self._same(node, output):
            self._move(node, first.encoding)
        else:
            return False
        return True

    def _in_float(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            read = self._read(node, index)
            if isinstance(read, _Held):
                node.replace_input_with(index, self._real(read))
            elif value is not None and read is not value:
                node.replace_input_with(index, read)
        offset = ir.constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if node.op_type == "Conv" and offset is not None:
            # Some kernels start their sums from the bias, others from 0: now all start from 0.
            taken = [value for value in node.inputs[:2] if value is not None]
            made = self._node("Conv", taken, ir.attributes(node))
            made.shape = node.outputs[0].shape
            shape = (-1, *[1] * (len(made.shape or (0,) * 4) - 2))
            self._replace(node, self._node("Add", [made, self._number(offset, shape)]))
            return
        self.at = self.following[id(node)]
        for output in node.outputs:
            if output.name:
                self._quantized(output.name, output)

    def _same(self, node: ir.Node, output: Encoding | None) -> bool:
        count = len(node.inputs) if node.op_type == "Concat" else 1
        sides = [self._read(node, i) for i in range(count)]
        outputs = [self.encodings.get(Point(o.name or "")) for o in node.outputs if o.name]
        return output is not None and all(
            isinstance(s, _Held) and s.encoding == output for s in sides
        ) and all(o == output for o in outputs)  # fmt: skip

    def _move(self, node: ir.Node, encoding: Encoding) -> None:
        """Let the node itself read codes; its outputs are codes under new names."""
        through_float = node.op_type in ON_FLOAT_CODES
        for index in range(len(node.inputs) if node.op_type == "Concat" else 1):
            read = self._read(node, index)
            assert isinstance(read, _Held)
            codes = self._cast(read.codes, FLOAT) if through_float else read.codes
            node.replace_input_with(index, codes)
        if node.op_type == "Pad" and ir.attributes(node).get("mode", "constant") == "constant":
            if len(node.inputs) < 3:
                node.resize_inputs(3)
            node.replace_input_with(2, self._number(np.int8(encoding.zero_point)))
        for output in node.outputs:
            name = output.name or ""
            if not through_float:
                output.type = self._number(np.int8(0)).type
                self.held[name] = _Held(output, encoding)
                continue
            self.at = self.following[id(node)]
            self.held[name] = _Held(self._cast(output, INT8), encoding)

    def _sum(self, node: ir.Node, x: _Held) -> None:
        """Convolution or matrix product: exact int32 sums, then codes or real numbers."""
        total, channels = self._accumulator(node, x)
        weight = self._weight(node)
        assert isinstance(weight, Encoding)
        scales = x.encoding.scale * weight.scale
        last, low, high = self._activation(node.outputs[0])
        output = self.encodings.get(Point(last.name or ""))
        bias = self._read(node, 2)
        plain = bias is None or self._bias_codes(node) is not None
        real = self._cast(total, FLOAT)
        if output is not None and plain:
            scaled = self._node("Mul", [real, self._number((scales / output.scale), channels)])
            self._store(last, self._round(scaled, output, low, high), output)
            return
        real = self._node("Mul", [real, self._number(scales, channels)])
        if not plain:
            assert isinstance(bias, ir.Value)
            offset = ir.constant(bias)
            real = self._node(
                "Add", [real, bias if offset is None else self._number(offset, channels)]
            )
        self._replace(node, real)

    def _accumulator(self, node: ir.Node, x: _Held) -> tuple[ir.Value, tuple[int, ...]]:
        """The int32 sum with everything constant added, and the shape of per-channel numbers."""
        attributes = ir.attributes(node)
        weight, codes, z = self._weight(node), self._weight_codes(node), int(x.encoding.zero_point)
        assert isinstance(weight, Encoding)
        if weight.zero_point.any():
            raise ValueError(f"{node.name!r}: weights must be symmetric")
        if node.op_type == "Conv":
            column = codes.astype(np.int64).reshape(len(codes), -1).sum(1)
            channels: tuple[int, ...] = (-1, *[1] * (codes.ndim - 2))
            padded = self._padded(x, list(attributes.get("pads", [0] * 2 * (codes.ndim - 2))))
            kept = ("group", "strides", "dilations", "kernel_shape")
            given = {k: v for k, v in attributes.items() if k in kept}
            total = self._node("ConvInteger", [padded, self._number(codes)], given)
        else:
            codes = codes.T if attributes.get("transB", 0) else codes
            column, channels = codes.astype(np.int64).sum(-2), (-1,)
            total = self._node("MatMulInteger", [x.codes, self._number(codes)])
        total.type = self._number(np.int32(0)).type
        bias = self._bias_codes(node)
        offset = (0 if bias is None else bias.astype(np.int64)) - z * column
        if offset.any():
            offset = np.clip(offset, -(2**31), 2**31 - 1).astype(np.int32)
            total = self._node("Add", [total, self._number(offset, channels)])
        return total, channels

    def _padded(self, x: _Held, pads: list[int]) -> ir.Value:
        if not any(pads):
            return x.codes
        half = len(pads) // 2
        full = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
        zero = self._number(np.int8(x.encoding.zero_point))
        return self._node("Pad", [x.codes, self._number(full), zero])

    def _add(self, node: ir.Node) -> bool:
        """False where the sum stays float."""
        last, low, high = self._activation(node.outputs[0])
        output = self.encodings.get(Point(last.name or ""))
        a, b = self._read(node, 0), self._read(node, 1)
        if output is None or not isinstance(a, _Held) or not isinstance(b, _Held):
            return False
        ratio_a, ratio_b = a.encoding.scale / output.scale, b.encoding.scale / output.scale
        z_a, z_b, z = (np.float32(e.zero_point) for e in (a.encoding, b.encoding, output))
        fixed = np.asarray(z - (ratio_a * z_a + ratio_b * z_b))
        part = self._node("Mul", [self._cast(b.codes, FLOAT), self._number(ratio_b)])
        part = self._node("Add", [part, self._number(fixed)])
        whole = self._node("Mul", [self._cast(a.codes, FLOAT), self._number(ratio_a)])
        whole = self._node("Add", [whole, part])
        codes = self._round(whole, output, low, high, centred=False)
        self._store(last, codes, output)
        return True

    def _average(self, node: ir.Node, x: _Held, output: Encoding) -> bool:
        attributes, dims = ir.attributes(node), ir.static_shape(x.codes)
        if dims is None or len(dims) != 4:
            return False
        kernel, pads = list(dims[2:]), [0, 0, 0, 0]
        given: dict[str, Any] = {"group": dims[1], "kernel_shape": kernel}
        if node.op_type == "AveragePool":
            pads = list(attributes.get("pads", pads))
            uneven = any(pads) and not attributes.get("count_include_pad", 0)
            by_name = attributes.get("auto_pad", "NOTSET") != "NOTSET"
            if uneven or by_name or attributes.get("ceil_mode", 0):
                return False
            kernel = list(attributes["kernel_shape"])
            given |= {"kernel_shape": kernel, "strides": attributes.get("strides", (1, 1))}
        count = int(np.prod(kernel))
        if node.op_type == "GlobalAveragePool":
            axes = self._number(np.array([2, 3], np.int64))
            total = self._node("ReduceSum", [self._cast(x.codes, INT32), axes], {"keepdims": 1})
        else:
            ones = self._number(np.ones((dims[1], 1, *kernel), np.int8))
            total = self._node("ConvInteger", [self._padded(x, pads), ones], given)
        total.type = self._number(np.int32(0)).type
        z = int(x.encoding.zero_point)
        if z:
            total = self._node("Add", [total, self._number(np.int32(-z * count))])
        ratio = x.encoding.scale / (output.scale * np.float32(count))
        scaled = self._node("Mul", [self._cast(total, FLOAT), self._number(np.float32(ratio))])
        self._store(node.outputs[0], self._round(scaled, output), output)
        return True

    # ------------------------------------------------------------ codes and real numbers

    def _activation(self, value: ir.Value) -> tuple[ir.Value, float | None, float | None]:
        """The value a kernel writes, over the Relu or Clip that alone reads `value` and is fused
        into it, and the real limits that this puts on it.
        """
        low: float | None = None
        high: float | None = None
        while Point(value.name or "") not in self.encodings and ir.used_once(value):
            node = next(iter(value.uses())).node
            if node.op_type == "Relu":
                limits: tuple[float | None, ...] = (0.0, None)
            elif node.op_type == "Clip":
                found = [ir.constant(v) for v in (*node.inputs[1:], None, None)][:2]
                limits = tuple(None if a is None else float(a) for a in found)
            else:
                break
            low = low if limits[0] is None else max(limits[0], -np.inf if low is None else low)
            high = high if limits[1] is None else min(limits[1], np.inf if high is None else high)
            value = node.outputs[0]
        return value, low, high

    def _round(
        self,
        x: ir.Value,
        output: Encoding,
        low: float | None = None,
        high: float | None = None,
        *,
        centred: bool = True,
    ) -> ir.Value:
        """int8 codes of `x`, in steps from the zero point (centred) or from 0."""
        z, scale = np.float32(output.zero_point), output.scale
        bottom, top = float(output.spec.qmin - z), float(output.spec.qmax - z)
        if low is not None:
            bottom = max(bottom, float(np.rint(np.float32(low) / scale)))
        if high is not None:
            top = min(top, float(np.rint(np.float32(high) / scale)))
        shift = np.float32(0) if centred else z
        limits = [self._number(np.float32(bottom + shift)), self._number(np.float32(top + shift))]
        clipped = self._node("Clip", [x, *limits])
        whole = self._node("Add", [clipped, self._number(MAGIC)])
        whole = self._node("Sub", [whole, self._number(np.float32(MAGIC - (z - shift)))])
        return self._cast(whole, INT8)

    def _quantized(self, name: str, value: ir.Value) -> None:
        """Make codes of a float value that the plan quantizes."""
        encoding = self.encodings.get(Point(name))
        if encoding is not None:
            codes = self._quantize(value, encoding)
            codes.shape = value.shape
            self.held[name] = _Held(codes, encoding)

    def _quantize(self, value: ir.Value, encoding: Encoding) -> ir.Value:
        return self._round(self._node("Div", [value, self._number(encoding.scale)]), encoding)

    def _real(self, held: _Held) -> ir.Value:
        if held.real is None:
            real = self._cast(held.codes, FLOAT)
            if held.encoding.zero_point:
                zero = self._number(np.float32(held.encoding.zero_point))
                real = self._node("Sub", [real, zero])
            held.real = self._node("Mul", [real, self._number(held.encoding.scale)])
        return held.real

    def _read(self, node: ir.Node, index: int) -> _Held | ir.Value | None:
        """Input `index` as the node reads it."""
        if index >= len(node.inputs) or node.inputs[index] is None:
            return None
        value = node.inputs[index]
        assert value is not None
        name = value.name or ""
        array = ir.constant(value)
        if array is not None:
            encoding = self.plan.at(name, node.name or "", index)
            if not isinstance(encoding, Encoding) or encoding.spec.axis is not None:
                return value
            if encoding.spec.bits > 8:
                return value
            return _Held(self._number(encoding.quantize(array)), encoding)
        own = self.encodings.get(Point(name, node.name or "", index))
        held = self.held.get(name)
        if own is None:
            return held or value
        real = self._real(held) if held is not None else value
        return _Held(self._quantize(real, own), own)

    def _weight(self, node: ir.Node) -> Encoding | None:
        value = node.inputs[1]
        if value is None or ir.constant(value) is None:
            return None
        found = self.plan.at(value.name or "", node.name or "", 1)
        return found if isinstance(found, Encoding) else None

    def _weight_codes(self, node: ir.Node) -> np.ndarray:
        weight, array = self._weight(node), ir.constant(node.inputs[1])
        assert isinstance(weight, Encoding) and array is not None
        return weight.quantize(array)

    def _bias_codes(self, node: ir.Node) -> np.ndarray | None:
        value = node.inputs[2] if len(node.inputs) > 2 else None
        array = ir.constant(value)
        if value is None or array is None:
            return None
        encoding = self.plan.at(value.name or "", node.name or "", 2)
        return encoding.quantize(array) if isinstance(encoding, Encoding) else None

    # ------------------------------------------------------------ the graph

    def _store(self, value: ir.Value, codes: ir.Value, encoding: Encoding) -> None:
        codes.shape = value.shape
        self.held[value.name or ""] = _Held(codes, encoding)
        producer = value.producer()
        while producer is not None and producer is not self.at:
            self.fused.add(id(producer))
            source = producer.inputs[0]
            producer = source.producer() if source is not None else None

    def _replace(self, node: ir.Node, real: ir.Value) -> None:
        """`real` takes the place of the node's output, and its name."""
        old = node.outputs[0]
        name, shape = old.name or "", old.shape
        ir.redirect(self.graph, old, real)
        if old.name == name:
            old.name = ir.fresh_name(self.graph, f"{name}_before")
        real.name, real.shape, real.type = name, shape, old.type
        self._quantized(name, real)

    def _last_node(self) -> ir.Node:
        """A node behind all others, to build before; `prune` removes it."""
        anchor = self._node("Identity", [self._number(np.float32(0))]).producer()
        assert anchor is not None
        self.graph.graph.remove(anchor)
        self.graph.graph.append(anchor)
        return anchor

    def _cast(self, value: ir.Value, kind: int) -> ir.Value:
        made = self._node("Cast", [value], {"to": kind})
        like = {INT8: np.int8(0), INT32: np.int32(0), FLOAT: np.float32(0)}[kind]
        made.type = self._number(np.asarray(like)).type
        return made

    def _node(
        self, op: str, inputs: list[ir.Value], attributes: Mapping[str, Any] | None = None
    ) -> ir.Value:
        return ir.add_node(self.graph, op, inputs, attributes, before=self.at)

    def _number(self, array: Any, shape: tuple[int, ...] | None = None) -> ir.Value:
        """A constant; the same numbers are stored once."""
        array = np.asarray(array)
        if shape is not None and array.ndim:
            array = array.reshape(shape)
        key = (array.dtype.str, array.tobytes(), array.shape)
        if key not in self.numbers:
            self.numbers[key] = ir.add_constant(self.graph, f"number_{len(self.numbers)}", array)
        return self.numbers[key]


def _signed(encoding: Encoding) -> Encoding:
    """The same real numbers with codes 128 lower, where those are uint8."""
    spec = encoding.spec
    if spec.signed or spec.bits != 8 or spec.narrow:
        return encoding
    return Encoding(replace(spec, signed=True), encoding.scale, encoding.zero_point - 128)
