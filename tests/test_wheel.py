"""What is installed is the package with its data files and its licence, and nothing else."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"  # building in place would leave a build folder behind
    kept = (
        "modelmill",
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "tests",
        "benchmarks",
        "examples",
    )
    source.mkdir()
    for name in kept:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.exists():
            shutil.copy(path, source)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*command, "-w", str(tmp_path)], cwd=source, check=True, capture_output=True,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    info = next(name.split("/")[0] for name in names if name.endswith(".dist-info/METADATA"))
    assert {name.split("/")[0] for name in names} == {"modelmill", info}
    assert f"{info}/licenses/LICENSE" in names
    inside = {str(path.relative_to(ROOT)) for path in (ROOT / "modelmill").rglob("*")
              if path.is_file() and "__pycache__" not in path.parts}  # fmt: skip
    assert {name for name in names if name.startswith("modelmill/")} == inside
