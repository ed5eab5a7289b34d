"""A LiteRT file (.tflite) in the making: tensors, operators, and how they become a flatbuffer.

The format is one flatbuffer (schema version 3, identifier TFL3): buffers hold constants, tensors
name a buffer, operators name tensors by number. Buffer 0 is empty by convention. Numbers of
operators and enumerations come from the `tflite` package, which is the schema compiled to Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PIP = 'pip install "tflite>=2.18,<3"'  # brings flatbuffers
SCHEMA_VERSION = 3
IDENTIFIER = b"TFL3"
ALIGNMENT = 16  # of every buffer, as the schema demands
NO_TENSOR = -1  # an optional input that is left out

# Lowest version of an operator that takes int8 (default 1), as the reference resolver registers
# them: an older one with int8 tensors is refused.
INT8_VERSION = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "ADD": 2, "SUB": 2, "MUL": 2,
    "AVERAGE_POOL_2D": 2, "MAX_POOL_2D": 2, "CONCATENATION": 2, "MEAN": 2, "PAD": 2, "PADV2": 2,
    "LEAKY_RELU": 2, "LOGISTIC": 2, "TANH": 2, "SOFTMAX": 2, "RELU": 2, "RELU6": 2,
    "RESIZE_NEAREST_NEIGHBOR": 2, "RESIZE_BILINEAR": 2, "TRANSPOSE": 2, "SLICE": 2,
    "STRIDED_SLICE": 2, "GATHER": 2, "QUANTIZE": 2, "DEQUANTIZE": 2, "MAXIMUM": 2, "MINIMUM": 2,
    "TRANSPOSE_CONV": 2,
}  # fmt: skip
# Versions that a float operator needs for something that is always written here.
FLOAT_VERSION = {
    "RESIZE_NEAREST_NEIGHBOR": 3, "RESIZE_BILINEAR": 3, "TRANSPOSE_CONV": 3, "FULLY_CONNECTED": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Affine:
    """Quantization of a stored tensor: real = scale * (code - zero_point), along `axis` if there
    are several scales. scale: float32 (n,), zero_point: int64 (n,).
    """

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int = 0


@dataclass(frozen=True)
class TensorFacts:
    """One tensor of the file; `data` is set for a constant."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    affine: Affine | None
    data: np.ndarray | None


@dataclass(frozen=True)
class OperatorFacts:
    """One operator: its name in the schema, tensor numbers, its options table and their fields."""

    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    table: str
    options: Mapping[str, int | float | bool]


@dataclass
class File:
    """What has been written so far."""

    tensors: list[TensorFacts] = field(default_factory=list)
    operators: list[OperatorFacts] = field(default_factory=list)

    def tensor(
        self,
        name: str,
        shape: Iterable[int],
        dtype: Any,
        affine: Affine | None = None,
        data: np.ndarray | None = None,
    ) -> int:
        """Add a tensor; returns its number."""
        dims = tuple(int(dim) for dim in shape)
        assert data is None or data.shape == dims, (name, dims)
        self.tensors.append(TensorFacts(name, dims, np.dtype(dtype), affine, data))
        return len(self.tensors) - 1

    def constant(self, name: str, array: np.ndarray, affine: Affine | None = None) -> int:
        """Add a constant tensor; returns its number."""
        return self.tensor(name, array.shape, array.dtype, affine, np.ascontiguousarray(array))

    def operator(
        self,
        op: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        table: str = "",
        **options: int | float | bool,
    ) -> None:
        """Add an operator with the fields of its options table."""
        self.operators.append(OperatorFacts(op, tuple(inputs), tuple(outputs), table, options))

    def version(self, operator: OperatorFacts) -> int:
        """Version of an operator: what its types and its options need."""
        held = {self.tensors[t].dtype for t in (*operator.inputs, *operator.outputs) if t >= 0}
        lowest = FLOAT_VERSION.get(operator.op, 1)
        return max(lowest, INT8_VERSION.get(operator.op, 1) if np.dtype(np.int8) in held else 1)

    def pack(
        self, inputs: Sequence[int], outputs: Sequence[int], metadata: Mapping[str, bytes]
    ) -> bytes:
        """The file. Equal content gives equal bytes."""
        return _Packer(self).pack(inputs, outputs, metadata)


