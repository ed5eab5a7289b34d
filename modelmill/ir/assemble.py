"""A Graph from a list of operators whose shapes are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir

from modelmill.ir.graph import Array, Graph, Value

IR_VERSION = 8
FLOAT = np.dtype(np.float32)


@dataclass(frozen=True)
class Call:
    """One operator: its inputs by name, and its float32 outputs by name with their shapes."""

    op: str
    inputs: tuple[str, ...]
    outputs: Mapping[str, tuple[int, ...]]
    attributes: Mapping[str, Any] = field(default_factory=dict)


def assemble(
    name: str,
    inputs: Mapping[str, tuple[int, ...]],
    calls: Sequence[Call],
    outputs: Sequence[str],
    constants: Mapping[str, Array],
    opset: int,
) -> Graph:
    """The graph `name`. Inputs are float32; calls stand in topological order.

    Shapes are taken as given: a caller's tests compare them with ONNX's own inference.

    Raises:
        KeyError: a name is read before it is made.
    """
    known: dict[str, Value] = {key: _value(key, shape) for key, shape in inputs.items()}
    stored = []
    for key, array in constants.items():
        tensor = onnx_ir.tensor(array, name=key)
        stored.append(_value(key, array.shape, array.dtype))
        stored[-1].const_value = tensor
        known[key] = stored[-1]
    nodes = []
    for index, call in enumerate(calls):
        made = [_value(key, shape) for key, shape in call.outputs.items()]
        read = [known[key] for key in call.inputs]
        nodes.append(
            onnx_ir.node(call.op, read, call.attributes, outputs=made, name=f"{call.op}_{index}")
        )
        known |= {v.name or "": v for v in made}
    graph = onnx_ir.Graph(
        [known[key] for key in inputs],
        [known[key] for key in outputs],
        nodes=nodes,
        initializers=stored,
        opset_imports={"": opset},
        name=name,
    )
    return onnx_ir.Model(graph, ir_version=IR_VERSION, producer_name="modelmill")


def _value(name: str, shape: tuple[int, ...], dtype: np.dtype[Any] = FLOAT) -> Value:
    kind = onnx_ir.TensorType(onnx_ir.DataType.from_numpy(dtype))
    return onnx_ir.Value(name=name, shape=onnx_ir.Shape(shape), type=kind)
