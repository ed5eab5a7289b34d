"""What MNN's converter must be told so that the file it writes carries a plan.

MNN's converter takes a float ONNX file and, beside it, the scales of every convolution
("compression parameters", JSON). It writes the codes of the weights and notes scale and zero point
at the input and output tensors of those convolutions; every other tensor it leaves without. The
engine runs an operator on codes where all its tensors have them noted, so this module notes the
rest, in the finished file: a FlatBuffer, in which an offset points forward only, so that a longer
list is appended and the root is pointed at it.
    https://github.com/alibaba/MNN, tools/converter/source/common/FullQuantAndCoding.cpp,
    schema/default/MNN.fbs, source/core/Pipeline.cpp
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modelmill.numerics import Encoding

# The engine takes a smaller scale of weights for this one.
SMALLEST_WEIGHT_SCALE = np.float32(1e-6)
MATMUL = "__matmul_converted"  # what the converter appends to the name of a product made a conv
UNSIGNED = 128  # between an unsigned code and the signed one that means the same
_DT_INT8 = 6
# Slots of the tables of MNN.fbs that are read or written here.
_NET_DESCRIPTIONS, _NET_OPERATORS, _NET_TENSOR_NAMES = 1, 3, 7
_OP_NAME, _OP_OUTPUTS, _OP_TYPE = 3, 4, 5
_CONVOLUTIONS = (12, 13)  # Convolution, ConvolutionDepthwise


@dataclass(frozen=True)
class TensorCodes:
    """Codes of one tensor: real = scale * (code - zero); the engine clamps codes to low..high."""

    scale: float
    zero: int
    low: int = -128
    high: int = 127

    @staticmethod
    def of(encoding: Encoding) -> TensorCodes:
        """The codes of a per-tensor encoding; unsigned ones are moved by 128, which MNN does not
        know.
        """
        spec = encoding.spec
        if spec.axis is not None or spec.bits > 8 or spec.logarithmic:
            raise ValueError(f"MNN takes 8-bit codes with one scale per tensor, not {spec}")
        moved = 0 if spec.signed else UNSIGNED
        return TensorCodes(
            float(encoding.scale),
            int(encoding.zero_point) - moved,
            int(spec.qmin) - moved,
            int(spec.qmax) - moved,
        )


@dataclass(frozen=True)
class Layer:
    """One convolution: name of the tensor it writes, codes of what it reads and writes, and the
    scale of the weights of each output channel.
    """

    output: str
    read: TensorCodes
    written: TensorCodes
    weight_scales: np.ndarray


def compression_parameters(layers: Sequence[Layer]) -> str:
    """The JSON text for `--compressionParamsFile`."""

    def tensor(name: str, codes: TensorCodes) -> dict[str, object]:
        return {
            "name": name,
            "bits": 8,  # up to 7 choose another kernel, which in 3.6.1 computes something else
            "scales": [codes.scale],
            "zero_point": codes.zero,
            "clamp_min": codes.low,
            "clamp_max": codes.high,
        }

    rows = []
    for layer in layers:
        scales = np.maximum(layer.weight_scales.astype(np.float32), SMALLEST_WEIGHT_SCALE)
        weight = {
            "name": layer.output,
            "bits": 8,
            "scales": [float(s) for s in scales],
            "clamp_min": -127,
            "clamp_max": 127,
        }
        rows.append(
            {
                "input": [tensor("input", layer.read)],
                "weight": [weight],
                "output": [tensor(layer.output, layer.written)],
                "method": 0,
            }
        )
    algorithm = {"type": 0, "quant_params": {"round_mode": 2, "layer": rows}}
    return json.dumps({"version": "0.0.0", "algo": [algorithm]})


def tensor_names(model: bytes) -> list[str]:
    """Names of the tensors of a .mnn file.

    Raises:
        ValueError: it is no such file.
    """
    try:
        vector = _field(model, _NET_TENSOR_NAMES)
        if vector is None:
            raise ValueError("the file names no tensors")
        return [_string(model, entry) for entry in _entries(model, vector)]
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"no MNN model: {error}") from error


def convolutions(model: bytes) -> dict[str, int]:
    """{name of a convolution or depthwise convolution: number of the tensor it writes}."""
    vector = _field(model, _NET_OPERATORS)
    found = {}
    for table in _entries(model, vector) if vector is not None else ():
        name, outputs, kind = (_slot(model, table, n) for n in (_OP_NAME, _OP_OUTPUTS, _OP_TYPE))
        if name is None or outputs is None or kind is None:
            continue
        if struct.unpack_from("<i", model, kind)[0] in _CONVOLUTIONS:
            label = _string(model, name + struct.unpack_from("<I", model, name)[0])
            first = outputs + struct.unpack_from("<I", model, outputs)[0] + 4
            found[label] = int(struct.unpack_from("<i", model, first)[0])
    return found


def described(model: bytes) -> set[int]:
    """Numbers of the tensors that have codes noted."""
    vector = _field(model, _NET_DESCRIPTIONS)
    return set() if vector is None else {_index(model, t) for t in _entries(model, vector)}


def describe(model: bytes, tensors: Mapping[int, TensorCodes]) -> bytes:
    """The file with codes noted at more tensors, given by number; what it noted already stays.

    Raises:
        ValueError: the file notes no codes at all, so it has no convolution on codes.
    """
    vector = _field(model, _NET_DESCRIPTIONS)
    if vector is None:
        raise ValueError("the converter made no layer with integer weights")
    kept = _entries(model, vector)
    noted = {_index(model, table) for table in kept}
    fresh = {number: codes for number, codes in tensors.items() if number not in noted}
    slot = _slot(model, _root(model), _NET_DESCRIPTIONS)
    assert slot is not None
    made = bytearray(model)
    made += bytes(-len(made) % 16)
    # FlatBuffer references cannot point back: entries that lie before are copied into new tables.
    all_tensors = {_index(model, t): _codes(model, t) for t in kept} | fresh
    start = len(made)
    struct.pack_into("<I", made, slot, start - slot)
    made += _descriptions(all_tensors)
    return bytes(made)


def _descriptions(tensors: Mapping[int, TensorCodes]) -> bytes:
    """A vector of TensorDescribe tables, each with its TensorQuantInfo, aligned to 4 bytes."""
    count = len(tensors)
    head = 4 + 4 * count
    # vtables: bytes of the vtable, bytes of the table, then the place of each field in the table
    describe_vtable = struct.pack("<7H", 14, 12, 0, 4, 0, 0, 8)  # index, quantInfo
    info_vtable = struct.pack("<7H", 14, 24, 4, 8, 12, 16, 20)  # scale, zero, min, max, type
    vtables = describe_vtable + info_vtable + bytes(-(len(describe_vtable) * 2) % 4)
    tables_at = head + len(vtables)
    vector, tables = struct.pack("<I", count), b""
    for order, (number, codes) in enumerate(tensors.items()):
        here = tables_at + len(tables)
        vector += struct.pack("<I", here - (4 + 4 * order))
        tables += struct.pack("<iiI", here - head, number, 4)
        info = here + 12
        tables += struct.pack(
            "<iffffi",
            info - (head + len(describe_vtable)),
            codes.scale,
            codes.zero,
            codes.low,
            codes.high,
            _DT_INT8,
        )
    return vector + vtables + tables


# ------------------------------------------------------------ reading a FlatBuffer


def _root(data: bytes) -> int:
    return int(struct.unpack_from("<I", data, 0)[0])


def _slot(data: bytes, table: int, number: int) -> int | None:
    """Where field `number` of a table lies; None if it has its default."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    (size,) = struct.unpack_from("<H", data, vtable)
    if 4 + 2 * number >= size:
        return None
    (place,) = struct.unpack_from("<H", data, vtable + 4 + 2 * number)
    return table + place if place else None


