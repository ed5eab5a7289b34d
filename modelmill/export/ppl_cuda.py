"""Quantization for OpenPPL's CUDA engine in the form of PPQ's file: {"quant_info": {tensor: range,
scale, zero point}, "op_info": {node: {"data_type": "INT8"}}}. Tensors of one encoding share a hash.
"""

from typing import Any

from modelmill import ir
from modelmill.export import tensors
from modelmill.ir import Plan
from modelmill.numerics import Encoding


def write(graph: ir.Graph, plan: Plan) -> dict[str, bytes]:
    """`.ppl.json` and the float model."""
    found = {**tensors.activations(graph, plan), **tensors.constants(graph, plan)}
    numbers = {encoding: number for number, encoding in enumerate(dict.fromkeys(found.values()))}
    integer = [n.name or "" for n in ir.nodes(graph) if tensors.read(n, plan) is not None]
    content = {
        "quant_info": {name: _entry(e, numbers[e]) for name, e in found.items()},
        "op_info": {name: {"data_type": "INT8"} for name in integer},
    }
    return {".ppl.json": tensors.as_json(content), **tensors.float_model(graph)}


def _entry(encoding: Encoding, number: int) -> dict[str, Any]:
    spec = encoding.spec
    return {
        "bit_width": spec.bits,
        "per_channel": spec.axis is not None,
        "quant_flag": True,
        "sym": spec.symmetric,
        "scale": tensors.numbers(encoding.scale),
        "zero_point": tensors.numbers(encoding.zero_point),
        "tensor_min": tensors.numbers(encoding.low),
        "tensor_max": tensors.numbers(encoding.high),
        "q_min": spec.qmin,
        "q_max": spec.qmax,
        "hash": number,
        "dominator": number,
    }


PLUGIN = write
