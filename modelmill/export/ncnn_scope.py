"""The values of an ONNX graph as blobs of an ncnn net: what the operators of `ncnn_layers` read and
write.

A value of shape (1, C, H, W) is the blob (C, H, W): ncnn has no batch. Where a shape does not begin
with 1 (the two halves of a channel shuffle) the whole shape is the blob's. A blob has at most four
dimensions; of longer shapes the 1s go. The same elements may be held with other dimensions than the
value's own, a Reshape costs nothing until somebody reads it: `read` adds the layer when the
dimensions differ.

A value with an encoding has two blobs: its real numbers, and its codes, which a Quantize layer
makes, or the convolution that writes it. Integer layers read the codes. What else reads such a
value gets `codes * scale`, as the plan says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from modelmill import ir
from modelmill.export.ncnn_net import Blob, Dims, Net, Parameter, raw, tagged
from modelmill.ir import Plan, Point
from modelmill.numerics import Encoding

MOST_DIMS = 4
INT8, FLOAT32 = 3, 1  # element types of the layer Cast
MULTIPLY = 2  # operation of the layer BinaryOp


class Scope:
    """The state of one export: the net so far, and which blob holds which value."""

    def __init__(self, graph: ir.Graph, plan: Plan) -> None:
        self.net = Net()
        self.plan, self.encodings = plan, plan.encodings()
        self.constants = ir.constants(graph)
        self.done: set[int] = set()  # ids of nodes that became part of an earlier node's layer
        self._real: dict[str, Blob] = {}
        self._codes: dict[tuple[str, Dims, Encoding], Blob] = {}
        self._views: dict[tuple[str, Dims], Blob] = {}
        self._restored: dict[str, Blob] = {}

    # ------------------------------------------------------------ what a value is

    def shape(self, node: ir.Node, value: ir.Value | None) -> tuple[int, ...]:
        """The shape of `value`, which must be known."""
        shape = None if value is None else ir.static_shape(value)
        if shape is None:
            name = None if value is None else value.name
            raise refuse(node, f"the shape of {name!r} is not known before it runs")
        return shape

    def in_shape(self, node: ir.Node, index: int = 0) -> tuple[int, ...]:
        return self.shape(node, node.inputs[index])

    def out_shape(self, node: ir.Node, index: int = 0) -> tuple[int, ...]:
        return self.shape(node, node.outputs[index])

    def constant(self, node: ir.Node, index: int) -> np.ndarray | None:
        """Input `index` of `node` if it is a constant."""
        value = node.inputs[index] if index < len(node.inputs) else None
        return None if value is None else self.constants.get(value.name or "")

    def encoding(self, node: ir.Node, index: int) -> Encoding | None:
        """The encoding of what `node` reads as input `index`."""
        value = node.inputs[index] if index < len(node.inputs) else None
        found = None if value is None else self.plan.at(value.name or "", node.name or "", index)
        return found if isinstance(found, Encoding) else None

    # ------------------------------------------------------------ read and write

    def put(self, value: ir.Value, blob: Blob) -> None:
        """`blob` holds the real numbers of `value`."""
        self._real[value.name or ""] = blob

    def put_codes(self, value: ir.Value, blob: Blob) -> None:
        """`blob` holds the codes of `value`, which nobody reads as real numbers."""
        self._codes[value.name or "", blob.dims, self.encodings[Point(value.name or "")]] = blob

    def read(self, node: ir.Node, index: int = 0, dims: Dims | None = None) -> Blob:
        """The real numbers of input `index`, with dimensions `dims` (None: those of its shape)."""
        value = node.inputs[index]
        assert value is not None
        return self.view(self.loose(node, index), dims or self.dims(node, value))

    def loose(self, node: ir.Node, index: int = 0) -> Blob:
        """The same with whatever dimensions it has: for operators on single elements."""
        value = node.inputs[index]
        assert value is not None
        name = value.name or ""
        if name in self.constants:
            if self.encoding(node, index) is not None:
                raise refuse(node, f"the constant {name!r} cannot be quantized here")
            return self.memory(self.constants[name], self.dims(node, value), name)
        encoding = self.encoding(node, index)
        return self._real[name] if encoding is None else self._restore(name, encoding)

    def codes(self, node: ir.Node, index: int, dims: Dims) -> Blob:
        """The codes of input `index`, which has an encoding, with dimensions `dims`."""
        value, encoding = node.inputs[index], self.encoding(node, index)
        assert value is not None and encoding is not None
        return self._quantized(value.name or "", encoding, dims)

    def held_codes(self, name: str) -> Blob:
        """The codes of a value that has an encoding for all its readers."""
        encoding = self.encodings[Point(name)]
        held = [b for (n, _, of), b in self._codes.items() if (n, of) == (name, encoding)]
        return held[0] if held else self._quantized(name, encoding, self._real[name].dims)

    def output(self, value: ir.Value) -> Blob:
        """What a graph output gives back: real numbers, rounded to codes if the plan says so."""
        encoding = self.encodings.get(Point(value.name or ""))
        if (value.name or "") in self.constants:
            raise ValueError(f"ncnn: the output {value.name!r} is a constant")
        if encoding is None:
            return self._real[value.name or ""]
        return self._restore(value.name or "", encoding)

    def dims(self, node: ir.Node, value: ir.Value) -> Dims:
        """The dimensions of a value's own shape."""
        return dims_of(node, self.shape(node, value))

    # ------------------------------------------------------------ layers without a node

    def view(self, blob: Blob, dims: Dims) -> Blob:
        """The same elements with other dimensions."""
        if blob.dims == dims:
            return blob
        assert math.prod(blob.dims) == math.prod(dims), (blob, dims)
        key = blob.name, dims
        if key not in self._views:
            ids = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 11, 1, 0)}[len(dims)]
            parameters = dict(zip(ids, dims, strict=True))
            (self._views[key],) = self.net.add("Reshape", "reshape", [blob], [dims], parameters)
        return self._views[key]

    def memory(self, array: np.ndarray, dims: Dims, name: str) -> Blob:
        """A constant as a blob."""
        ids = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 11, 1, 0)}[len(dims)]
        parameters = dict(zip(ids, dims, strict=True))
        (blob,) = self.net.add("MemoryData", name, [], [dims], parameters, [raw(array)])
        return blob

    def layer(
        self,
        node: ir.Node,
        kind: str,
        bottoms: Sequence[Blob],
        dims: Dims,
        parameters: Mapping[int, Parameter] | None = None,
        weights: Sequence[bytes] = (),
    ) -> Blob:
        """A layer named after `node` that writes one blob."""
        (blob,) = self.net.add(kind, node.name or "", bottoms, [dims], parameters, weights)
        return blob

    def _quantized(self, name: str, encoding: Encoding, dims: Dims) -> Blob:
        key = name, dims, encoding
        if key in self._codes:
            return self._codes[key]
        check_activation(name, encoding)
        (self._codes[key],) = self.net.add(
            "Quantize",
            f"{name}_quantize",
            [self.view(self._real[name], dims)],
            [dims],
            {0: 1},
            [raw(np.float32(1) / encoding.scale)],
        )
        return self._codes[key]

    def _restore(self, name: str, encoding: Encoding) -> Blob:
        if name not in self._restored:
            held = [b for (n, _, of), b in self._codes.items() if (n, of) == (name, encoding)]
            codes = held[0] if held else self._quantized(name, encoding, self._real[name].dims)
            (real,) = self.net.add(
                "Cast", f"{name}_cast", [codes], [codes.dims], {0: INT8, 1: FLOAT32}
            )
            parameters = {0: MULTIPLY, 1: 1, 2: float(encoding.scale)}
            (self._restored[name],) = self.net.add(
                "BinaryOp", f"{name}_dequantize", [real], [real.dims], parameters
            )
        return self._restored[name]


