"""Read a PyTorch network: a factory in a module, with weights, or an exported program.

    package.module:factory                      factory() -> torch.nn.Module
    package.module:factory@weights.safetensors  the same with weights; .pt and .pth are read, too
    network.pt2                                 what torch.export.save wrote

A weights file is data: nothing in it is executed. The factory is your own code and is called.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelmill.ir.graph import Graph, ModelError
from modelmill.ir.load import from_bytes
from modelmill.ir.pt2 import check_pt2

if TYPE_CHECKING:
    import onnx
    import torch

OPSET = 20
WRAPPERS = ("state_dict", "model_state_dict", "model")


def from_torch(model: str | torch.nn.Module, example_shape: Sequence[int]) -> Graph:
    """Export a network to a Graph with a dynamic batch dimension.

    Args:
        model: one of the three forms above, or a module at hand.
        example_shape: shape of the one input, (N, C, H, W) for images; N is left open. An exported
            program knows its own shapes and does not look at it.

    Raises:
        ModelError: nothing at that place, weights that do not fit (the keys are named), a weights
            file with more than weights in it, or a network that torch cannot export.
    """
    if not isinstance(model, str):
        return _export(model, tuple(example_shape), type(model).__name__)
    if model.endswith(".pt2"):
        return _exported_program(Path(model))
    found = re.fullmatch(r"(?P<module>[\w.]+):(?P<factory>\w+)(@(?P<weights>.+))?", model)
    if found is None:
        raise ModelError(
            f"{model!r} is no PyTorch network: write package.module:factory, "
            "package.module:factory@weights.safetensors (or .pt), or a .pt2 file"
        )
    network = _build(found["module"], found["factory"])
    if found["weights"]:
        _load_weights(network, Path(found["weights"]))
    return _export(network, tuple(example_shape), model)


def _torch() -> Any:
    try:
        import torch
        import torch.export
        import torch.onnx
    except ImportError as error:
        raise ModelError(
            f"reading a PyTorch network needs PyTorch ({error}). "
            "Next: pip install 'modelmill[torch]'"
        ) from error
    return torch


# ---------------------------------------------------------------- the network


def _build(module_name: str, factory_name: str) -> torch.nn.Module:
    factory = _factory(module_name, factory_name)
    try:
        network = factory()
    except Exception as error:  # the user's code may raise anything
        raise ModelError(
            f"{module_name}:{factory_name}() failed: {type(error).__name__}: {error}. "
            "It is called without arguments: wrap it in a function that fills them in."
        ) from error
    if not isinstance(network, _torch().nn.Module):
        raise ModelError(
            f"{module_name}:{factory_name}() returned a {type(network).__name__}, "
            "not a torch.nn.Module"
        )
    return network  # type: ignore[no-any-return]


def _factory(module_name: str, factory_name: str) -> Callable[[], Any]:
    """The callable; modules in the current folder are found as with `python -m`."""
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module may raise anything while it is imported
        raise ModelError(
            f"cannot import {module_name!r}: {type(error).__name__}: {error}. "
            "Run from the folder that holds it, or set PYTHONPATH."
        ) from error
    finally:
        sys.path.remove(os.getcwd())
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        own = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ModelError(f"{module_name!r} has no {factory_name!r}. It has: {', '.join(own)}")
    return factory  # type: ignore[no-any-return]


# ---------------------------------------------------------------- the weights


def _load_weights(network: torch.nn.Module, path: Path) -> None:
    """Every weight of the file goes to one of the network and the other way round, shapes equal.

    Only the batch counter of a batch norm may be missing: inference does not read it.
    """
    given, wanted = _read_weights(path), network.state_dict()
    missing = [k for k in wanted if k not in given and not k.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in wanted]
    other = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    faults = [("missing", missing), ("unexpected", unexpected), ("of another shape", other)]
    if any(keys for _, keys in faults):
        listed = "; ".join(f"{what}: {_some(keys)}" for what, keys in faults if keys)
        raise ModelError(f"{path} does not fit {type(network).__name__}: {listed}")
    network.load_state_dict(given, strict=False)


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return ", ".join(keys[:5]) + more


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name; a checkpoint's wrapper and a `module.` before every name are taken off."""
    torch = _torch()
    if not path.is_file():
        raise ModelError(f"no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        raise ModelError(
            f"{path} holds more than weights{f' ({name[1]})' if name else ''}, and loading that "
            "would execute code, so it is refused. Next: where you trust it, save its "
            "state_dict() with safetensors.torch.save_file."
        ) from error
    except Exception as error:  # zip, pickle and safetensors have errors of their own
        raise ModelError(f"{path} cannot be read as weights: {error}") from error
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"{path} holds no weights by name but a {type(content).__name__}")
    bad = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if bad:
        raise ModelError(f"{path} holds more than tensors: {_some(bad)}. Save model.state_dict().")
    if all(key.startswith("module.") for key in content):
        return {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


# ---------------------------------------------------------------- the export


def _exported_program(path: Path) -> Graph:
    check_pt2(path)
    torch = _torch()
    try:
        with _quiet():
            program = torch.export.load(path)
    except Exception as error:  # torch raises many kinds
        raise ModelError(f"{path} cannot be loaded as an exported program: {error}") from error
    return _to_onnx(str(path), program)


def _export(network: torch.nn.Module, shape: tuple[int, ...], name: str) -> Graph:
    torch = _torch()
    training = network.training
    # Two images, since torch takes a dimension of one for a constant.
    example = torch.zeros((max(2, shape[0]), *shape[1:]))
    batch = torch.export.Dim("batch", min=1)
    try:
        # Not left to torch.onnx.export, which would fix the batch in silence where this fails.
        with _quiet():
            program = torch.export.export(
                network.eval(), (example,), dynamic_shapes=({0: batch},), strict=False
            )
    except Exception as error:  # torch raises many kinds
        raise ModelError(
            f"{name} cannot be exported with a dynamic batch: {_first_line(error)}. "
            "Next: remove what depends on the batch size, or export it yourself with "
            "torch.onnx.export and pass the .onnx file."
        ) from error
    finally:
        network.train(training)
    return _to_onnx(name, program)


def _to_onnx(name: str, program: torch.export.ExportedProgram) -> Graph:
    torch = _torch()
    try:
        with _quiet():
            made = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
            proto = made.model_proto
    except Exception as error:  # torch raises many kinds
        cause = error.__cause__ or error
        raise ModelError(
            f"{name} cannot be written as ONNX: {_first_line(cause)}. "
            "Next: export it yourself with torch.onnx.export and pass the .onnx file."
        ) from error
    _name_batch(proto.graph)
    return from_bytes(proto.SerializeToString())


def _name_batch(graph: onnx.GraphProto) -> None:
    """Call the open dimension `batch`; torch's own name for it is a number such as s77."""
    first = graph.input[0].type.tensor_type.shape.dim
    symbol = first[0].dim_param if first else ""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if symbol and dim.dim_param == symbol:
                dim.dim_param = "batch"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's remarks on its own internals from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
