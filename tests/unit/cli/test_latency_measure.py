"""`modelmill latency measure` from outside."""

import json

import pytest
from click.testing import CliRunner

from modelmill.cli.main import main

pytest.importorskip("onnxruntime", reason="modelmill[onnxruntime]")


def invoke(*args):
    return CliRunner().invoke(main, ["latency", "measure", *map(str, args)])


def test_measured_once_and_then_again(tmp_path):
    asked = ("--zoo", "alexnet", "--count", 1, "-t", "ort_cpu", "--db", tmp_path / "l.db")
    plan = invoke(*asked, "--dry-run", "--format", "json")
    assert [row["there"] for row in json.loads(plan.stdout)] == [0, 0]
    first = invoke(*asked, "--format", "json")
    assert first.exit_code == 0, first.output
    rows = json.loads(first.stdout)["measurements"]
    assert {row["platform"]["precision"] for row in rows} == {"float", "w8a8"}
    assert all(row["p50_ms"] > 0 and row["failed"] is None for row in rows)
    assert json.loads(invoke(*asked, "--format", "json").stdout)["measurements"] == []
    repeat = invoke(*asked, "--again", "--precision", "float")
    assert "measured again: 1" in repeat.stdout, repeat.output


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["-t", "ort_cpu"], "nothing to measure"),
        (["--zoo", "alexnet"], "nothing to measure"),
        (["--zoo", "alxnet", "-t", "ort_cpu"], "no family 'alxnet'. Choices: all, alexnet"),
        (["--zoo", "alexnet", "-t", "ort_cpu", "--batch", "2"], "have batch 1"),
        (["--zoo", "alexnet", "-t", "ort_cpu", "--workers", "999"], "--workers 999"),
        (["--zoo", "alexnet", "-t", "ort_cp"], "did you mean 'ort_cpu'"),
        (["no.onnx", "-t", "ort_cpu"], "no.onnx: no such file"),
        (["no.onnx", "-t", "tensorrt"], "no engine here runs it"),
    ],
)
def test_wrong_input_is_said_so(args, words, tmp_path):
    result = invoke(*args, "--count", 1, "--db", tmp_path / "l.db")
    assert result.exit_code == 2
    assert words in result.output
