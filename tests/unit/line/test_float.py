"""Where int8 is slower than float, the fastest precision is float: an engine that waits wherever a
model holds codes, everything else about it is ONNX Runtime.
"""

import json

import pytest
from click.testing import CliRunner

from modelmill.cli.main import main
from modelmill.line.explain import explain
from modelmill.line.manifest import options_from
from modelmill.line.run import build
from modelmill.records import Database

SLOW = """
import time
from dataclasses import replace
from pathlib import Path
from modelmill import plugins
from modelmill.runtimes.onnxruntime import OnnxRuntime, OrtSession


class Session(OrtSession):
    def bind(self, feeds):
        run = super().bind(feeds)
        return lambda: (time.sleep(0.005), run())


class Engine(OnnxRuntime):
    def open(self, path, options):
        quantized = b"QuantizeLinear" in Path(path).read_bytes()
        return (Session if quantized else OrtSession)(path, options)


RUNTIME = Engine()
PLUGIN = replace(plugins.load("modelmill.targets", "ort_cpu"), name="slow", runtime=__file__)
"""


@pytest.fixture(scope="module")
def asked(tiny, tmp_path_factory):
    """What `modelmill build` is called with, and its folder."""
    folder = tmp_path_factory.mktemp("slow")
    target, out = folder / "slow.py", folder / "out"
    target.write_text(SLOW)
    command = ["build", tiny.model, "-d", tiny.data, "-t", str(target)]
    options = ["--precision", "auto", "--objective", "latency", "--max-drop", "0.5"]
    return [*command, *options, "--simulate", "5", "--calibrate", "20"], out


@pytest.fixture(scope="module")
def floated(asked, quick):
    command, out = asked
    result = CliRunner().invoke(main, [*command, "-o", str(out)])
    assert result.exit_code == 0, result.output
    return result, json.loads((out / "report.json").read_bytes()), out


def test_the_float_model_is_what_is_deployed(floated):
    _, report, out = floated
    found = report["deployments"][0]
    assert report["accepted"] and found["target"] == "slow" and found["precision"] == "float"
    assert found["artifact"] == found["qdq"] == "artifacts/float.onnx"
    assert found["bytes"] == (out / "artifacts/float.onnx").stat().st_size
    assert found["score"]["deployed"] == report["float"]["score"] == found["score"]["simulated"]
    assert [a["name"] for a in found["attempts"]] == ["round", "float"]
    assert [a["kept"] for a in found["attempts"]] == [False, True]
    assert not (out / "artifacts/slow.onnx").exists()


def test_what_has_no_meaning_is_absent(floated):
    found = floated[1]["deployments"][0]
    assert found["agreement"] is found["speedup"] is None and found["fallback_ops"] == []
    assert found["latency_ms"] == found["float_latency_ms"] is not None
    details = json.loads((floated[2] / "details/slow.json").read_bytes())
    assert list(details["latency_samples_ms"]) == ["float"] and details["tensors"] == []
    assert 0 <= details["output_difference"] < 1e-4


def test_it_is_said_in_words(floated):
    result, report, out = floated
    why = next(f["why"] for f in report["findings"] if f["what"] == "float is the fastest here")
    assert why.startswith("int8 takes ") and " times as long" in why
    assert "* float is the fastest here (slow): int8 takes" in result.stdout
    assert "stays float" in result.stdout
    page = (out / "report.html").read_text()
    assert "Float is the fastest here" in page and "What was tried" in page


def test_records_without_codes_and_without_a_ratio(floated):
    records = Database(floated[2] / "records.db").query()
    found = {r.what for r in records if r.extra.get("target") == "slow"}
    assert {"top1", "latency_p50_ms", "float_latency_p50_ms", "artifact_bytes"} <= found
    assert not found & {"mismatched_codes", "speedup"}


def test_nothing_is_done_twice(floated, asked):
    before = json.loads((floated[2] / "report.json").read_bytes())["deployments"]
    result = CliRunner().invoke(main, [*asked[0], "-o", str(floated[2]), "--resume"])
    assert result.exit_code == 0, result.output
    assert json.loads((floated[2] / "report.json").read_bytes())["deployments"] == before
    assert json.loads((floated[2] / "manifest.json").read_bytes())["steps"]["done"] == []


def test_the_manifest_goes_straight_to_float(floated, tmp_path):
    report = build(options_from(floated[2] / "manifest.json", tmp_path / "again"))
    found = report.deployments[0]
    assert found.precision == "float" and [a.name for a in found.attempts] == ["float"]
    (why,) = [f.why for f in report.findings if f.what == "the float model is deployed"]
    assert "an earlier build" in why


def test_there_is_nothing_to_explain(floated):
    found = explain(floated[2], "slow")
    assert found.accepted and not found.layers and not found.findings
    assert "nothing to explain" in found.notes[0]
    result = CliRunner().invoke(main, ["explain", str(floated[2]), "-t", "slow"])
    assert result.exit_code == 0 and "nothing to explain" in result.output


WRONG = SLOW.replace(
    """    def bind(self, feeds):
        run = super().bind(feeds)
        return lambda: (time.sleep(0.005), run())
""",
    """    def run(self, feeds, outputs=None):
        return {name: -y for name, y in super().run(feeds, outputs).items()}
""",
)


def test_where_no_bits_are_good_enough_it_stays_float(tiny, quick, tmp_path):
    """An engine that is wrong wherever a model holds codes: the limit comes first."""
    target, out = tmp_path / "wrong.py", tmp_path / "out"
    target.write_text(WRONG)
    asked = ["build", tiny.model, "-d", tiny.data, "-t", str(target), "-o", str(out)]
    options = ["--precision", "auto", "--effort", "quick", "--simulate", "5"]
    result = CliRunner().invoke(main, [*asked, *options, "--calibrate", "8"])
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_bytes())
    (found,) = report["deployments"]
    assert [a["name"] for a in found["attempts"] if a["kept"]] == ["float"]
    assert found["score"]["deployed"] == report["float"]["score"]
    (why,) = [f["why"] for f in report["findings"] if f["what"] == "the float model is deployed"]
    assert why.startswith("the best of what was tried on integers loses")
