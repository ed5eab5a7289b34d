"""What the files for chips ask of a plan: one encoding for each tensor of the ONNX model, by name.

Most formats name tensors and know nothing of who reads them. Biases of 32 bits are left out: they
follow from what the layer reads.
"""

import json
from typing import Any

import numpy as np

from modelmill import ir
from modelmill.ir import Plan, Point
from modelmill.numerics import Encoding

FLOAT_MODEL = ".float.onnx"
BIAS_BITS = 32
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def float_model(graph: ir.Graph) -> dict[str, bytes]:
    """The float model that a file of ranges speaks of, weights as the recipe left them."""
    return {FLOAT_MODEL: ir.to_bytes(graph)}


def as_json(content: Any) -> bytes:
    """A file of JSON, readable by people."""
    return (json.dumps(content, indent=2) + "\n").encode()


def activations(graph: ir.Graph, plan: Plan) -> dict[str, Encoding]:
    """Encodings of values that are not constants, in graph order.

    Raises:
        ValueError: two readers of one value have different encodings.
    """
    constants = graph.graph.initializers
    return {n: e for n, e in _by_name(graph, plan).items() if n not in constants}


def constants(graph: ir.Graph, plan: Plan) -> dict[str, Encoding]:
    """Encodings of weights and of biases that have one of their own, in graph order.

    Raises:
        ValueError: two readers of one constant have different encodings.
    """
    held = graph.graph.initializers
    return {n: e for n, e in _by_name(graph, plan).items() if n in held}


def _by_name(graph: ir.Graph, plan: Plan) -> dict[str, Encoding]:
    found: dict[str, Encoding] = {}
    for point, encoding in plan.encodings().items():
        if encoding.spec.bits == BIAS_BITS:
            continue
        if found.setdefault(point.value, encoding) != encoding:
            raise ValueError(
                f"{point} has an encoding of its own, and this format knows one for each tensor. "
                "Give every reader a copy of the tensor, or use a QDQ file"
            )
    return {name: found[name] for name in ir.values(graph) if name in found}


def weight(node: ir.Node, plan: Plan) -> Encoding | None:
    """Encoding of a layer's constant weight."""
    value = node.inputs[1] if node.op_type in LAYERS and len(node.inputs) > 1 else None
    if value is None or ir.constant(value) is None:
        return None
    found = plan.at(value.name or "", node.name or "", 1)
    return found if isinstance(found, Encoding) else None


def read(node: ir.Node, plan: Plan, index: int = 0) -> Encoding | None:
    """Encoding of what a node reads as input `index`."""
    value = node.inputs[index] if index < len(node.inputs) else None
    found = None if value is None else plan.at(value.name or "", node.name or "", index)
    return found if isinstance(found, Encoding) else None


def written(value: ir.Value, plan: Plan) -> Encoding | None:
    """Encoding of a value, or of the ReLU or Clip that alone reads it: these tools name what a
    layer hands on before they merge the two.
    """
    found = plan.get(Point(value.name or ""))
    uses = list(value.uses())
    if found is None and len(uses) == 1 and uses[0].node.op_type in ("Relu", "Clip"):
        return written(uses[0].node.outputs[0], plan)
    return found if isinstance(found, Encoding) else None


def numbers(array: np.ndarray) -> float | list[float]:
    """A number, or one for each channel, as JSON holds them."""
    found: float | list[float] = np.asarray(array, np.float64).tolist()
    return found
