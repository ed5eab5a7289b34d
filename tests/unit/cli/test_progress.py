"""What a run shows while it runs."""

import io
import sys

import pytest
from rich.console import Console

from modelmill.cli import progress


def test_lines_say_when_a_step_begins(capsys):
    with progress.Lines() as show:
        with show.step("score", 1500) as advance:
            advance(700)
            show.say("a note")
        with show.step("calibrate"):
            pass
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0].endswith("] score (1,500)") and lines[1] == "a note"
    assert lines[2].endswith("] calibrate")


@pytest.fixture
def terminal(monkeypatch):
    """Standard error as a terminal that keeps what it was sent."""
    sent = io.StringIO()
    console = Console(file=sent, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "Console", lambda stderr: console)
    return sent


def test_live_keeps_finished_steps(terminal):
    with progress.Live() as show:
        with show.step("score on ort_cpu", 10) as advance:
            advance(10)
            show.say("weights have 7 bits [because]")
        with show.step("calibrate") as advance:
            advance(3)
    said = terminal.getvalue()
    assert "score on ort_cpu" in said and "10/10" in said and "3/3" in said
    assert "weights have 7 bits [because]" in said  # square brackets are no markup


def test_live_leaves_the_terminal_whole_after_an_error(terminal):
    with pytest.raises(KeyboardInterrupt), progress.Live() as show, show.step("long", 5):
        raise KeyboardInterrupt
    assert terminal.getvalue().rstrip("\n").endswith("\x1b[?25h")  # the cursor is shown again


@pytest.mark.parametrize(("out", "err"), [(True, True), (True, False), (False, True)])
def test_live_only_where_a_person_looks(monkeypatch, out, err):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: out, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: err, raising=False)
    assert isinstance(progress.watch(), progress.Live if out and err else progress.Lines)
