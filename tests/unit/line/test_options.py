"""Options: what is refused, with the choices, and how an amount of memory is written."""

from pathlib import Path

import click
import pytest

from modelmill.cli import build as command
from modelmill.cli.options import parse_memory
from modelmill.line.options import ALGORITHMS, OBJECTIVES, BuildOptions


def options(**changes):
    return BuildOptions("m.onnx", "d.npz", ("ort_cpu",), Path("out"), **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algorithm": "gptq"}, "--algorithm 'gptq'. Choices: auto, round, adaround, brecq, qdrop"),
        ({"objective": "speed"}, "--objective 'speed'. Choices: size, latency"),
        ({"first_last_bits": 1}, "--first-last-bits is 2 to 8, or 0"),
        ({"first_last_bits": 9}, "--first-last-bits is 2 to 8, or 0"),
        ({"memory": 1000}, "--memory 1000 bytes is too little"),
        ({"precision": "low"}, "is not of the form wXaY"),
    ],
)
def test_wrong_values(changes, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        options(**changes)


def test_what_may_be_asked():
    assert options(precision="auto").algorithm == "auto"
    assert options(first_last_bits=0, memory=2**20).memory == 2**20


def test_the_command_knows_the_same_choices():
    """It cannot import them: that would load torch for --help."""
    held = {
        p.name: p.type.choices for p in command.build.params if isinstance(p.type, click.Choice)
    }
    assert tuple(held["algorithm"]) == ALGORITHMS and tuple(held["objective"]) == OBJECTIVES


@pytest.mark.parametrize(
    ("text", "count"),
    [("2GiB", 2**31), ("1.5 GiB", 3 * 2**29), ("512mib", 2**29), ("2GB", 2 * 10**9), ("77", 77)],
)
def test_amounts_of_memory(text, count):
    assert parse_memory(text) == count


@pytest.mark.parametrize("text", ["", "much", "2 cups", "-1GiB", "2G"])
def test_no_amounts_of_memory(text):
    with pytest.raises(ValueError, match=r"is no amount of memory; write .* 2GiB"):
        parse_memory(text)
