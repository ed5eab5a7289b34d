"""`modelmill build`: the good case, every kind of wrong input, and what an interruption leaves."""

import json
import os
import shutil
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

ABSENT = Path(__file__).parents[1] / "runtimes" / "adapters" / "absent.py"
ENOUGH = ("--max-drop", "1", "--calibrate", "20", "--simulate", "10")


@pytest.fixture(scope="module")
def built(tiny, quick, tmp_path_factory):
    """A finished build of the tiny model for one target, and what the command printed."""
    from click.testing import CliRunner

    from modelmill.cli.main import main

    out = tmp_path_factory.mktemp("built") / "out"
    asked = ["build", tiny.model, "-d", tiny.data, "-t", "ort_cpu", "-o", str(out), *ENOUGH]
    return out, CliRunner().invoke(main, asked)


def test_a_build(built):
    out, result = built
    assert result.exit_code == 0, result.output
    for word in ("deployed", "simulated", "speedup", "accepted", "report.html", "ort_cpu.onnx"):
        assert word in result.stdout
    assert "were used to calibrate and are excluded from the score" in result.stdout
    assert "[" in result.stderr and "score on ort_cpu" in result.stderr  # plain lines of progress
    report = json.loads((out / "report.json").read_bytes())
    assert report["float"]["n"] == 40 and report["deployments"][0]["score"]["n"] == 40


def test_json_is_all_that_is_on_standard_output(run, tiny, tmp_path):
    out = tmp_path / "out"
    asked = ("build", tiny.model, "-d", tiny.data, "-t", "ort_cpu", "-o", out, *ENOUGH)
    result = run(*asked, "--format", "json")
    assert json.loads(result.stdout) == json.loads((out / "report.json").read_bytes())