def refuse(node: ir.Node, why: str) -> ValueError:
    """The error for a node that ncnn cannot run."""
    return ValueError(f"ncnn cannot run {node.op_type} {node.name!r}: {why}")


def kept_axes(node: ir.Node, shape: Sequence[int]) -> list[int]:
    """The axes of a value that its blob has."""
    axes = _axes(shape)
    if len(axes) > MOST_DIMS:
        raise refuse(node, f"a tensor of shape {tuple(shape)} has more than four dimensions")
    return axes


def dims_of(node: ir.Node, shape: Sequence[int]) -> Dims:
    """The dimensions of the blob of a value of this shape; a number is a blob of one element."""
    return tuple(shape[axis] for axis in kept_axes(node, shape)) or (1,)


def blob_dims(name: str | None, shape: Sequence[int]) -> Dims:
    """The same for an input of the graph."""
    axes = _axes(shape)
    if len(axes) > MOST_DIMS:
        raise ValueError(
            f"ncnn: the input {name!r} of shape {tuple(shape)} has too many dimensions"
        )
    return tuple(shape[axis] for axis in axes) or (1,)


def _axes(shape: Sequence[int]) -> list[int]:
    axes = list(range(len(shape)))
    if len(axes) > 1 and shape[0] == 1:
        axes = axes[1:]
    for axis in list(axes):
        if len(axes) > MOST_DIMS and shape[axis] == 1:
            axes.remove(axis)
    return axes


def check_activation(name: str, encoding: Encoding) -> None:
    """Raise ValueError for what is not ncnn's: codes -127..127, one scale, no zero point."""
    spec = encoding.spec
    if spec.axis is not None or (spec.qmin, spec.qmax) != (-127, 127) or encoding.zero_point.any():
        raise ValueError(
            f"ncnn quantizes a tensor to -127..127 with one scale and no zero point; the plan has "
            f"{spec}, zero point {encoding.zero_point}, at {name!r}"
        )


def scales(encoding: Encoding, count: int) -> bytes:
    """Factors that turn real numbers into codes, one for each of `count` channels."""
    return raw(np.broadcast_to(np.float32(1) / encoding.scale, (count,)))


def weight_codes(node: ir.Node, array: np.ndarray, encoding: Encoding) -> bytes:
    """The int8 codes of a weight, from its real numbers."""
    spec = encoding.spec
    if not spec.signed or spec.bits > 8 or encoding.zero_point.any():
        raise refuse(node, f"its weights are int8 without zero point, the plan has {spec}")
    return tagged(encoding.quantize(array))
