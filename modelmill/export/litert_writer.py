"""`Writer`: one graph and its plan on their way into a LiteRT file; values, tensors, conversions.

A node becomes an int8 operator when everything it reads and writes has an encoding and LiteRT has
such an operator under these encodings: int8 activations with a zero point, weights symmetric per
output channel, int32 biases of scale s_x s_w; pools, paddings and other movement keep one encoding.
Otherwise it is written as the float operator between DEQUANTIZE and QUANTIZE, which is what the
plan means; whoever asks the engine what it ran sees it. Unsigned 8-bit codes are written as int8
codes minus 128. A ReLU behind a convolution, a matrix product or an addition becomes its fused
activation.
https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelmill import ir
from modelmill.export import litert_layout as layout
from modelmill.export.litert_file import Affine, File
from modelmill.export.litert_layout import Atom, View
from modelmill.ir import Plan
from modelmill.numerics import Encoding

METADATA = "modelmill"
LAYOUT_ONLY = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout")
FUSING = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul")
# Fused activations: the real range each one clamps to, and its number in the schema.
CLAMPS = {(0.0, np.inf): 1, (-1.0, 1.0): 2, (0.0, 6.0): 3}
# Operators whose inputs after the first are numbers of theirs, not tensors to compute with.
PARAMETERS_BEHIND = ("Resize", "Pad", "Slice", "Gather", "Split", "Clip")
NO_CLAMP = (-np.inf, np.inf)
# Operators whose int8 kernels fix the scale of the output: (scale, zero point as int8).
FIXED_OUTPUT = {
    "Sigmoid": (1 / 256, -128),
    "Softmax": (1 / 256, -128),
    "Tanh": (1 / 128, 0),
}
# Operators that keep the encoding of their input.
KEEPING = frozenset({
    "MaxPool", "AveragePool", "Pad", "Resize", "Slice", "Gather", "Split", "Relu",
    "DepthToSpace", "SpaceToDepth",
})  # fmt: skip
INT8 = frozenset({
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "Concat", "LeakyRelu",
    "GlobalAveragePool", "ReduceMean",
})  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One operator to be written: `node`, and behind it the activation that is fused into it.

    value: name of what it writes, of ONNX `shape`. encoding: None for a float operator.
    clamp: real range of the fused activation.
    """

    node: ir.Node
    value: str
    shape: tuple[int, ...]
    encoding: Encoding | None
    clamp: tuple[float, float]

    @property
    def attributes(self) -> dict[str, Any]:
        return ir.attributes(self.node)

    @property
    def activation(self) -> int:
        """Number of the fused activation; 0 where the range of the codes clamps by itself."""
        if self.clamp in CLAMPS:
            return CLAMPS[self.clamp]
        return 0

    def refuse(self, why: str) -> ValueError:
        """What, where, why."""
        return ValueError(f"LiteRT cannot run {self.node.op_type} {self.node.name!r}: {why}")


@dataclass(frozen=True)
class Held:
    """A value as it lies in the file; encoding None: float32."""

    view: View
    encoding: Encoding | None


Emit = Callable[["Writer", Step], None]


