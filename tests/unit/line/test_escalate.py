"""The accuracy loop: it goes on until the engine scores well enough, and says if it never does."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from modelmill.cli.main import main
from modelmill.line.attempt import Attempt, attempt_from, with_algorithm
from modelmill.line.escalate import (
    LADDER,
    climb_from,
    first_attempt,
    first_rung,
    other_ranges,
    rungs_after,
)
from modelmill.line.explain import explain
from modelmill.line.manifest import options_from
from modelmill.line.options import BuildOptions
from modelmill.line.quantize import DEFAULT, Recipe, Where
from modelmill.line.run import build
from modelmill.line.show import Silent
from modelmill.quant.adaround import AdaRound
from modelmill.quant.calibrate import Calibrate
from modelmill.quant.qdrop import QDrop

# ------------------------------------------------------------ the ladder


@pytest.mark.parametrize(
    ("precision", "name"),
    [("w8a8", "round"), ("w8a16", "round"), ("w6a8", "adaround"), ("w8a5", "adaround"),
     ("w4a8", "qdrop"), ("w8a4", "qdrop"), ("w2a2", "qdrop")],
)  # fmt: skip
def test_where_a_build_starts(precision, name):
    assert first_rung(precision) == name
    assert first_attempt("auto", DEFAULT, Where(precision), 0).name == name


def test_what_was_asked_for_is_what_is_done():
    where = Where("w4a8")
    assert first_attempt("round", DEFAULT, where, 0).recipe.reconstruct is None
    assert first_attempt("adaround", DEFAULT, where, 3).recipe.reconstruct == AdaRound(seed=3)
    own = Recipe(reconstruct=AdaRound(iterations=7))
    assert first_attempt("auto", own, where, 0).recipe == own
    assert with_algorithm(own, "adaround", where, 0).reconstruct == own.reconstruct
    assert first_attempt("round", own, where, 0).recipe.reconstruct is None


def test_bits_that_were_asked_for_are_not_given_back_in_silence():
    """Protect would keep layers in float, which is not w4a8."""
    assert first_attempt("auto", DEFAULT, Where("w8a8"), 0).recipe == DEFAULT
    assert first_attempt("round", DEFAULT, Where("w4a8"), 0).recipe.protect is None


def test_the_rungs_in_order():
    assert rungs_after("round") == LADDER[1:]
    assert rungs_after("qdrop") == rungs_after("brecq") == ()


def test_a_rung_stands_on_what_helped():
    ranges = climb_from(first_attempt("auto", DEFAULT, Where(), 0), "ranges", 0)
    learned = climb_from(ranges, "adaround", 5)
    assert learned.recipe == Recipe(calibrate=Calibrate("mse"), reconstruct=AdaRound(seed=5))
    assert climb_from(learned, "qdrop", 5).recipe.reconstruct == QDrop(seed=5)


def test_ranges_by_the_other_method():
    assert other_ranges(DEFAULT).calibrate.activations == "mse"
    assert other_ranges(Recipe(calibrate=Calibrate("mse"))).calibrate.activations == "minmax"
    bare = other_ranges(Recipe(equalize=None, bias_correction=None))
    assert bare.equalize is not None and bare.bias_correction is not None


def test_an_attempt_comes_back_from_json():
    where = Where("w4a8", ("avx2",), frozenset({"b", "a"}), 0, (("c", 4, 8),))
    made = Attempt("qdrop", Recipe(reconstruct=QDrop(drop=0.25)), where)
    assert attempt_from(json.loads(json.dumps(made.to_json()))) == made


# ------------------------------------------------------------ builds


class Listener(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def hair(make_tiny, tmp_path_factory):
    """Two of its classes differ by less than 8 bits of the last layer can hold."""
    return make_tiny(tmp_path_factory.mktemp("hair"), hair=True)


@pytest.fixture(scope="module")
def climbed(hair, quick, tmp_path_factory):
    out, show = tmp_path_factory.mktemp("climbed") / "out", Listener()
    options = BuildOptions(hair.model, hair.data, ("ort_cpu",), out, simulate=5, effort="quick")
    return build(options, show), out, show.said, options


def test_it_climbs_until_the_score_is_good_enough(climbed):
    report, out, said, _ = climbed
    (found,) = report.deployments
    names = [a.name for a in found.attempts]
    assert names[:4] == list(LADDER) and names[4].startswith("mixed-")
    assert report.accepted and report.drop(found) <= report.max_drop
    (kept,) = [a for a in found.attempts if a.kept]
    assert kept.score == found.score.deployed and kept.name.startswith("mixed-")
    assert found.attempts[0].gained is None and found.attempts[0].drop > report.max_drop
    assert any("ort_cpu, round" in s and "trying ranges" in s for s in said)
    assert any(f"ort_cpu, {kept.name}" in s and "good enough" in s for s in said)
    held = (out / f"cache/attempts/{kept.name}/artifacts/ort_cpu.onnx").read_bytes()
    assert (out / "artifacts/ort_cpu.onnx").read_bytes() == held
    page = (out / "report.html").read_text()
    assert "What was tried" in page


def test_what_each_attempt_gained(climbed):
    best = None
    for a in climbed[0].deployments[0].attempts:
        if best is not None:
            assert a.gained == pytest.approx(a.score - best)
        assert a.drop == pytest.approx(climbed[0].float_score["score"] - a.score)
        best = a.score if best is None else max(best, a.score)


def test_no_attempt_is_done_twice(climbed):
    report, out, _, options = climbed
    again = build(replace(options, resume=True))
    assert again.deployments == report.deployments
    assert json.loads((out / "manifest.json").read_bytes())["steps"]["done"] == []


def test_the_manifest_goes_straight_to_the_attempt_that_was_kept(climbed, tmp_path):
    _, out, _, _ = climbed
    report = build(options_from(out / "manifest.json", tmp_path / "again"))
    (found,) = report.deployments
    assert len(found.attempts) == 1 and found.attempts[0].name.startswith("mixed-")
    file = "artifacts/ort_cpu.onnx"
    assert (tmp_path / "again" / file).read_bytes() == (out / file).read_bytes()


def test_explain_knows_the_attempt(climbed):
    found = explain(climbed[1], limit=10, images=4)
    assert found.accepted and found.layers


def test_good_at_once_is_not_touched(tiny, quick, tmp_path):
    options = BuildOptions(
        tiny.model, tiny.data, ("ort_cpu",), tmp_path / "auto", simulate=5, max_drop=1.0
    )
    report = build(options)
    assert [a.name for a in report.deployments[0].attempts] == ["round"]
    build(replace(options, out=tmp_path / "round", algorithm="round"))
    files = [tmp_path / name / "artifacts/ort_cpu.onnx" for name in ("auto", "round")]
    assert files[0].read_bytes() == files[1].read_bytes()


LIAR = """
from dataclasses import replace
from pathlib import Path
from modelmill import plugins
from modelmill.runtimes.onnxruntime import OnnxRuntime, OrtSession


