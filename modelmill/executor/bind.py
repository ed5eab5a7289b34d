"""Bind an ONNX node to the Python function of its operator: the signature is the schema.

A file `ops_*.py` of this package holds functions named as ONNX operators. Their parameters are the
ONNX inputs, then, behind `*`, the ONNX attributes with the ONNX defaults:

    def Squeeze(data: Tensor, axes: Ints | None = None) -> Tensor

An attribute of an old operator set that became an input later (`axes` of Squeeze, version 13) is
one parameter: inputs bind by position, attributes by name. The annotation of an input says how it
is wanted: a `Tensor` as it is, `Ints`, `Floats`, `int` or `float` as Python numbers, read once when
the input is a constant. Two more names are filled in for functions that ask for them: `opset`, the
version of the operator set, and `n_outputs`, how many outputs the node names.

`Relu_` beside `Relu` does the same in the memory of its first input, for runs without gradients
where nobody else needs that input: fresh memory costs more than most element-wise arithmetic.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelmill import ir

Ints = tuple[int, ...]
Floats = tuple[float, ...]
Result = Tensor | tuple[Tensor | None, ...]
Reader = Callable[[Tensor], Any]

FILLED_IN = ("opset", "n_outputs")
DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Call:
    """A node ready to run: `function(*inputs)`, with attributes bound.

    in_place: the same, overwriting the first input; None where there is no such function.
    readers: for each input, how its tensor becomes the Python value the function wants; None where
    the tensor itself is wanted.
    """

    function: Callable[..., Result]
    in_place: Callable[..., Result] | None
    readers: tuple[Reader | None, ...]


def operators() -> Mapping[str, Callable[..., Result]]:
    """Every operator of the executor by its ONNX name."""
    return types.MappingProxyType({k: f for k, f in _functions().items() if not k.endswith("_")})


@cache
def _functions() -> Mapping[str, Callable[..., Result]]:
    files = [info.name for info in pkgutil.iter_modules([str(Path(__file__).parent)])]
    modules = [importlib.import_module(f"{__package__}.{f}") for f in files if f[:4] == "ops_"]
    return {
        name: function
        for module in modules
        for name, function in vars(module).items()
        if name[0].isupper() and inspect.isfunction(function)
    }


def unsupported(graph: ir.Graph) -> list[tuple[str, str]]:
    """Operators of `graph` that the executor lacks, as (node name, operator), in graph order.

    An operator outside the default domain is written `domain::operator`.
    """
    missing = []
    for node in ir.nodes(graph):
        if node.domain not in DOMAINS:
            missing.append((node.name or "", f"{node.domain}::{node.op_type}"))
        elif node.op_type not in _functions():
            missing.append((node.name or "", node.op_type))
    return missing


def bind(
    node: ir.Node, opset: int, instead: Mapping[str, Callable[..., Result]] | None = None
) -> Call:
    """The call of `node`, whose operator the executor must have; of `instead`, functions by
    operator, where that has it.

    Raises:
        ValueError: inputs or attributes do not fit the operator's signature.
    """
    function = (instead or {}).get(node.op_type) or _functions()[node.op_type]
    signature, hints = _schema(function)
    given = {name: _tensors(value) for name, value in ir.attributes(node).items()}
    filled: dict[str, int] = {
        "opset": opset,
        "n_outputs": max((i + 1 for i, v in enumerate(node.outputs) if v.name), default=0),
    }
    given.update({name: filled[name] for name in FILLED_IN if name in signature.parameters})
    try:
        signature.bind(*node.inputs, **given)
    except TypeError as error:
        raise ValueError(
            f"node {node.name!r} does not fit operator {node.op_type}: {error}"
        ) from error
    overwriting = _functions().get(f"{node.op_type}_")
    return Call(
        partial(function, **given) if given else function,
        partial(overwriting, **given) if overwriting else None,
        tuple(_reader(hints[name]) for name in _names(signature, len(node.inputs))),
    )


def tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor with a copy of the array's numbers; integers of 4 bits are held in 8.

    Raises:
        ValueError: torch has no such element type (strings, 4-bit and 8-bit floats).
    """
    if array.dtype.name in ("int4", "uint4"):
        array = array.astype(array.dtype.name.replace("4", "8"))
    array = np.array(array, order="C", copy=True)  # the graph's arrays are read-only
    if array.dtype.name == "bfloat16":  # numpy knows it only through ml_dtypes, torch does not
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise ValueError(f"the executor cannot hold element type {array.dtype}") from error


@cache
def _schema(function: Callable[..., Result]) -> tuple[inspect.Signature, Mapping[str, Any]]:
    return inspect.signature(function), typing.get_type_hints(function)


def _names(signature: inspect.Signature, count: int) -> Sequence[str]:
    """The parameter that each of `count` inputs goes to."""
    names: list[str] = []
    for name, parameter in signature.parameters.items():
        if parameter.kind == parameter.VAR_POSITIONAL:
            return names + [name] * (count - len(names))
        names.append(name)
    return names[:count]


def _reader(hint: Any) -> Reader | None:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if Tensor in kinds:
        return None
    if Ints in kinds or Floats in kinds:
        return _numbers
    return _number


def _number(value: Tensor) -> int | float:
    return value.item()


def _numbers(values: Tensor) -> tuple[int | float, ...]:
    return tuple(values.reshape(-1).tolist())


def _tensors(value: Any) -> Any:
    return tensor(value) if isinstance(value, np.ndarray) else value
