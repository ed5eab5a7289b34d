"""Targets in words, and what two of them say differently."""

import pytest

from modelmill import plugins
from modelmill.line.describe import describe, differences, shipped


@pytest.mark.parametrize("name", plugins.names("modelmill.targets"))
def test_everything_is_said(name):
    target, said = plugins.load("modelmill.targets", name), describe(name)
    assert said["source"] == target.source
    assert {rule.op for rule in target.rules} | {op for op, _ in target.refuses} <= set(said)
    for scheme in target.schemes:
        assert said[f"{scheme.precision} weights"] == str(scheme.weight)
    assert differences(name, name) == []


def test_limits_and_refusals():
    said = describe("vitis_dpu")
    assert "kernel_shape at most 8" in said["Conv"] and "; else " in said["Conv"]
    assert said["Sigmoid"].startswith("refused, ")
    assert said["what stays in float runs on"] == "CPU" and said["engine"] == "simulated"


def test_only_what_differs():
    apart = {what: (one, other) for what, one, other in differences("nxp_imx", "ti")}
    assert apart["arithmetic, requantize"] == ("shift", "multiply")
    assert apart["Split"][0] == "" and "Concat" not in apart and "w8a8 activations" not in apart


def test_a_target_of_ones_own(tmp_path):
    file = tmp_path / "mychip.py"
    file.write_text(
        "from dataclasses import replace\n"
        "from modelmill.targets.tensorrt import PLUGIN as ORIN\n"
        "PLUGIN = replace(ORIN, name='mychip', rules=ORIN.rules[1:])\n"
    )
    assert [row[0] for row in differences("tensorrt", str(file))] == ["Conv"]


def test_all_are_shipped():
    assert [target.name for target in shipped()] == plugins.names("modelmill.targets")
