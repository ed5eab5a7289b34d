"""`import modelmill`: every command as a function, loaded when it is first used."""

import inspect
import json

import numpy as np
import pytest

import modelmill
from modelmill import tasks


def test_every_command_has_its_function():
    from modelmill.cli.main import main

    named = {"audit": "audit_deployment", "eval": "evaluate", "targets": "describe"}
    others = {"demo", "latency", "serve"}  # a show, functions of parts, a server
    commands = {named.get(name, name) for name in main.list_commands(None)} - others
    assert commands | {"quantize"} == set(modelmill.__all__)


@pytest.mark.parametrize("name", modelmill.__all__)
def test_functions_are_documented_and_take_no_kwargs(name):
    function = getattr(modelmill, name)
    assert name in dir(modelmill)
    assert inspect.getdoc(function)
    kinds = {p.kind for p in inspect.signature(function).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'modelmill' has no attribute 'quantise'"):
        modelmill.quantise  # noqa: B018


def test_build_has_all_that_build_options_have():
    from dataclasses import fields

    from modelmill.line.options import BuildOptions

    asked = set(inspect.signature(modelmill.build).parameters)
    named = {field.name for field in fields(BuildOptions)} - {"attempts"}  # of a manifest alone
    assert asked - {"show"} == named


def test_build_from_python_values(tiny, quick, tmp_path):
    """Pictures in memory, a card as a value, one target by its name."""
    arrays = np.load(tiny.data)
    pairs = list(zip(arrays["x"], arrays["y"].tolist(), strict=True))
    report = modelmill.build(
        tiny.model, pairs, "ort_cpu",
        card=tasks.load_card(tiny.card), calib=list(arrays["x"]), calibrate=16, limit=20,
        simulate=5, max_drop=1.0, out=tmp_path / "out",
    )  # fmt: skip
    assert report.accepted and report.deployments[0].score.n == 20
    held = json.loads((tmp_path / "out" / "report.json").read_bytes())
    assert held == json.loads(json.dumps(report.to_json()))


def test_a_pytorch_network_gives_its_name_to_the_build(tiny, monkeypatch, tmp_path):
    """package.module:factory, found in the working directory, without weights."""
    (tmp_path / "zoo.py").write_text(
        "from torch import nn\n"
        "def small():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert modelmill.inspect("zoo:small", card=tiny.card).params == 40 + 144 * 4 + 4
    checked = modelmill.check("zoo:small", "ort_cpu", card=tiny.card)
    assert checked.model == "zoo.small" and checked.accepted
    found = modelmill.evaluate("zoo:small", tiny.data, "ort_cpu", card=tiny.card, limit=5)
    assert found.model == "zoo.small" and found.score.n == 5


def test_build_writes_beside_you_unless_told(tiny, monkeypatch, tmp_path):
    from modelmill.line.entry import default_out

    assert str(default_out(tiny.model)) == "tiny-build"
    assert str(default_out("zoo.nets:small@w.pt")) == "zoo.nets.small-build"


def test_quantize_gives_values(tiny):
    card = tasks.load_card(tiny.card)
    dataset = tasks.open_data(tiny.data, card)
    batches = tasks.batches(dataset, range(32), tasks.prepare(card), 16, "x")
    quantized = modelmill.quantize(tiny.model, batches, target="ort_cpu")
    assert len(quantized.plan) > 5 and quantized.to_qdq().graph.name == "g"
