"""Without PyTorch: what needs it says which line installs it, the rest works."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
sys.modules["torch"] = None
from modelmill.cli.main import main
main(prog_name="modelmill")
"""


@pytest.fixture
def without_torch():
    def run(*args):
        command = [sys.executable, "-c", PROGRAM, *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


def test_a_build_names_the_line_that_installs_it(demo_build, without_torch, tmp_path):
    out = tmp_path / "out"
    data = demo_build / "test.npz"
    result = without_torch(
        "build", demo_build / "digits.onnx", "-d", data, "-t", "ort_cpu", "-o", out
    )
    assert result.returncode == 2
    assert result.stderr == "Error: torch is missing; run: pip install 'modelmill[torch]'\n"
    assert not out.exists()


def test_an_artifact_is_scored_and_a_model_inspected(demo_build, without_torch):
    artifact, data = demo_build / "artifacts" / "ort_cpu.onnx", demo_build / "test.npz"
    scored = without_torch("eval", artifact, "-t", "ort_cpu", "-d", data, "--limit", 20)
    assert scored.returncode == 0, scored.stderr
    assert without_torch("inspect", demo_build / "digits.onnx").returncode == 0