class Session(OrtSession):
    def run(self, feeds, outputs=None):
        return {name: -y for name, y in super().run(feeds, outputs).items()}


class Engine(OnnxRuntime):
    def open(self, path, options):
        kind = OrtSession if Path(path).name == "float.onnx" else Session
        return kind(path, options)


RUNTIME = Engine()
PLUGIN = replace(plugins.load("modelmill.targets", "ort_cpu"), name="liar", runtime=__file__)
"""


def test_where_nothing_helps_it_says_so(tiny, quick, tmp_path):
    """An engine that turns the sign of what a quantized model answers: no recipe can mend that."""
    target, out = tmp_path / "liar.py", tmp_path / "out"
    target.write_text(LIAR)
    asked = ["build", tiny.model, "-d", tiny.data, "-t", str(target), "-o", str(out)]
    result = CliRunner().invoke(
        main, [*asked, "--simulate", "5", "--calibrate", "20", "--effort", "quick"]
    )
    assert result.exit_code == 1, result.output
    (found,) = json.loads((out / "report.json").read_bytes())["deployments"]
    names = [a["name"] for a in found["attempts"]]
    assert names[:4] == list(LADDER) and len(names) > 4
    assert sum(a["kept"] for a in found["attempts"]) == 1
    assert max(a["score"] for a in found["attempts"]) == found["score"]["deployed"] < 0.99
    assert "nothing else is left to try" in result.stderr
    assert "the best of all that was tried" in result.stdout
    assert "next: modelmill explain" in result.stdout


# ------------------------------------------------------------ learned roundings


@pytest.fixture(scope="module")
def digits(demo_build):
    """Options of a build of the demo's network with learned roundings."""

    def make(out: Path, **changes):
        asked = {
            "precision": "w4a8", "algorithm": "adaround", "calibrate": 64, "limit": 50,
            "simulate": 10, "max_drop": 1.0, "calib": demo_build / "train.npz",
            "recipe": Recipe(reconstruct=AdaRound(iterations=30)),
        } | changes  # fmt: skip
        data, model = demo_build / "test.npz", demo_build / "digits.onnx"
        return BuildOptions(model, data, ("ort_cpu",), out, **asked)

    return make


@pytest.fixture(scope="module")
def learned(digits, quick, tmp_path_factory):
    out = tmp_path_factory.mktemp("learned") / "out"
    return build(digits(out)), out


