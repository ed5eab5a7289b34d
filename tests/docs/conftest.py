"""What the pages tell a reader to run, run in a folder that `modelmill demo` has filled."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def after_demo(demo_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a copy of `demo-build` in it."""
    shutil.copytree(demo_build, tmp_path / "demo-build")
    monkeypatch.chdir(tmp_path)
    return tmp_path