class _Packer:
    """One run of `File.pack`. Flatbuffers are written from the end: children before parents."""

    def __init__(self, file: File) -> None:
        try:
            import flatbuffers
            import tflite
        except ModuleNotFoundError as error:
            raise ValueError(f"to write LiteRT files, run: {PIP}") from error

        self.file, self.schema = file, tflite
        self.builder = flatbuffers.Builder(1 << 20)
        self.buffers = [self._buffer(b"")]
        self.numbers: dict[int, int] = {}

    def pack(
        self, inputs: Sequence[int], outputs: Sequence[int], metadata: Mapping[str, bytes]
    ) -> bytes:
        used = {t for o in self.file.operators for t in (*o.inputs, *o.outputs)}
        kept = sorted({*used, *inputs, *outputs} - {NO_TENSOR})
        self.numbers = {NO_TENSOR: NO_TENSOR, **{old: new for new, old in enumerate(kept)}}
        tensors = self._offsets([self._tensor(self.file.tensors[old]) for old in kept])
        codes = sorted({(o.op, self.file.version(o)) for o in self.file.operators})
        numbers = {code: i for i, code in enumerate(codes)}
        operators = [self._operator(o, numbers) for o in self.file.operators]
        subgraph = self._table("SubGraph", {
            "Tensors": tensors,
            "Inputs": self._places(inputs),
            "Outputs": self._places(outputs),
            "Operators": self._offsets(operators),
            "Name": self.builder.CreateString("main"),
        })  # fmt: skip
        entries = [self._metadata(*entry) for entry in metadata.items()]
        model = self._table("Model", {
            "Version": SCHEMA_VERSION,
            "OperatorCodes": self._offsets([self._code(*code) for code in codes]),
            "Subgraphs": self._offsets([subgraph]),
            "Description": self.builder.CreateString("modelmill"),
            "Buffers": self._offsets(self.buffers),
            "Metadata": self._offsets(entries),
        })  # fmt: skip
        self.builder.Finish(model, file_identifier=IDENTIFIER)
        return bytes(self.builder.Output())

    def _metadata(self, name: str, content: bytes) -> int:
        number = self._store(content)
        return self._table("Metadata", {"Name": self.builder.CreateString(name), "Buffer": number})

    def _tensor(self, tensor: TensorFacts) -> int:
        kinds = {"float32": "FLOAT32", "int8": "INT8", "int32": "INT32", "int64": "INT64"}
        affine = 0
        if tensor.affine is not None:
            affine = self._table("QuantizationParameters", {
                "Scale": self._numbers(tensor.affine.scale, np.float32),
                "ZeroPoint": self._numbers(tensor.affine.zero_point, np.int64),
                "QuantizedDimension": tensor.affine.axis,
            })  # fmt: skip
        return self._table("Tensor", {
            "Shape": self._numbers(tensor.shape, np.int32),
            "Type": getattr(self.schema.TensorType, kinds[tensor.dtype.name]),
            "Buffer": 0 if tensor.data is None else self._store(tensor.data.tobytes()),
            "Name": self.builder.CreateString(tensor.name),
            "Quantization": affine or None,
        })  # fmt: skip

    def _operator(self, operator: OperatorFacts, numbers: Mapping[tuple[str, int], int]) -> int:
        fields: dict[str, Any] = {
            "OpcodeIndex": numbers[(operator.op, self.file.version(operator))],
            "Inputs": self._places(operator.inputs),
            "Outputs": self._places(operator.outputs),
        }
        if operator.table:
            fields["BuiltinOptionsType"] = getattr(self.schema.BuiltinOptions, operator.table)
            fields["BuiltinOptions"] = self._table(operator.table, operator.options)
        return self._table("Operator", fields)

    def _code(self, op: str, version: int) -> int:
        number = getattr(self.schema.BuiltinOperator, op)
        return self._table("OperatorCode", {
            "DeprecatedBuiltinCode": min(number, 127), "BuiltinCode": number, "Version": version
        })  # fmt: skip

    def _table(self, name: str, fields: Mapping[str, Any]) -> int:
        """Write a table; all its children must have been written before."""
        getattr(self.schema, f"{name}Start")(self.builder)
        for key, content in fields.items():
            if content is not None:
                getattr(self.schema, f"{name}Add{key}")(self.builder, content)
        return int(getattr(self.schema, f"{name}End")(self.builder))

    def _store(self, content: bytes) -> int:
        """Number of a new buffer."""
        self.buffers.append(self._buffer(content))
        return len(self.buffers) - 1

    def _buffer(self, content: bytes) -> int:
        data = None
        if content:
            self.builder.StartVector(1, len(content), ALIGNMENT)
            start = self.builder.head = self.builder.head - len(content)
            self.builder.Bytes[start : start + len(content)] = content
            data = self.builder.EndVector()
        return self._table("Buffer", {"Data": data})

    def _places(self, tensors: Iterable[int]) -> int:
        """Tensors by their number in the file, where tensors that nothing uses are left out."""
        return self._numbers([self.numbers[tensor] for tensor in tensors], np.int32)

    def _numbers(self, content: Iterable[int] | np.ndarray, dtype: Any) -> int:
        array = np.atleast_1d(np.asarray(content, dtype))
        return int(self.builder.CreateNumpyVector(array))

    def _offsets(self, children: Sequence[int]) -> int:
        self.builder.StartVector(4, len(children), 4)
        for child in reversed(children):
            self.builder.PrependUOffsetTRelative(child)
        return int(self.builder.EndVector())