def test_what_a_reconstruction_tells(learned):
    report, out = learned
    (found,) = report.deployments
    told = found.reconstruction
    assert told.algorithm == "adaround" and told.units > 3 and told.cache_mib > 0
    held = json.loads((out / "details/ort_cpu.json").read_bytes())["reconstruction"]
    assert len(held["units"]) == told.units and held["algorithm"] == "adaround"
    for unit in held["units"]:
        assert set(unit) == {
            "unit", "layers", "loss_before", "loss_after", "flipped", "kept", "seconds",
        }  # fmt: skip
        assert unit["loss_after"] <= unit["loss_before"] and 0 <= unit["flipped"] <= 1
    assert [u["unit"] for u in held["units"] if u["kept"]] == list(told.kept_rounding)
    page = (out / "report.html").read_text()
    assert "Learned roundings" in page and "Unit by unit" in page


def test_the_same_bytes_again(learned, tmp_path):
    build(options_from(learned[1] / "manifest.json", tmp_path / "again"))
    file = "artifacts/ort_cpu.onnx"
    assert (tmp_path / "again" / file).read_bytes() == (learned[1] / file).read_bytes()


def test_little_memory_goes_to_disk_and_changes_nothing(learned, digits, tmp_path):
    report = build(digits(tmp_path / "out", memory=2**20))
    told = report.deployments[0].reconstruction
    assert told.cache_mib <= 1.0 and told.spilled_mib > 0
    file = "artifacts/ort_cpu.onnx"
    assert (tmp_path / "out" / file).read_bytes() == (learned[1] / file).read_bytes()
    assert not list((tmp_path / "out").glob("cache/reconstruct-*/cache-*"))


def test_activations_of_few_bits_are_simulated_and_explained(digits, quick, tmp_path):
    report = build(digits(tmp_path / "out", precision="w4a4"))
    (found,) = report.deployments
    assert found.simulated and found.score.deployed is None
    assert any("no engine here computes on 4-bit" in f.why for f in report.findings)
    details = json.loads((tmp_path / "out/details/ort_cpu.json").read_bytes())
    assert details["reconstruction"]["units"]
    told = explain(tmp_path / "out", limit=10, images=4)
    assert told.simulated == found.score.simulated and told.layers


KILLED = """
import sys
from pathlib import Path
from modelmill.line.options import BuildOptions
from modelmill.line.quantize import Recipe
from modelmill.line.run import build
from modelmill.quant.adaround import AdaRound

folder, out, resume = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "resume"
build(BuildOptions(
    folder / "digits.onnx", folder / "test.npz", ("ort_cpu",), out, resume=resume,
    calib=folder / "train.npz", precision="w4a8", algorithm="adaround", calibrate=64, limit=50,
    simulate=10, max_drop=1.0, recipe=Recipe(reconstruct=AdaRound(iterations=30)),
))
"""


def test_killed_inside_a_reconstruction_it_continues_there(learned, digits, demo_build, tmp_path):
    """The same bytes as a build that nobody killed, and finished units are not learned again."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(demo_build), str(out), "first"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(out.glob("cache/reconstruct-*/*.npz"))) >= 2:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.005)
    units = sorted(out.glob("cache/reconstruct-*/*.npz"))
    total = learned[0].deployments[0].reconstruction.units
    assert process.returncode == -signal.SIGKILL and 2 <= len(units) < total
    before = {path: path.stat().st_mtime_ns for path in units}
    build(digits(out, resume=True))
    assert {path: path.stat().st_mtime_ns for path in units} == before
    file = "artifacts/ort_cpu.onnx"
    assert (out / file).read_bytes() == (learned[1] / file).read_bytes()


# ------------------------------------------------------------ bits layer by layer


def test_the_smallest_model_within_the_limit(hair, quick, tmp_path):
    options = BuildOptions(
        hair.model,
        hair.data,
        ("ort_cpu",),
        tmp_path / "out",
        precision="auto",
        simulate=5,
        effort="quick",
    )
    report = build(options)
    (found,) = report.deployments
    assert report.accepted and found.attempts[0].name == "round"
    assert sum(a.kept for a in found.attempts) == 1
    again = build(options_from(tmp_path / "out/manifest.json", tmp_path / "again"))
    assert again.accepted
    file = "artifacts/ort_cpu.onnx"
    assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "out" / file).read_bytes()


def test_the_fastest_needs_an_engine(tiny, tmp_path):
    options = BuildOptions(
        tiny.model, tiny.data, ("tensorrt",), tmp_path, precision="auto", objective="latency"
    )
    with pytest.raises(ValueError, match=r"no engine here runs tensorrt.*--objective size"):
        build(options)


def test_a_rung_is_named_once():
    assert len(set(LADDER)) == len(LADDER)
