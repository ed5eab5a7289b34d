"""Scores on real engines, and how a file finds its card."""

import json
import shutil

import numpy as np
import pytest

from modelmill import ir, tasks
from modelmill.line.artifact import engine_of, find_card, limited
from modelmill.line.evaluate import evaluate
from modelmill.runtimes import DeploymentError

ENGINES = ["ort_cpu", "openvino_cpu"]


@pytest.mark.parametrize("target", ENGINES)
def test_the_model_gives_its_own_answers(tiny, target):
    """Labels are what the reference evaluator of ONNX answers."""
    found = evaluate(tiny.model, tiny.data, target)
    assert found.score.value == 1.0 and found.score.n == 60 and found.score.metric == "top1"
    assert found.version and found.peak_memory_mib > 1


def test_half_the_labels_wrong_is_half_the_score(tiny, tmp_path):
    arrays = dict(np.load(tiny.data))
    arrays["y"][::2] = (arrays["y"][::2] + 1) % 4
    np.savez(tmp_path / "half.npz", **arrays)
    assert evaluate(tiny.model, tmp_path / "half.npz", "ort_cpu").score.value == 0.5


def test_by_engine_from_python_with_a_graph_and_a_transform(tiny):
    arrays = np.load(tiny.data)
    pairs = list(zip(arrays["x"] / 255, arrays["y"].tolist(), strict=True))
    found = evaluate(
        ir.load(tiny.model),
        pairs,
        runtime="onnxruntime",
        card=tiny.card,
        transform=lambda picture: np.round(picture * 255).astype(np.uint8),
        limit=10,
        seed=3,
    )
    assert found.score.n == 10 and found.score.value == 1.0


def test_limit_draws_what_a_build_draws(tiny):
    card = tasks.load_card(tiny.card)
    dataset = tasks.open_data(tiny.data, card)
    assert limited(dataset, 7, 5).ids == tasks.split(dataset, 7, 5)[0].ids
    assert limited(dataset, 1000, 5) is dataset and limited(dataset, None, 5) is dataset
    with pytest.raises(ValueError, match="--limit"):
        limited(dataset, 0, 5)


def test_json_leaves_the_predictions_out(tiny):
    data = json.loads(json.dumps(evaluate(tiny.model, tiny.data, "ort_cpu", limit=5).to_json()))
    assert data["n"] == 5 and data["metrics"]["top5"] == 1.0 and "predictions" not in data


def test_a_card_given_wins_over_all_others(tiny, tmp_path):
    shutil.copy(tiny.model, tmp_path / "tiny.onnx")
    card = json.loads(tiny.card.read_text())
    (tmp_path / "tiny.json").write_text(json.dumps({**card, "classes": 4}))
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**card, "metric": "top5"}))
    assert find_card(tmp_path / "tiny.onnx", other).metric == "top5"
    assert find_card(tmp_path / "tiny.onnx", None).metric is None


def test_an_artifact_takes_the_card_of_its_build(demo_build):
    artifact = demo_build / "artifacts" / "openvino_cpu.onnx"
    assert find_card(artifact, None) == tasks.load_card(demo_build / "digits.json")


@pytest.mark.parametrize("content", ["not json", "{}", '{"inputs": 3}', None])
def test_without_a_card_the_message_says_what_a_card_is(tiny, tmp_path, content):
    (tmp_path / "artifacts").mkdir()
    shutil.copy(tiny.model, tmp_path / "artifacts" / "a.onnx")
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match="no card"):
        find_card(tmp_path / "artifacts" / "a.onnx", None)


def test_where_to_run_it(monkeypatch):
    assert engine_of("ort_cpu", None) == "onnxruntime"
    assert engine_of(None, "openvino") == "openvino"
    for both in ((None, None), ("ort_cpu", "openvino")):
        with pytest.raises(ValueError, match="say where to run it"):
            engine_of(*both)
    with pytest.raises(ValueError, match="onnxruntime, openvino"):
        engine_of(None, "tensorrt")


def test_an_engine_that_refuses(tiny, tmp_path):
    """A file that is a model for us, but has an operator that no engine runs on these types."""
    engine = tmp_path / "engine.py"
    engine.write_text(
        "from modelmill.runtimes.onnxruntime import PLUGIN as ORT\n"
        "class Refusing:\n"
        "    name, supported, pip, suffix = 'refusing', ORT.supported, ORT.pip, '.onnx'\n"
        "    missing, version = ORT.missing, ORT.version\n"
        "    def open(self, path, options):\n"
        "        raise RuntimeError('I do not like it')\n"
        "PLUGIN = Refusing()\n"
    )
    with pytest.raises(DeploymentError, match="I do not like it"):
        evaluate(tiny.model, tiny.data, runtime=str(engine))


def test_a_card_that_contradicts(tiny, tmp_path):
    card = json.loads(tiny.card.read_text())
    card["classes"] = 7
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="7"):
        evaluate(tiny.model, tiny.data, "ort_cpu", card=tmp_path / "card.json")
