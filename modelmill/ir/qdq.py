"""Plan <-> QDQ: write a plan into a graph as QuantizeLinear / DequantizeLinear nodes, and read it
back.

    activation  x        ->  x - QuantizeLinear - DequantizeLinear -> consumers
    constant    w        ->  codes of w - DequantizeLinear -> consumers        (weights, int32
                biases)
                four bits or fewer, packed: INT4 codes of w - Cast to int8 - DequantizeLinear; an
                engine unpacks them as it folds constants when it loads the file
    movement    y=f(x)   ->  codes of x - f - codes of y - DequantizeLinear -> consumers, when x and
                y share an encoding
                             and the target runs f on codes (`on_codes`)

The spec of each encoding travels in the metadata of its nodes, as ONNX itself cannot say that an
int8 tensor holds 7-bit codes; files written by others are read by what their element type and zero
points tell.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, replace

import numpy as np
import onnx_ir

from modelmill.ir import graph as g
from modelmill.ir.load import at_opset
from modelmill.ir.plan import Plan, Point
from modelmill.numerics import Encoding, QuantSpec

SPEC_KEY = "modelmill.spec"
METADATA_IR_VERSION = 10  # nodes have metadata since
LOWEST_OPSET = 13  # per-axis DequantizeLinear
OPSET_OTHER_WIDTHS = 21  # codes of 16 and of 4 bits
PACKED_BITS = 4


def to_qdq(
    graph: g.Graph,
    plan: Plan,
    on_codes: Collection[str] = (),
    shield: Collection[str] = (),
    packed: bool = False,
) -> g.Graph:
    """A clone of `graph` with the encodings of `plan` written as Q/DQ nodes.

    Args:
        graph: a float graph, opset 13 or later.
        plan: encodings only; points at values that the graph lacks are an error.
        on_codes: op types that are moved between Q and DQ where their input and output share an
        encoding.
        shield: op types of which float nodes are protected from being quantized by the engine.
        packed: constants of four bits or fewer are stored as INT4 or UINT4.

    Raises:
        ValueError: a point has no encoding or no such value, or the format cannot be written as
        QDQ.
    """
    if g.opset(graph) < LOWEST_OPSET:
        raise g.ModelError(
            f"QDQ needs opset {LOWEST_OPSET} or later, the model has {g.opset(graph)}"
        )
    specs = [plan.spec(point) for point in plan]
    if any(spec.logarithmic for spec in specs):
        raise ValueError(
            "logarithmic codes cannot be written as QDQ, whose codes are multiples of a scale; "
            "such a plan can be simulated, and exported in the format of its chip"
        )
    other = any(spec.bits == 16 or (packed and spec.bits <= PACKED_BITS) for spec in specs)
    made = at_opset(graph, OPSET_OTHER_WIDTHS) if other else g.clone(graph)
    made.ir_version = max(made.ir_version, METADATA_IR_VERSION)
    _Writer(made, plan, on_codes, shield, packed).write()
    return made


class _Writer:
    """One run of `to_qdq` over a fresh clone: remembers the codes and the dequantized form of every
    value.
    """

    def __init__(
        self,
        graph: g.Graph,
        plan: Plan,
        on_codes: Collection[str],
        shield: Collection[str],
        packed: bool,
    ) -> None:
        self.graph, self.plan, self.on_codes, self.shield = graph, plan, on_codes, shield
        self.packed = packed
        self.encodings = plan.encodings()
        self.values = g.values(graph)
        self.taken = set(self.values) | {node.name or "" for node in graph.graph}
        self.codes: dict[str, g.Value] = {}
        self.parameters: dict[Encoding, tuple[g.Value, g.Value]] = {}
        missing = [point for point in plan if point.value not in self.values]
        if missing:
            raise ValueError(f"the plan names {missing[0].value!r}, which the graph does not have")

    def write(self) -> None:
        names = {id(value): name for name, value in self.values.items()}
        nodes = g.nodes(self.graph)
        consumers: dict[str, list[tuple[g.Node, int]]] = {}
        for node in nodes:
            for index, value in enumerate(node.inputs):
                if value is not None:
                    consumers.setdefault(names[id(value)], []).append((node, index))
        outputs = {names[id(v)]: i for i, v in enumerate(self.graph.graph.outputs)}
        done: set[str] = set()
        for fed in self.graph.graph.inputs:
            self._activation(names[id(fed)], consumers.get(names[id(fed)], []), outputs)
        for node in nodes:
            done |= self._to_codes(node)
            sources = [v.name for v in node.outputs if v.name]
            for name in sources:
                if name not in done:
                    self._activation(name, consumers.get(name, []), outputs)
        for name, value in list(self.graph.graph.initializers.items()):
            if name in self.values and value is self.values[name]:
                self._constant(name, consumers.get(name, []))
        g.prune(self.graph)

    def _activation(
        self, name: str, consumers: list[tuple[g.Node, int]], outputs: dict[str, int]
    ) -> None:
        value = self.values[name]
        whole = self.encodings.get(Point(name))
        for node, index in consumers:
            own = self.encodings.get(Point(name, node.name or "", index))
            if own is not None:
                _, real = self._quantize(value, own, f"{name}_to_{node.name}_{index}", node)
                node.replace_input_with(index, real)
        if whole is None:
            return
        rest = [(n, i) for n, i in consumers if Point(name, n.name or "", i) not in self.encodings]
        first = min((n for n, _ in rest), key=self._order, default=None)
        codes, real = self._quantize(value, whole, name, first)
        self.codes[name] = codes
        for node, index in rest:
            node.replace_input_with(index, self._shielded(node, index, codes, whole, real))
        if name in outputs and not value.is_graph_input():
            value.name, real.name = self._name(f"{name}_float"), name
            real.shape = value.shape
            self.graph.graph.outputs[outputs[name]] = real

    def _constant(self, name: str, consumers: list[tuple[g.Node, int]]) -> None:
        """Replace a constant by its codes; consumers with a point of their own get codes of their
        own.
        """
        array = g.constant(self.values[name])
        for node, index in consumers:
            encoding = self.plan.at(name, node.name or "", index)
            if encoding is None or array is None:
                continue
            assert isinstance(encoding, Encoding)
            own = Point(name, node.name or "", index) in self.plan
            key = f"{name}_to_{node.name}_{index}" if own else name
            if key not in self.codes:
                codes = self._stored(key, encoding.quantize(array), encoding.spec, node)
                self.codes[key] = self._dequantize(codes, encoding, key, node)
            node.replace_input_with(index, self.codes[key])

    def _stored(self, key: str, codes: np.ndarray, spec: QuantSpec, before: g.Node) -> g.Value:
        """A value that holds constant codes in 8 bits or more, however the file holds them."""
        if not self.packed or spec.bits > PACKED_BITS:
            return self._initializer(f"{key}_quantized", codes)
        half = onnx_ir.DataType.INT4 if spec.signed else onnx_ir.DataType.UINT4
        packed = self._initializer(f"{key}_packed", codes.astype(half.numpy()))
        whole = onnx_ir.DataType.from_numpy(spec.storage)
        cast = onnx_ir.node("Cast", [packed], {"to": int(whole)}, name=self._name(f"{key}_Cast"))
        made = cast.outputs[0]
        made.name = self._name(f"{key}_quantized")
        made.type, made.shape = onnx_ir.TensorType(whole), packed.shape
        self.graph.graph.insert_before(before, cast)
        return made

    def _to_codes(self, node: g.Node) -> set[str]:
        """Let a movement node work on codes; returns the names of the outputs handled."""
        data, output = node.inputs[0] if node.inputs else None, node.outputs[0]
        source = data.producer() if data is not None else None
        if (
            node.op_type not in self.on_codes
            or source is None
            or source.op_type != "DequantizeLinear"
        ):
            return set()
        name = output.name or ""
        here, there = self.encodings.get(Point(name)), source.inputs[0]
        before = self._encoding_of(source)
        if (
            here is None
            or before is None
            or here != before
            or there is None
            or len(node.outputs) != 1
        ):
            return set()
        if output.is_graph_output() or any(p.value == name and p.node for p in self.plan):
            return set()
        if node.op_type == "Pad" and not self._pad_codes(node, here):
            return set()
        uses = list(output.uses())
        node.replace_input_with(0, there)
        output.type = there.type
        first = min((use.node for use in uses), key=self._order, default=None)
        real = self._dequantize(output, here, name, first)
        for use in uses:
            shielded = self._shielded(use.node, use.idx, output, here, real)
            use.node.replace_input_with(use.idx, shielded)
        real.shape = output.shape
        return {name}

    def _pad_codes(self, node: g.Node, encoding: Encoding) -> bool:
        """Padding with the real number 0 is padding with the zero point."""
        if g.attributes(node).get("mode", "constant") != "constant":
            return True
        fill = node.inputs[2] if len(node.inputs) > 2 else None
        if fill is not None and (g.constant(fill) is None or np.any(g.constant(fill))):
            return False
        zero = self._initializer(
            f"{node.name}_zero_point", encoding.zero_point.astype(encoding.spec.storage)
        )
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, zero)
        return True

    def _encoding_of(self, dequantize: g.Node) -> Encoding | None:
        for encoding, (scale, zero_point) in self.parameters.items():
            if dequantize.inputs[1] is scale and dequantize.inputs[2] is zero_point:
                return encoding
        return None

    def _order(self, node: g.Node) -> int:
        if not hasattr(self, "_positions"):
            self._positions = {id(n): i for i, n in enumerate(self.graph.graph)}
        return self._positions[id(node)]

    def _quantize(
        self, value: g.Value, encoding: Encoding, stem: str, before: g.Node | None
    ) -> tuple[g.Value, g.Value]:
        spec = encoding.spec
        if spec.bits not in (8, 16):
            raise ValueError(
                f"{stem}: {spec} activations cannot be written as QDQ, whose QuantizeLinear "
                "saturates at 8 or 16 bits. "
                "They can be simulated; build with 8-bit activations to deploy."
            )
        scale, zero_point = self._parameters(encoding, stem)
        node = self._node(
            "QuantizeLinear", [value, scale, zero_point], spec, f"{stem}_quantized", before
        )
        codes = node.outputs[0]
        codes.type = onnx_ir.TensorType(onnx_ir.DataType.from_numpy(spec.storage))
        codes.shape = value.shape
        return codes, self._dequantize(codes, encoding, stem, before)

    def _shielded(
        self, node: g.Node, index: int, codes: g.Value, encoding: Encoding, real: g.Value
    ) -> g.Value:
        """What a layer that stays float reads instead of `real`: the same numbers, with the scale
        written once per channel. Engines that quantize weights on their own between a
        DequantizeLinear and a QuantizeLinear do so for per-tensor scales only.
        """
        weight = g.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if node.op_type not in self.shield or index != 0 or weight is None:
            return real
        assert node.inputs[1] is not None
        if self.plan.at(node.inputs[1].name or "", node.name or "", 1) is not None:
            return real
        attributes = g.attributes(node)
        if node.op_type == "Gemm":
            channels = weight.shape[1] if attributes.get("transB", 0) else weight.shape[0]
        elif node.op_type == "ConvTranspose":
            channels = weight.shape[0]
        else:
            channels = weight.shape[1] * int(attributes.get("group", 1))
        stem = f"{codes.name}_per_channel"
        numbers = replace(encoding.spec, axis=1)
        spread = Encoding(
            numbers, np.full(channels, encoding.scale), np.full(channels, encoding.zero_point)
        )
        made = self._dequantize(codes, spread, stem, node)
        producer = made.producer()
        assert producer is not None
        producer.metadata_props[SPEC_KEY] = json.dumps(asdict(encoding.spec))
        return made

    def _dequantize(
        self, codes: g.Value, encoding: Encoding, stem: str, before: g.Node | None
    ) -> g.Value:
        scale, zero_point = self._parameters(encoding, stem)
        made = self._node(
            "DequantizeLinear",
            [codes, scale, zero_point],
            encoding.spec,
            f"{stem}_dequantized",
            before,
        )
        real = made.outputs[0]
        real.type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
        real.shape = codes.shape
        return real

    def _parameters(self, encoding: Encoding, stem: str) -> tuple[g.Value, g.Value]:
        if encoding not in self.parameters:
            storage = encoding.spec.storage
            self.parameters[encoding] = (
                self._initializer(f"{stem}_scale", encoding.scale),
                self._initializer(f"{stem}_zero_point", encoding.zero_point.astype(storage)),
            )
        return self.parameters[encoding]

    def _node(
        self, op: str, inputs: list[g.Value], spec: QuantSpec, stem: str, before: g.Node | None
    ) -> g.Node:
        """Insert right before the first consumer, or at the end: the order stays topological."""
        axis = {} if spec.axis is None else {"axis": spec.axis}
        node = onnx_ir.node(op, inputs, axis, name=self._name(f"{stem}_{op}"))
        node.outputs[0].name = self._name(stem)
        node.metadata_props[SPEC_KEY] = json.dumps(asdict(spec))
        if before is None:
            self.graph.graph.append(node)
        else:
            self.graph.graph.insert_before(before, node)
        return node

    def _initializer(self, stem: str, array: np.ndarray) -> g.Value:
        name = self._name(stem)
        tensor = onnx_ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
        value = onnx_ir.Value(
            name=name,
            shape=onnx_ir.Shape(array.shape),
            type=onnx_ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.graph.register_initializer(value)
        return value

    def _name(self, stem: str) -> str:
        name, count = stem, 0
        while name in self.taken:
            count += 1
            name = f"{stem}_{count}"
        self.taken.add(name)
        return name


def from_qdq(graph: g.Graph) -> tuple[g.Graph, Plan]:
    """A float graph and the plan that a QDQ graph holds; `to_qdq` of the two means the same
    computation.

    Constants come back as the real numbers their codes stand for. Raises ValueError for scales that
    are not constants.
    """
    made = g.clone(graph)
    points: dict[Point, QuantSpec | Encoding] = {}
    # codes -> the real value they encode, whether all its consumers read the codes, and the
    # encoding
    sources: dict[int, tuple[g.Value, bool, Encoding]] = {}
    movement = _movement_on_codes(made)
    for node in g.nodes(made):
        first = node.inputs[0] if node.inputs else None
        if node.op_type == "QuantizeLinear":
            assert first is not None
            whole = len(list(first.uses())) == 1 and not first.is_graph_output()
            sources[id(node.outputs[0])] = (first, whole, _read_encoding(node))
        elif node.op_type == "DequantizeLinear":
            assert first is not None
            encoding = _read_encoding(node)
            stored = _stored(first)
            if stored is not None:
                stem = (first.name or "").removesuffix("_quantized")
                real, whole = g.add_constant(made, stem, encoding.dequantize(stored)), True
            elif id(first) in sources:
                real, whole, _ = sources[id(first)]
            else:
                raise ValueError(
                    f"{node.name!r} dequantizes {first.name!r}, which is neither quantized nor "
                    "constant"
                )
            points |= _bypass(made, node, real, encoding, whole)
        elif node.name in movement:
            real, whole, encoding = sources[id(first)]
            node.replace_input_with(0, real)
            read = Point(real.name or "") if whole else Point(real.name or "", node.name or "", 0)
            points[read] = encoding
            if node.op_type == "Pad" and len(node.inputs) > 2:
                node.replace_input_with(2, None)
            node.outputs[0].type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
            sources[id(node.outputs[0])] = (node.outputs[0], True, encoding)
            points[Point(node.outputs[0].name or "")] = encoding
    g.prune(made)
    return made, Plan(points)


def _stored(codes: g.Value) -> np.ndarray | None:
    """Constant codes, also behind the Cast that unpacks them; None for codes of an activation."""
    cast = codes.producer()
    if cast is not None and cast.op_type == "Cast":
        return g.constant(cast.inputs[0])
    return g.constant(codes)


def _movement_on_codes(graph: g.Graph) -> set[str]:
    """Names of the nodes that work on codes between a Q and a DQ."""
    codes: set[int] = set()
    found: set[str] = set()
    for node in g.nodes(graph):
        on_codes = bool(node.inputs) and id(node.inputs[0]) in codes
        if node.op_type == "QuantizeLinear":
            codes.add(id(node.outputs[0]))
        elif on_codes and node.op_type != "DequantizeLinear":
            codes.add(id(node.outputs[0]))
            found.add(node.name or "")
    return found


def _bypass(
    graph: g.Graph, dequantize: g.Node, real: g.Value, encoding: Encoding, whole: bool
) -> dict[Point, Encoding]:
    """Let the consumers of a DequantizeLinear read the real value; the points that say what they
    read.
    """
    output = dequantize.outputs[0]
    uses = list(output.uses())
    for use in uses:
        use.node.replace_input_with(use.idx, real)
    if output.is_graph_output():
        name = output.name or ""
        graph.graph.outputs[list(graph.graph.outputs).index(output)] = real
        output.name, real.name = g.fresh_name(graph, f"{name}_was"), name
    if whole:
        return {Point(real.name or ""): encoding}
    return {Point(real.name or "", use.node.name or "", use.idx): encoding for use in uses}


def _read_encoding(node: g.Node) -> Encoding:
    scale = g.constant(node.inputs[1])
    zero_point = g.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or (zero_point is None and len(node.inputs) > 2):
        raise ValueError(f"{node.op_type} {node.name!r}: scale and zero point must be constants")
    noted = node.metadata_props.get(SPEC_KEY)
    if noted is not None:
        spec = QuantSpec(**json.loads(noted))
        if spec.axis is None and scale.ndim:  # one scale, spread over channels by `_shielded`
            scale = scale[0]
            zero_point = None if zero_point is None else zero_point[0]
    else:
        codes = node.inputs[0]
        kind = (
            zero_point.dtype
            if zero_point is not None
            else g.dtype(codes)
            if codes is not None
            else None
        )
        half = kind is not None and kind.name in ("int4", "uint4")  # kinds of their own in numpy
        if kind is None or not (half or kind.kind in "iu"):
            raise ValueError(
                f"{node.op_type} {node.name!r}: the element type of its codes is unknown"
            )
        signed = kind.name.startswith("int")
        symmetric = signed and (zero_point is None or not zero_point.any())
        axis = int(g.attributes(node).get("axis", 1)) if scale.ndim else None
        spec = QuantSpec(4 if half else kind.itemsize * 8, signed, symmetric, axis)
    zeros = np.zeros(scale.shape, np.int32) if zero_point is None else zero_point.astype(np.int32)
    return Encoding(spec, scale, zeros)


def code_values(graph: g.Graph) -> dict[str, str]:
    """Of a QDQ graph: {value quantized as a whole: the value that holds its codes}, in graph order.

    Names are those `from_qdq` gives: an output keeps its name, and a movement node on codes has the
    name of its real output.
    """
    found: dict[str, str] = {}
    movement = _movement_on_codes(graph)
    for node in g.nodes(graph):
        first = node.inputs[0] if node.inputs else None
        output = node.outputs[0]
        if node.op_type == "QuantizeLinear":
            assert first is not None
            readers = [
                use.node.outputs[0]
                for use in output.uses()
                if use.node.op_type == "DequantizeLinear"
            ]
            shown = next((r.name for r in readers if r.is_graph_output()), None)
            if shown or len(list(first.uses())) == 1:
                found[shown or first.name or ""] = output.name or ""
        elif node.name in movement:
            found[output.name or ""] = output.name or ""
    return found


def without_exposed(graph: g.Graph) -> tuple[g.Graph, dict[str, str]]:
    """A clone of a QDQ graph without the codes among its outputs, and {name of such an output:
    the value of the float graph (as `from_qdq` names it) whose codes it holds}.
    """
    holders = {codes: value for value, codes in code_values(graph).items()}
    made = g.clone(graph)
    kept = [v for v in made.graph.outputs if v.name not in holders]
    found = {v.name or "": holders[v.name] for v in made.graph.outputs if v.name in holders}
    made.graph.outputs[:] = kept
    return made, found
