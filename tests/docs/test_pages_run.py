"""Every block of code in the pages runs as it stands, and so does every example."""

import json
import runpy
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import modelmill

sys.path.insert(0, str(Path(__file__).parent))
from pages import ROOT, blocks, commands

COMMANDS = commands()
MODELMILL = [pytest.param(w[1:], id=" ".join(w[1:3])) for _, w in COMMANDS if w[0] == "modelmill"]
ENGINE = ROOT / "examples" / "opencv_dnn.py"  # not a program but a plug-in
EXAMPLES = sorted(set(ROOT.glob("examples/*.py")) - {ENGINE})


@pytest.mark.parametrize("words", MODELMILL)
def test_commands(after_demo, words, engines, monkeypatch):
    from click.testing import CliRunner

    from modelmill.cli.main import main

    monkeypatch.setattr("modelmill.runtimes.doctor", lambda: engines)  # it has been examined
    done = CliRunner().invoke(main, words)
    # 1 is a finding: after so little training and timing anything may be found
    assert done.exit_code in (0, 1), done.output
    assert "Error" not in done.output and "Traceback" not in done.output
    assert done.stdout.strip()


def test_other_commands_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    targets = (ROOT / "Makefile").read_text()
    for page, words in COMMANDS:
        if words[0] == "make":
            assert all(f"\n{name}:" in targets for name in words[1:]), f"{page}: {words}"
        elif words[:2] == ["pip", "install"]:
            extra = words[2].removeprefix("modelmill[").removesuffix("]")
            assert extra in project["optional-dependencies"], f"{page}: {words}"
        else:
            assert words[0] == "modelmill", f"{page}: {words} is not tested"


def test_the_example_of_the_readme(after_demo, capsys):
    (code,) = [code for page, code in blocks("python") if page == "README.md"]
    exec(compile(code, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ort_cpu", "openvino_cpu"]
    for name in ("report.html", "report.json", "manifest.json", "records.db"):
        assert (after_demo / "digits-from-python" / name).is_file()


def test_the_other_blocks():
    from modelmill import tasks

    known = {"README.md", "docs/latency.md"}
    assert {page for page, _ in blocks("python")} == known  # or a test is missing here
    for page, code in blocks("json"):
        assert page == "docs/card.md"
        tasks.card_from_json(json.loads(code))


def test_the_example_of_a_new_platform():
    (code,) = [code for page, code in blocks("python") if page == "docs/latency.md"]
    work = np.random.default_rng(0).integers(0, 7, (100, 3)).astype(float)
    known = np.log(1 + work @ np.array([[1.0, 2, 1], [3, 1, 1], [1, 1, 2]]))
    new = 1 + work @ np.array([2.0, 1, 3])
    names = {"features_NF": work, "source_log_ms_NP": known, "measured_ms": lambda row: new[row]}
    exec(compile(code, "docs/latency.md", "exec"), names)
    assert np.abs(np.exp(names["found"].log_ms) / new - 1).mean() < 0.05


def test_one_more_engine_is_one_file(after_demo, tmp_path):
    """Target and adapter outside the package: built, run on that engine, compared code by code."""
    pytest.importorskip("cv2")
    assert len(ENGINE.read_text().splitlines()) <= 200
    report = modelmill.build(
        "demo-build/digits.onnx",
        data="demo-build/test.npz",
        calib="demo-build/train.npz",
        targets=[str(ENGINE)],
        out=tmp_path / "out",
        limit=100,
        simulate=50,
        allow_fallback=True,
    )
    (found,) = report.deployments
    assert found.failed is None and found.score.deployed > 0.5  # trained for seconds
    assert found.agreement.own_mismatched <= found.agreement.own_elements / 10_000


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples(after_demo, monkeypatch, capsys, path):
    assert len(path.read_text().splitlines()) <= 60
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
