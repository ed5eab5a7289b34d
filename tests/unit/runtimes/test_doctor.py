"""Versions are compared number by number; an engine that cannot be loaded is told apart."""

from pathlib import Path

import pytest

from modelmill.runtimes import EngineError
from modelmill.runtimes.doctor import is_between
from modelmill.runtimes.worker import probe


@pytest.mark.parametrize(
    ("version", "inside"),
    [
        ("1.20", True),
        ("1.20.1", True),
        ("1.32.0", True),
        ("1.9.0", False),
        ("1.19.2", False),
        ("2", False),
        ("2.0.0", False),
        ("1.100+cpu", True),
        ("1.21rc1", True),
        ("unknown", False),
        ("", False),
    ],
)
def test_versions(version, inside):
    assert is_between(version, "1.20", "2") is inside


def test_years_are_versions_too():
    assert is_between("2026.4.1", "2025.0", "2027")
    assert not is_between("2024.6.0", "2025.0", "2027")


def test_an_engine_that_cannot_be_loaded(tmp_path: Path):
    adapter = tmp_path / "broken.py"
    adapter.write_text(
        "class B:\n"
        "    name, supported, pip, suffix = 'b', ('1', '2'), 'pip install b', '.onnx'\n"
        "    def open(self, path, options): raise NotImplementedError\n"
        "    def missing(self): return None\n"
        "    def version(self): import ctypes; return ctypes.CDLL('libnowhere.so')\n"
        "PLUGIN = B()\n"
    )
    with pytest.raises(EngineError, match=r"could not load the engine: OSError: libnowhere"):
        probe(str(adapter))
