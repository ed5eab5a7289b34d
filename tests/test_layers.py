"""Imports point down: a part uses only parts of lower rows, and two of one row never meet."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "modelmill"
ROWS = [
    {"plugins", "numerics"},
    {"ir", "records"},
    {"executor", "export", "targets", "tasks"},
    {"passes", "runtimes", "train", "cluster"},
    {"quant", "sparse", "latency", "audit", "tune"},
    {"search"},
    {"line"},
    {"web"},
    {"cli"},
]
ROW = {part: row for row, parts in enumerate(ROWS) for part in parts}
# Files below row 2, or among the adapters, that may import torch: those that read torch's own
# models, and the engines that are torch or are fed through it.
TORCH = {
    "ir": ("torch_import.py", "pt2.py"),
    "runtimes": ("executorch.py", "torch_eager.py", "torch_inductor.py", "torch_engine.py"),
    "numerics": (),
    "plugins": (),
    "records": (),
    "__init__": (),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Dotted names of what a file imports, anywhere in it; `from a import b` counts as `a.b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":  # the door to everything, opened lazily: see test_imports.py
        return
    assert part in ROW, f"{part} has no row: the tree is drawn in ROWS"
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "modelmill" and rest and rest[0] not in (part, "__version__"):
            assert ROW[rest[0]] < ROW[part], f"{part} must not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_frameworks_stay_in_their_rooms(path: Path) -> None:
    part = part_of(path)
    tops = {name.split(".")[0] for name in imports(path)}
    if part != "ir":
        assert not tops & {"onnx", "onnx_ir"}, "only ir may import onnx"
    if ROW.get(part, 9) < 2 or part == "runtimes":
        assert "torch" not in tops or path.name in TORCH[part], "torch starts in row 2"