def test_a_dry_run_writes_nothing(run, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ("build", tiny.model, "-d", tiny.data, "-t", "ort_cpu", "-t", "openvino_cpu")
    result = run(*asked, "--dry-run", "--cpu-flags", "avx2")
    assert result.exit_code == 0
    for word in ("Steps:", "integer", "weights have 7 bits", "results go to tiny-build"):
        assert word in result.stdout
    plan = json.loads(run(*asked, "--dry-run", "--format", "json").stdout)
    assert plan["images"]["evaluation"] == 30
    assert plan["targets"][0]["counts"] == {"integer": 6, "fused": 2, "float": 0}
    assert list(tmp_path.iterdir()) == []


def test_not_accepted_is_code_1(run, make_tiny, tmp_path):
    hair = make_tiny(tmp_path, hair=True)
    out = tmp_path / "out"
    asked = ("build", hair.model, "-d", hair.data, "-t", "ort_cpu", "-o", out, "--simulate", "5")
    asked += ("--algorithm", "round")
    result = run(*asked)
    assert result.exit_code == 1
    assert "NOT ACCEPTED" in result.stdout and "accuracy drop above the limit" in result.stdout
    assert (out / "artifacts" / "ort_cpu.onnx").is_file()


def test_a_manifest_gives_the_same_bytes(run, built, tmp_path):
    out, _ = built
    result = run("build", "--manifest", out / "manifest.json", "-o", tmp_path / "again")
    assert result.exit_code == 0 and "the same bytes" in result.stderr
    names = ("artifacts/ort_cpu.onnx", "artifacts/float.onnx")
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_a_manifest_of_other_bytes_is_a_finding(run, built, tmp_path):
    out, _ = built
    manifest = json.loads((out / "manifest.json").read_bytes())
    manifest["artifacts"]["artifacts/ort_cpu.onnx"] = "0" * 64
    changed = tmp_path / "manifest.json"
    changed.write_text(json.dumps(manifest))
    result = run("build", "--manifest", changed, "-o", tmp_path / "again")
    assert result.exit_code == 1 and "other bytes" in result.stderr


@pytest.mark.parametrize(
    "args", [("model.onnx",), ("--seed", "1"), ("-t", "ort_cpu"), ("--precision", "w8a8")]
)
def test_a_manifest_decides_everything(run, built, tmp_path, args):
    result = run("build", "--manifest", built[0] / "manifest.json", "-o", tmp_path / "x", *args)
    assert result.exit_code == 2 and "--manifest decides" in result.stderr


def test_a_manifest_needs_a_folder(run, built):
    result = run("build", "--manifest", built[0] / "manifest.json")
    assert result.exit_code == 2 and "--out" in result.stderr


def test_a_manifest_that_is_none(run, tiny, tmp_path):
    result = run("build", "--manifest", tiny.card, "-o", tmp_path / "x")
    assert result.exit_code == 2 and "not a manifest" in result.stderr


def test_an_artifact_knows_its_card(run, built, tiny):
    out, _ = built
    artifact = out / "artifacts" / "ort_cpu.onnx"
    result = run("eval", artifact, "-t", "ort_cpu", "-d", tiny.data)
    assert result.exit_code == 0, result.stderr


def test_an_earlier_build_is_not_overwritten(run, built, tiny):
    out, _ = built
    for more in ((), ("--dry-run",)):
        result = run("build", tiny.model, "-d", tiny.data, "-t", "ort_cpu", "-o", out, *more)
        assert result.exit_code == 2 and "--resume" in result.stderr


def test_resume_redoes_nothing(run, built, tiny):
    out, _ = built
    before = (out / "artifacts" / "ort_cpu.onnx").stat().st_mtime_ns
    asked = ("build", tiny.model, "-d", tiny.data, "-t", "ort_cpu", "-o", out, *ENOUGH)
    assert run(*asked, "--resume").exit_code == 0
    steps = json.loads((out / "manifest.json").read_bytes())["steps"]
    assert steps["done"] == [] and "deploy-ort_cpu" in steps["reused"]
    assert (out / "artifacts" / "ort_cpu.onnx").stat().st_mtime_ns == before


# --------------------------------------------------------------------------------- wrong input


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the tiny model that a test may damage."""
    shutil.copytree(tiny.folder, tmp_path / "tiny")
    return type(tiny)(tmp_path / "tiny")


def truncated(copy):
    path = Path(copy.model)
    path.write_bytes(path.read_bytes()[:200])
    return ("tiny.onnx",)


def no_onnx(copy):
    Path(copy.model).write_text("this is a text")
    return ("tiny.onnx",)


def no_file(copy):
    Path(copy.model).unlink()
    return ("tiny.onnx",)


def unknown_operator(copy):
    proto = onnx.load(copy.model)
    proto.graph.node[2].op_type, proto.graph.node[2].name = "Frobnicate", "layer2/odd"
    onnx.save(proto, copy.model)
    return ("Frobnicate", "layer2/odd")


def operator_without_executor(copy):
    proto = onnx.load(copy.model)
    node = proto.graph.node[1]
    node.op_type, node.name = "Det", "layer1/odd"
    onnx.save(proto, copy.model)
    return ("Det", "layer1/odd")


def nan_weights(copy):
    proto = onnx.load(copy.model)
    weight = next(t for t in proto.graph.initializer if t.name == "w2")
    array = onnx.numpy_helper.to_array(weight).copy()
    array[0, 0, 0, 0] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(array, "w2"))
    onnx.save(proto, copy.model)
    return ("w2", "NaN")


def no_card(copy):
    copy.card.unlink()
    return ("card", "tiny.json", "--card")


def card_contradicts(copy):
    card = json.loads(copy.card.read_text())
    card["input"]["size"] = [9, 9]
    copy.card.write_text(json.dumps(card))
    return ("input.size", "9", "8")


def card_of_other_layout(copy):
    card = json.loads(copy.card.read_text())
    card["input"]["layout"] = "NHWC"
    copy.card.write_text(json.dumps(card))
    return ("input.layout",)


def card_misspelt(copy):
    card = json.loads(copy.card.read_text())
    card["input"]["colour"] = card["input"].pop("color")
    copy.card.write_text(json.dumps(card))
    return ("colour",)


def empty_folder(copy):
    Path(copy.data).unlink()
    Path(copy.data).mkdir()
    return ("data.npz",)


def no_data(copy):
    Path(copy.data).unlink()
    return ("data.npz",)


def labels_out_of_range(copy):
    arrays = dict(np.load(copy.data))
    arrays["y"][7] = 4
    np.savez(copy.data, **arrays)
    return ("y[7]", "4")


def wrong_size(copy):
    arrays = dict(np.load(copy.data))
    np.savez(copy.data, x=arrays["x"][:, :6], y=arrays["y"])
    return ("6x8", "8x8")


def unlabelled(copy):
    np.savez(copy.data, x=np.load(copy.data)["x"])
    return ("no labels",)


def unreadable_image(copy):
    from PIL import Image

    arrays = np.load(copy.data)
    folder = Path(copy.data)
    folder.unlink()
    for i, (x, y) in enumerate(zip(arrays["x"], arrays["y"], strict=True)):
        (folder / f"class{y}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(folder / f"class{y}" / f"{i}.png")
    broken = next(folder.rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:60])
    return (broken.name,)


def broken_zip(copy):
    path = Path(copy.data)
    renamed = path.with_suffix(".zip")
    with zipfile.ZipFile(renamed, "w") as archive:
        archive.writestr("a/0.png", b"x" * 1000)
    path.unlink()
    renamed.write_bytes(renamed.read_bytes()[:300])
    renamed.rename(path)
    return ("data.npz",)


WRONG = (
    truncated, no_onnx, no_file, unknown_operator, operator_without_executor, nan_weights, no_card,
    card_contradicts, card_of_other_layout, card_misspelt, empty_folder, no_data,
    labels_out_of_range, wrong_size, unlabelled, unreadable_image, broken_zip,
)  # fmt: skip


@pytest.mark.parametrize("damage", WRONG, ids=lambda f: f.__name__)
def test_wrong_input(run, copy, tmp_path, damage):
    words = damage(copy)
    out = tmp_path / "out"
    asked = ("build", copy.model, "-d", copy.data, "-t", "ort_cpu", "-o", out, *ENOUGH)
    result = run(*asked)
    assert result.exit_code == 2, result.output
    for word in words:
        assert word in result.stderr
    assert not (out / "report.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-t", "ort_gpu"), ("ort_gpu", "ort_cpu", "openvino_cpu")),
        (("-t", "nowhere/chip.py"), ("nowhere/chip.py",)),
        ((), ("-t ort_cpu",)),
        (("-t", "ort_cpu", "-t", "ort_cpu"), ("twice",)),
        (("-t", "ort_cpu", "--precision", "w8a16"), ("w8a16", "Choices: w8a8")),
        (("-t", "ort_cpu", "--precision", "int8"), ("int8", "wXaY")),
        (("-t", "ort_cpu", "--calibrate", "0"), ("--calibrate",)),
        (("-t", "ort_cpu", "--limit", "0"), ("--limit",)),
        (("-t", "ort_cpu", "--max-drop", "2"), ("--max-drop",)),
        (("-t", "ort_cpu", "--timeout", "-1"), ("timeout",)),
        (("-t", "ort_cpu", "--card", "nowhere.json"), ("nowhere.json",)),
        (("-t", "ort_cpu", "--calib", "nowhere"), ("nowhere",)),
        (("-t", "ort_cpu", "--seed", "x"), ("--seed",)),
    ],
)
def test_wrong_options(run, tiny, tmp_path, options, words):
    result = run("build", tiny.model, "-d", tiny.data, "-o", tmp_path / "out", *options)
    assert result.exit_code == 2, result.output
    for word in words:
        assert word in result.stderr


def test_missing_arguments(run, tiny):
    assert "MODEL" in run("build", "-d", tiny.data).stderr
    result = run("build", tiny.model, "-t", "ort_cpu")
    assert result.exit_code == 2 and "--data" in result.stderr


@pytest.fixture
def chip_on(tmp_path):
    """chip_on(engine file) -> the file of a target `chip` that runs on it."""

    def make(engine):
        chip = tmp_path / "chip.py"
        chip.write_text(
            "from dataclasses import replace\n"
            "from modelmill.targets.ort_cpu import PLUGIN as ORT\n"
            f"PLUGIN = replace(ORT, name='chip', runtime={str(engine)!r})\n"
        )
        return chip

    return make


def test_an_engine_that_is_not_installed(run, tiny, tmp_path, chip_on):
    chip = chip_on(ABSENT)
    for more in ((), ("--dry-run",)):
        out = tmp_path / "out"
        result = run("build", tiny.model, "-d", tiny.data, "-t", chip, "-o", out, *more)
        assert result.exit_code == 2 and "pip install" in result.stderr
        assert not out.exists()


ENGINE = """
import os
from modelmill.runtimes.onnxruntime import PLUGIN as ORT


class Failing:
    name, supported, pip, suffix = "failing", ORT.supported, ORT.pip, ".onnx"
    missing, version = ORT.missing, ORT.version

    def open(self, path, options):
        if os.path.basename(path) == {file!r}:
            {deed}
        return ORT.open(path, options)


PLUGIN = Failing()
"""


@pytest.mark.parametrize(
    ("file", "deed", "words"),
    [
        ("chip.onnx", "os.abort()", "crashed (SIGABRT)"),  # other ways: line/test_run.py
        ("float.onnx", "os.abort()", "the float model does not run"),
    ],
)
def test_an_engine_that_fails_costs_its_deployment_only(
    run, tiny, tmp_path, chip_on, file, deed, words
):
    (tmp_path / "engine.py").write_text(ENGINE.format(file=file, deed=deed))
    chip = chip_on(tmp_path / "engine.py")
    out = tmp_path / "out"
    asked = ("build", tiny.model, "-d", tiny.data, "-t", chip, "-t", "ort_cpu", "-o", out, *ENOUGH)
    result = run(*asked, "--format", "json")
    assert result.exit_code == 1
    failed, fine = json.loads(result.stdout)["deployments"]
    assert words in failed["failed"] and failed["score"] is None
    assert fine["failed"] is None and fine["score"]["deployed"] > 0.5
    if file == "chip.onnx":
        (tmp_path / "engine.py").write_text(ENGINE.format(file="", deed="pass"))
        assert run(*asked, "--resume").exit_code == 0  # what failed is tried again
        steps = json.loads((out / "manifest.json").read_bytes())["steps"]
        assert (
            steps["done"] == ["score-chip", "deploy-chip", "cross-agreement"]
            and "deploy-ort_cpu" in steps["reused"]
        )


def test_no_engine_runs_the_float_model(run, tiny, tmp_path, chip_on):
    (tmp_path / "engine.py").write_text(ENGINE.format(file="float.onnx", deed="os.abort()"))
    chip = chip_on(tmp_path / "engine.py")
    result = run("build", tiny.model, "-d", tiny.data, "-t", chip, "-o", tmp_path / "out")
    assert result.exit_code == 2 and "the float model does not run" in result.stderr


def test_keep_float(run, tiny, tmp_path):
    asked = ("build", tiny.model, "-d", tiny.data, "-t", "ort_cpu", "-o", tmp_path / "out")
    plan = run(*asked, "--dry-run", "--keep-float", "nothing")
    assert plan.exit_code == 2 and "nothing" in plan.stderr
    checked = json.loads(run("check", tiny.model, "-t", "ort_cpu", "--format", "json").stdout)[0]
    names = [v["node"] for v in checked["verdicts"]]
    plan = json.loads(run(*asked, "--dry-run", "--keep-float", names[0], "--format", "json").stdout)
    assert plan["targets"][0]["verdicts"][0]["runs"] == "float"


def test_out_is_a_file(run, tiny, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        for more in ((), ("--dry-run",)):
            result = run("build", tiny.model, "-d", tiny.data, "-t", "ort_cpu", "-o", out, *more)
            assert result.exit_code == 2, result.output
            assert str(out) in result.stderr and "-o" in result.stderr


# --------------------------------------------------------------------------------- interruption


@pytest.fixture
def interrupted(start, tiny, tmp_path):
    """interrupted(signal) -> arguments, exit code, standard error; it came after quantization."""

    def interrupt(number):
        out = tmp_path / "out"
        asked = ["build", tiny.model, "-d", tiny.data, "-t", "ort_cpu", "-o", str(out), *ENOUGH]
        process = start(asked)
        deadline = time.monotonic() + 60
        while not list(out.glob("cache/quantize-*.json")):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.01)
        os.kill(process.pid, number)
        _, said = process.communicate(timeout=20)
        return asked, out, process.returncode, said

    return interrupt


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_finished_steps_survive(run, interrupted, number):
    asked, out, code, said = interrupted(number)
    assert "Traceback" not in said
    if number == signal.SIGINT:
        assert code == 130 and "finished steps are kept" in said and "--resume" in said
    assert not (out / "report.json").exists()
    (made,) = out.glob("cache/attempts/*/artifacts/ort_cpu.onnx")
    before = made.stat().st_mtime_ns
    result = run(*asked, "--resume")
    assert result.exit_code == 0, result.output
    steps = json.loads((out / "manifest.json").read_bytes())["steps"]
    assert {"parity-onnxruntime", "float-score", "quantize-ort_cpu"} <= set(steps["reused"])
    assert steps["done"] == ["score-ort_cpu", "deploy-ort_cpu", "cross-agreement"]
    assert (out / "artifacts" / "ort_cpu.onnx").stat().st_mtime_ns == before
