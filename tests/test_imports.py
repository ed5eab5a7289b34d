"""Importing is cheap, and what is imported is declared."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "onnx", "onnx_ir", "onnxruntime", "openvino", "cv2", "pycocotools", "sklearn",
         "scipy", "sqlalchemy", "fastapi", "uvicorn"}  # fmt: skip
# Distributions whose modules have another name.
MODULES = {
    "apache_tvm": "tvm", "ethos_u_vela": "ethosu", "iree_base_compiler": "iree", "mnn": "MNN",
    "opencv_python_headless": "cv2", "pillow": "PIL", "scikit_learn": "sklearn",
}  # fmt: skip


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a statement adds to a fresh interpreter."""
    code = (
        "import sys; before = set(sys.modules)\n"
        f"{statement}\n"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.splitlines()[-1].split())


def test_import_modelmill_loads_the_standard_library_only() -> None:
    assert loaded_by("import modelmill") <= {*sys.stdlib_module_names, "modelmill"}


def test_ir_does_not_load_torch() -> None:
    assert "torch" not in loaded_by("import modelmill.ir, modelmill.passes")


def test_help_is_light() -> None:
    pytest.importorskip("modelmill.cli.main", reason="no command line yet")
    statement = (
        "from modelmill.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    )
    assert not loaded_by(statement) & HEAVY


def test_every_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [
        r for name, rs in project["optional-dependencies"].items() if name != "dev" for r in rs
    ]
    declared = set()
    for requirement in (*project["dependencies"], *extras):
        name = re.split(r"[<>=\[; ]", requirement)[0].lower().replace("-", "_")
        declared.add(MODULES.get(name, name))
    for path in (ROOT / "modelmill").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for top in {name.split(".")[0] for name in names}:
                # protobuf comes with onnx, as its file format; _tools is MNN's converter
                known = declared | sys.stdlib_module_names | {"modelmill", "google", "_tools"}
                assert top in known, f"{path}: {top} is not in pyproject.toml"
