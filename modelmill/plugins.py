"""Find a plug-in by its file name: the file is the entry, its `PLUGIN` is the value.

`modelmill/targets/ort_cpu.py` is the target `ort_cpu`; `./mychip.py` outside the package is loaded
through the same door. There is no list to edit and no decorator; files whose name starts with `_`
and files without a `PLUGIN` are not plug-ins.
"""

import ast
import difflib
import importlib
import importlib.util
import threading
from pathlib import Path
from typing import Any

_PARSING = threading.Lock()  # Python 3.11 loses count when two threads parse at once


def names(package: str) -> list[str]:
    """Names of the plug-ins of `package` (a dotted module name), sorted; nothing is imported for
    it.
    """
    return sorted(name for name, file in _files(package).items() if _has_plugin(file))


def load(package: str, name: str, attribute: str = "PLUGIN") -> Any:
    """The `PLUGIN` of the file `name` in `package`, or of the file at path `name` if it ends in
    `.py`: there its `attribute`, if it has that, so that one file may hold a target and its engine.

    Raises:
        ValueError: no such plug-in (the message lists the choices), or the file has no `PLUGIN`.
    """
    if name.endswith(".py"):
        return _load_file(Path(name), attribute)
    file = _files(package).get(name)
    if file is None or not _has_plugin(file):
        choices = names(package)
        kind = package.rsplit(".", 1)[-1].rstrip("s")
        near = difflib.get_close_matches(name, choices, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(
            f"unknown {kind} {name!r}{hint} Choices: {', '.join(choices)}, or a path to a .py file "
            "with a PLUGIN"
        )
    return importlib.import_module(f"{package}.{name}").PLUGIN


def _files(package: str) -> dict[str, Path]:
    """The files that may be plug-ins, by name; none is read."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not a package")
    files = [f for root in spec.submodule_search_locations for f in Path(root).glob("*.py")]
    return {f.stem: f for f in files if not f.stem.startswith("_")}


def _load_file(path: Path, attribute: str) -> Any:
    if not path.is_file():
        raise ValueError(f"plug-in file {path} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a stranger's file raises is a fault of that file
        raise ValueError(
            f"plug-in file {path} failed to load: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, "PLUGIN"):
        raise ValueError(f"plug-in file {path} defines no PLUGIN; end it with PLUGIN = ...")
    return getattr(module, attribute, module.PLUGIN)


def _has_plugin(file: Path) -> bool:
    """Whether the module binds `PLUGIN` at its top level; read from the text, so listing imports no
    engine.
    """
    text = file.read_text(encoding="utf-8")
    if "PLUGIN" not in text:  # parsing is the slow part
        return False
    with _PARSING:
        body = ast.parse(text).body
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == "PLUGIN" for t in targets):
            return True
        if isinstance(node, ast.FunctionDef) and node.name == "PLUGIN":
            return True
    return False