def _field(data: bytes, number: int) -> int | None:
    """What an offset field of the root points at."""
    slot = _slot(data, _root(data), number)
    return None if slot is None else slot + int(struct.unpack_from("<I", data, slot)[0])


def _entries(data: bytes, vector: int) -> list[int]:
    (count,) = struct.unpack_from("<I", data, vector)
    if count > len(data):
        raise ValueError("no MNN model: a list longer than the file")
    places = range(vector + 4, vector + 4 + 4 * count, 4)
    return [place + int(struct.unpack_from("<I", data, place)[0]) for place in places]


def _string(data: bytes, at: int) -> str:
    (length,) = struct.unpack_from("<I", data, at)
    return data[at + 4 : at + 4 + length].decode()


def _index(data: bytes, table: int) -> int:
    slot = _slot(data, table, 1)
    return 0 if slot is None else int(struct.unpack_from("<i", data, slot)[0])


def _codes(data: bytes, table: int) -> TensorCodes:
    slot = _slot(data, table, 4)
    assert slot is not None
    info = slot + struct.unpack_from("<I", data, slot)[0]
    numbers = []
    for field, default in enumerate((0.0, 0.0, -128.0, 127.0)):
        place = _slot(data, info, field)
        numbers.append(default if place is None else struct.unpack_from("<f", data, place)[0])
    scale, zero, low, high = numbers
    return TensorCodes(scale, int(zero), int(low), int(high))