class Writer:
    """The state of one `write`; the operators (`litert_ops`) read and add through it."""

    def __init__(
        self, graph: ir.Graph, plan: Plan, codes: Mapping[str, str], integer_ends: bool
    ) -> None:
        self.graph, self.integer_ends = ir.infer_shapes(graph), integer_ends
        self.plan, self.codes = plan, codes
        self.encodings = plan.encodings()
        self.file = File()
        self.held: dict[str, Held] = {}
        self.constants = ir.constants(self.graph)
        self.done: set[str] = set()
        self.made: dict[Any, int] = {}  # layout changes and constants that exist already
        self.fed: dict[int, dict[str, Any]] = {}  # tensor of each input: what it is in ONNX

    # ------------------------------------------------------------ the whole file

    def write(self, ops: Mapping[str, Emit]) -> bytes:
        """The file; `ops` writes the operators, by their ONNX type."""
        for name, info in ir.inputs(self.graph).items():
            if name not in self.constants:
                self._feed(name, info)
        for node in ir.nodes(self.graph):
            if node.name in self.done:
                continue
            if node.op_type in LAYOUT_ONLY:
                self._relabel(node)
            elif node.op_type in ops:
                ops[node.op_type](self, self._step(node))
            else:
                raise ValueError(
                    f"the writer of LiteRT files has no operator {node.op_type} ({node.name!r})"
                )
        outputs, tensors = self._outputs()
        described = json.dumps({"inputs": list(self.fed.values()), "outputs": outputs}).encode()
        return self.file.pack(list(self.fed), tensors, {METADATA: described})

    def _feed(self, name: str, info: ir.ValueInfo) -> None:
        shape = tuple(dim for dim in info.shape if isinstance(dim, int))
        if info.dtype != np.float32 or len(shape) != len(info.shape):
            raise ValueError(
                f"input {name!r} is {info.dtype} of shape {info.shape}; the writer of LiteRT files "
                "takes float32 of fixed shape"
            )
        order = layout.channels_last(len(shape))
        encoding = self.encodings.get(ir.Point(name)) if self.integer_ends else None
        tensor = self.new(name, [shape[axis] for axis in order], encoding)
        self.fed[tensor] = {"name": name, "shape": shape, "order": order}
        self.store(name, Held(layout.fresh(tensor, shape, order), encoding))

    def _outputs(self) -> tuple[list[dict[str, Any]], list[int]]:
        described: list[dict[str, Any]] = []
        tensors: list[int] = []
        wanted = [(name, name, False) for name in ir.outputs(self.graph)]
        wanted += [(name, value, True) for name, value in self.codes.items()]
        for name, value, as_codes in wanted:
            held = self.fetch(value)
            held = held if as_codes or self.integer_ends else self.as_float(held)
            view, encoding = held.view, held.encoding
            tensor = view.tensor
            if tensor in self.fed:  # an input handed through: an output must be a tensor of its own
                shape = self.file.tensors[tensor].shape
                tensor = self.new(f"{name}_copy", shape, encoding)
                self._reshape(view.tensor, tensor, shape)
            if tensor not in tensors:
                tensors.append(tensor)
            described.append({
                "name": name,
                "position": tensors.index(tensor),
                "atoms": [size for _, size in view.atoms],
                "places": view.strides,
                "shape": view.shape,
                "codes": None if encoding is None else encoding.spec.storage.name,
            })  # fmt: skip
        return described, tensors

    # ------------------------------------------------------------ one node

    def _step(self, node: ir.Node) -> Step:
        """What to write for `node`: with its activation if that can be fused, int8 if it can be."""
        value, clamp = self._fused(node)
        encoding = self.encodings.get(ir.Point(value.name or ""))
        shape = ir.static_shape(value)
        if shape is None:
            raise ValueError(f"the shape of {value.name!r} ({node.name!r}) is not known")
        if encoding is None or not self._integer(node, encoding):
            encoding = None
        if encoding is None and clamp not in CLAMPS:
            value, clamp = node.outputs[0], NO_CLAMP
            shape = ir.static_shape(value) or shape
        elif value is not node.outputs[0]:
            self.done.add(next(iter(node.outputs[0].uses())).node.name or "")
        return Step(node, value.name or "", shape, encoding, clamp)

    def _fused(self, node: ir.Node) -> tuple[ir.Value, tuple[float, float]]:
        output = node.outputs[0]
        if node.op_type not in FUSING or not ir.used_once(output):
            return output, NO_CLAMP
        if ir.Point(output.name or "") in self.plan or output.name in self.codes.values():
            return output, NO_CLAMP
        follower = next(iter(output.uses())).node
        clamp = clamp_of(follower)
        if clamp is None or self._own_point(output, follower):
            return output, NO_CLAMP
        after = follower.outputs[0]
        encoding = self.encodings.get(ir.Point(after.name or ""))
        if clamp not in CLAMPS and not (encoding and _inside(encoding, clamp)):
            return output, NO_CLAMP
        return after, clamp

    def _own_point(self, value: ir.Value, node: ir.Node) -> bool:
        return ir.Point(value.name or "", node.name or "", 0) in self.plan

    def _integer(self, node: ir.Node, output: Encoding) -> bool:
        read = node.inputs[:1] if node.op_type in PARAMETERS_BEHIND else node.inputs
        sides = [
            self.plan.at(v.name or "", node.name or "", i)
            for i, v in enumerate(read)
            if v is not None and ir.dtype(v) in (None, np.dtype(np.float32))
        ]
        encodings = [side for side in sides if isinstance(side, Encoding)]
        return takes_int8(node, encodings, len(sides), output)

    def _relabel(self, node: ir.Node) -> None:
        """An operator that moves nothing: only the description of the value changes."""
        assert node.inputs[0] is not None
        held, output = self.read(node, 0, as_held=True), node.outputs[0]
        shape = ir.static_shape(output)
        if shape is None:
            raise ValueError(f"the shape of {output.name!r} ({node.name!r}) is not known")
        if node.op_type == "Transpose":
            rank = len(held.view.dims)
            order = ir.attributes(node).get("perm", tuple(reversed(range(rank))))
            view = layout.transposed(held.view, order)
        else:
            view = layout.reshaped(held.view, shape) or self._copied(held, shape)
        self.store(output.name or "", Held(view, held.encoding))

    def _copied(self, held: Held, shape: tuple[int, ...]) -> View:
        """A reshape across the factors of the dimensions: through the memory order of ONNX."""
        flat = tuple(atom for dim in held.view.dims for atom in dim)
        tensor = self.arranged(held.view, flat, shape)
        return layout.fresh(tensor, shape, range(len(shape)))

    # ------------------------------------------------------------ values

    def store(self, name: str, held: Held) -> None:
        """Remember what `name` is, in the encoding that the plan gives it, if it gives one."""
        wanted = self.encodings.get(ir.Point(name))
        self.held[name] = held if wanted is None else self.encoded(held, wanted)

    def fetch(self, name: str) -> Held:
        """A value as it lies; a constant becomes a tensor of the file."""
        if name not in self.held:
            array = self.constants[name]
            order = range(array.ndim)
            tensor = self.file.constant(name, np.ascontiguousarray(array, np.float32))
            self.held[name] = Held(layout.fresh(tensor, array.shape, order), None)
        return self.held[name]

    def read(self, node: ir.Node, index: int, as_held: bool = False) -> Held:
        """Input `index` in the encoding in which `node` reads it; `as_held`: no change of it needed
        where the plan says nothing.
        """
        value = node.inputs[index]
        assert value is not None
        wanted = self.plan.at(value.name or "", node.name or "", index)
        held = self.fetch(value.name or "")
        if isinstance(wanted, Encoding):
            return self.encoded(held, wanted)
        return held if as_held else self.as_float(held)

    def encoded(self, held: Held, encoding: Encoding) -> Held:
        """The value as codes of `encoding`: QUANTIZE from float or from other codes."""
        if held.encoding == encoding:
            return held
        tensor = self._convert(held, encoding)
        return Held(View(tensor, held.view.atoms, held.view.dims), encoding)

    def as_float(self, held: Held) -> Held:
        """The value in float: DEQUANTIZE if it is codes."""
        if held.encoding is None:
            return held
        return Held(View(self._convert(held, None), held.view.atoms, held.view.dims), None)

    def _convert(self, held: Held, encoding: Encoding | None) -> int:
        key = ("convert", held.view.tensor, encoding)
        if key not in self.made:
            self.made[key] = self._converted(held, encoding)
        return self.made[key]

    def _converted(self, held: Held, encoding: Encoding | None) -> int:
        facts = self.file.tensors[held.view.tensor]
        stem = f"{facts.name}_{'float' if encoding is None else 'codes'}"
        if facts.data is not None and encoding is not None and held.encoding is None:
            return self.file.constant(stem, stored(encoding, facts.data), affine(encoding))
        made = self.new(stem, facts.shape, encoding)
        op = "DEQUANTIZE" if encoding is None else "QUANTIZE"
        self.file.operator(op, [held.view.tensor], [made], f"{op.capitalize()}Options")
        return made

    # ------------------------------------------------------------ tensors

    def new(self, name: str, shape: Any, encoding: Encoding | None) -> int:
        """A new tensor of the file."""
        if encoding is None:
            return self.file.tensor(name, shape, np.float32)
        return self.file.tensor(name, shape, np.int8, affine(encoding))

    def indices(self, numbers: Any) -> int:
        """A constant tensor of int32."""
        array = np.asarray(numbers, np.int32)
        key = ("indices", array.shape, array.tobytes())
        if key not in self.made:
            self.made[key] = self.file.constant(f"indices_{len(self.made)}", array)
        return self.made[key]

    def output(self, step: Step, order: Any) -> int:
        """The tensor that `step` writes, its dimensions in `order`; remembered as its value."""
        shape = [step.shape[axis] for axis in order]
        tensor = self.new(step.value, shape, step.encoding)
        self.store(step.value, Held(layout.fresh(tensor, step.shape, order), step.encoding))
        return tensor

    def side(self, step: Step, index: int) -> Held:
        """Input `index` as the operator computes on it: float for a float operator."""
        held = self.read(step.node, index)
        return held if step.encoding is not None else self.as_float(held)

    def take(self, step: Step, index: int, order: Any) -> int:
        """The tensor of input `index`, its dimensions in `order`."""
        return self.ordered(self.side(step, index).view, order)

    def ordered(self, view: View, order: Any) -> int:
        """The tensor that holds `view` with its dimensions in `order`."""
        atoms = tuple(atom for axis in order for atom in view.dims[axis])
        return self.arranged(view, atoms, [layout.length(view.dims[axis]) for axis in order])

    def arranged(self, view: View, atoms: tuple[Atom, ...], shape: Any) -> int:
        """The tensor that holds `view` with its atoms in this order, of this shape."""
        shape = tuple(shape)
        if view.atoms == atoms and self.file.tensors[view.tensor].shape == shape:
            return view.tensor
        key = ("arranged", view.tensor, tuple(view.atoms.index(atom) for atom in atoms), shape)
        if key not in self.made:
            self.made[key] = self._arrange(view, atoms, shape)
        return self.made[key]

    def _arrange(self, view: View, atoms: tuple[Atom, ...], shape: tuple[int, ...]) -> int:
        source = view.tensor
        if view.atoms != atoms:
            groups = _groups(atoms, shape)
            if not all(_together(group, view.atoms) for group in groups):
                groups = [(atom,) for atom in atoms]
            # Where a dimension of length 1 stands does not matter: put them first.
            memory = sorted(
                range(len(groups)),
                key=lambda g: view.atoms.index(groups[g][0]) if groups[g] else -1,
            )
            source = self._reshaped(source, [layout.length(groups[g]) for g in memory])
            after = tuple(layout.length(group) for group in groups)
            order = [memory.index(g) for g in range(len(groups))]
            facts = self.file.tensors[source]
            moved = self.file.tensor(f"{facts.name}_moved", after, facts.dtype, facts.affine)
            self.file.operator(
                "TRANSPOSE", [source, self.indices(order)], [moved], "TransposeOptions"
            )
            source = moved
        return self._reshaped(source, shape)

    def _reshaped(self, source: int, shape: Any) -> int:
        facts = self.file.tensors[source]
        if facts.shape == tuple(shape):
            return source
        key = ("reshaped", source, tuple(shape))
        if key not in self.made:
            made = self.file.tensor(f"{facts.name}_reshaped", shape, facts.dtype, facts.affine)
            self._reshape(source, made, shape)
            self.made[key] = made
        return self.made[key]

    def _reshape(self, source: int, made: int, shape: Any) -> None:
        self.file.operator("RESHAPE", [source, self.indices(shape)], [made], "ReshapeOptions")


