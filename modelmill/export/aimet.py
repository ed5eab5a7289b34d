"""Encodings in AIMET's schema 0.5.0, which the converters of SNPE and QNN take as overrides
(--quantization_overrides).

    x = (q + offset) * scale     q in 0 .. 2^bitwidth - 1, so offset = qmin - zero_point

A tensor with several encodings has one for each channel. Biases of 32 bits are left to the
converter.
Source: AIMET documentation, encoding format specification.
"""

from typing import Any

import numpy as np

from modelmill import ir
from modelmill.export import tensors
from modelmill.ir import Plan
from modelmill.numerics import Encoding

VERSION = "0.5.0"


def write(graph: ir.Graph, plan: Plan) -> dict[str, bytes]:
    """`.encodings.json` and the float model."""
    content = {
        "version": VERSION,
        "activation_encodings": _entries(tensors.activations(graph, plan)),
        "param_encodings": _entries(tensors.constants(graph, plan)),
    }
    return {".encodings.json": tensors.as_json(content), **tensors.float_model(graph)}


def _entries(found: dict[str, Encoding]) -> dict[str, list[dict[str, Any]]]:
    return {name: _channels(encoding) for name, encoding in found.items()}


def _channels(encoding: Encoding) -> list[dict[str, Any]]:
    spec = encoding.spec
    ends = (np.atleast_1d(a) for a in (encoding.low, encoding.high))
    numbers = (np.atleast_1d(a) for a in (encoding.scale, encoding.zero_point))
    return [
        {
            "dtype": "int",
            "bitwidth": spec.bits,
            "is_symmetric": str(spec.symmetric),
            "min": float(low),
            "max": float(high),
            "offset": int(spec.qmin - zero_point),
            "scale": float(scale),
        }
        for low, high, scale, zero_point in zip(*ends, *numbers, strict=True)
    ]


PLUGIN = write
