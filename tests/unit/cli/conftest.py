"""Run a command in this process, or as a program of its own."""

import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
from click.testing import CliRunner, Result

PROGRAM = "import sys; from modelmill.cli.main import main; main(prog_name='modelmill')"


@pytest.fixture
def run(quick: None) -> Callable[..., Result]:
    """run("check", path, "-t", "ort_cpu") -> Result; nothing may end in a traceback."""

    def invoke(*args: object) -> Result:
        from modelmill.cli.main import main

        result = CliRunner().invoke(main, [str(a) for a in args])
        assert "Traceback" not in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return invoke


@pytest.fixture
def start() -> Callable[[Sequence[object]], "subprocess.Popen[str]"]:
    """The same command as a program."""

    def begin(args: Sequence[object]) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", PROGRAM, *map(str, args)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)

    return begin
