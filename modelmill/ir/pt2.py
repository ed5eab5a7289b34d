"""Refuse an exported program (.pt2) that could run code of its own when it is read.

A .pt2 is a zip of JSON and weights, but torch.export.load also unpickles objects, loads compiled
libraries, resolves operators by dotted name and evaluates symbolic expressions found inside. A
program exported from a plain network needs none of the unsafe ways, so anything beyond this list is
refused: raw weights, samples that load with `weights_only`, operators from PyTorch's operator
library, and expressions of arithmetic.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelmill.ir.graph import ModelError

MEMBERS = re.compile(
    r"(models/\w+\.json|data/(weights|constants)/(\w+_config\.json|(weight|tensor)_\d+)"
    r"|data/sample_inputs/\w+\.pt|serialized_\w+\.(json|pt)"
    r"|archive_(format|version)|version|byteorder|\.data/\w+|extra/\w+)"
)
OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|higher_order)\.[A-Za-z]\w*(\.\w+)?|torch\.ops\.aten\._[a-z]\w*(\.\w+)?"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|torch\.sym_(max|min|not|float|int|ite|sqrt)|math\.(ceil|floor|trunc)"
)
FUNCTIONS = frozenset(
    {"Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "CeilToInt", "IntTrueDiv"}
    | {"FloorToInt", "FloatTrueDiv", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "True"}
    | {"False", "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "int_oo", "oo"}
    | {"positive", "nonnegative", "integer", "real", "precision"}
    | {"L", "size", "args", "kwargs", "and", "or", "not"}  # in conditions
)


def check_pt2(path: Path) -> None:
    """Raise ModelError if the archive holds anything that loading it might execute."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            members = {_inner(name, names): archive.read(name) for name in names}
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelError(
            f"{path}: not an exported program, or a truncated one ({error})"
        ) from error
    if len({name.lower() for name in members}) < len(names):
        raise ModelError(f"{path}: two parts of the archive have one name, which is refused")
    for name, data in members.items():
        if not MEMBERS.fullmatch(name):
            _refuse(path, f"the part {name!r}")
        if name.endswith(".json"):
            _check_json(path, data)
        elif name.endswith(".pt"):
            _check_tensors(path, name, data)


def _inner(name: str, names: list[str]) -> str:
    """The name without the folder that torch wraps around everything."""
    top = name.split("/")[0] + "/"
    return name[len(top) :] if all(other.startswith(top) for other in names) else name


def _refuse(path: Path, what: str) -> None:
    raise ModelError(
        f"{path}: {what} could execute code when loaded, so the file is refused. "
        "Next: export the network to ONNX with torch.onnx.export, where you trust the file."
    )


def _check_tensors(path: Path, name: str, data: bytes) -> None:
    import torch

    try:
        if data:
            torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception:  # pickle, zip and torch have errors of their own
        _refuse(path, f"the pickle {name!r}")


def _check_json(path: Path, data: bytes) -> None:
    try:
        content = json.loads(data)
    except ValueError as error:
        raise ModelError(f"{path}: damaged ({error})") from error
    for key, value in _entries(content):
        if key == "use_pickle" and value:
            _refuse(path, "a pickled object")
        elif key == "path_name" and not re.fullmatch(r"(weight|tensor)_\d+", str(value)):
            _refuse(path, f"the object {value!r}")
        elif key in ("target", "as_operator") and isinstance(value, str):
            # A "target" is an operator, or the name of a parameter in the signature.
            if not OPERATORS.fullmatch(value) and (key != "target" or _is_callable_name(value)):
                _refuse(path, f"the operator {value!r}")
        elif key == "expr_str" and not _is_arithmetic(str(value)):
            _refuse(path, f"the expression {value!r}")
        elif key == "guards_code":
            for guard in value or []:
                if not _is_arithmetic(str(guard)):
                    _refuse(path, f"the condition {guard!r}")


def _is_callable_name(target: str) -> bool:
    return target.startswith(("torch", "_operator", "math", "#"))


def _is_arithmetic(text: str) -> bool:
    """Numbers, symbols such as s0, brackets, operators and the functions of shape algebra."""
    text = re.sub(r"'\w*'", "0", text)  # names of symbols and inputs
    words = re.findall(r"[A-Za-z_]\w*", text)
    plain = re.fullmatch(r"[\w\s+\-*/%(),.<>=!&|~\[\]]*", text)
    return bool(plain) and all(w in FUNCTIONS or re.fullmatch(r"[suzf]\d+", w) for w in words)


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield key, value
            yield from _entries(value)
    elif isinstance(content, list):
        for value in content:
            yield from _entries(value)