def affine(encoding: Encoding) -> Affine:
    """Scale and zero point of int8 codes; unsigned ones are shifted by 128."""
    if encoding.spec.bits > 8:
        raise ValueError(f"LiteRT files are written with 8-bit codes, not with {encoding.spec}")
    shift = 0 if encoding.spec.signed else 128
    scale = np.atleast_1d(encoding.scale).astype(np.float32)
    zero_point = np.atleast_1d(encoding.zero_point).astype(np.int64) - shift
    return Affine(scale, zero_point, encoding.spec.axis or 0)


def stored(encoding: Encoding, array: np.ndarray) -> np.ndarray:
    """The int8 codes of a constant, as the file holds them."""
    shift = 0 if encoding.spec.signed else 128
    return (encoding.quantize(array).astype(np.int32) - shift).astype(np.int8)


def clamp_of(node: ir.Node) -> tuple[float, float] | None:
    """The real range to which an activation clamps; None for anything else."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip":
        return None
    attributes = ir.attributes(node)
    ends = [attributes.get("min", -np.inf), attributes.get("max", np.inf)]
    for index in (1, 2):
        if len(node.inputs) > index and node.inputs[index] is not None:
            array = ir.constant(node.inputs[index])
            if array is None:
                return None
            ends[index - 1] = float(array)
    return float(ends[0]), float(ends[1])


def _inside(encoding: Encoding, clamp: tuple[float, float]) -> bool:
    """Whether codes cannot leave the range anyway."""
    return bool(encoding.low >= clamp[0] and encoding.high <= clamp[1])


def _groups(atoms: tuple[Atom, ...], shape: tuple[int, ...]) -> list[tuple[Atom, ...]]:
    """The atoms of each dimension of `shape`; each atom alone if they do not end together."""
    left, groups = list(atoms), []
    for size in shape:
        group: list[Atom] = []
        while layout.length(group) < size and left:
            group.append(left.pop(0))
        if layout.length(group) != size:
            return [(atom,) for atom in atoms]
        groups.append(tuple(group))
    return groups


def _together(group: tuple[Atom, ...], memory: tuple[Atom, ...]) -> bool:
    """Whether the atoms of a group follow one another in memory."""
    places = [memory.index(atom) for atom in group]
    return places == list(range(places[0], places[0] + len(places))) if places else True


def takes_int8(node: ir.Node, sides: Sequence[Encoding], reads: int, output: Encoding) -> bool:
    """Whether LiteRT has an int8 kernel for `node` with these encodings.

    sides: encodings of the float inputs, as far as they have one; reads: how many there are.
    """
    op = node.op_type
    if any(e.spec.bits > 8 for e in (*sides[:2], output)):
        return False
    if op in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        weight = ir.constant(node.inputs[1])
        return (
            len(sides) >= 2 and weight is not None and not np.any(sides[1].zero_point)
        ) and plain_gemm(node)
    if len(sides) < reads:
        return False
    if op in FIXED_OUTPUT:
        scale, zero_point = FIXED_OUTPUT[op]
        shift = 0 if output.spec.signed else 128
        return bool(output.scale == np.float32(scale) and output.zero_point - shift == zero_point)
    if op in KEEPING:
        return sides[0] == output
    return op in INT8


def plain_gemm(node: ir.Node) -> bool:
    """Whether a Gemm is a fully connected layer; True for other operators."""
    given = ir.attributes(node)
    usual = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    return node.op_type != "Gemm" or all(given.get(name, x) == x for name, x in usual.items())
