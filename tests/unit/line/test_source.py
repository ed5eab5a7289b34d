"""What a build starts from: model, card and images, and what is refused."""

import json

import numpy as np
import pytest

from modelmill import ir, tasks
from modelmill.line.source import load_images, load_source
from modelmill.tasks import CardError


@pytest.fixture(scope="module")
def source(tiny):
    return load_source(tiny.model, None)


def test_a_source(source, tiny):
    assert (source.name, source.input_name, source.batch) == ("tiny", "x", None)
    assert source.task.name == "classification" and source.card == tasks.load_card(tiny.card)
    assert source.scoring_batch(100) == 100


def test_a_fixed_batch_decides(tiny):
    fixed = load_source(ir.with_batch(ir.load(tiny.model), 3), tiny.card)
    assert fixed.batch == 3 and fixed.scoring_batch(100) == 3


def test_a_graph_needs_a_card(tiny):
    with pytest.raises(CardError, match="card="):
        load_source(ir.load(tiny.model), None)


def test_two_inputs_are_refused(graph_from_text, tiny):
    graph = graph_from_text(
        "g (float[N,1,8,8] x, float[N,1,8,8] z) => (float[N,1,8,8] y) { y = Add(x, z) }"
    )
    with pytest.raises(ir.ModelError, match=r"2 inputs \(x, z\)"):
        load_source(graph, tiny.card)


def test_operators_without_executor_are_all_named(graph_from_text, tiny):
    graph = graph_from_text(
        "g (float[N,1,8,8] x) => (float[N,1] y) { d = Det(x)  e = Bernoulli(d)  y = Relu(e) }"
    )
    with pytest.raises(ir.ModelError, match=r"Det \(node .*Bernoulli \(node"):
        load_source(graph, tiny.card)


def drawn(source, tiny, **options):
    asked = {"calib": None, "calibrate": 512, "limit": None, "seed": 0} | options
    return load_images(source, tiny.data, **asked)


def bytes_of(dataset):
    return [dataset.sample(i).image.tobytes() for i in range(len(dataset))]


def test_calibration_images_are_never_scored(source, tiny):
    images = drawn(source, tiny, calibrate=20)
    assert (len(images.calibration), len(images.evaluation)) == (20, 40)
    assert not set(bytes_of(images.calibration)) & set(bytes_of(images.evaluation))
    assert "20 images" in images.note and "excluded from the score" in images.note


def test_at_most_half_is_taken_away(source, tiny):
    images = drawn(source, tiny)
    assert (len(images.calibration), len(images.evaluation)) == (30, 30)


def test_calibration_data_of_its_own(source, tiny):
    images = drawn(source, tiny, calib=tiny.data, calibrate=16, limit=10)
    assert (len(images.calibration), len(images.evaluation)) == (16, 10)
    assert "calibrated on 16 images" in images.note and "--limit" in images.note


def test_the_seed_decides_alone(source, tiny):
    one, same, other = (drawn(source, tiny, calibrate=20, seed=s) for s in (0, 0, 1))
    assert one.calibration.fingerprint() == same.calibration.fingerprint()
    assert one.calibration.fingerprint() != other.calibration.fingerprint()


def test_a_single_image_is_not_enough(source, tmp_path, tiny):
    """One image cannot be calibrated on and scored."""
    np.savez(tmp_path / "one.npz", x=np.zeros((1, 8, 8), np.uint8), y=[0])
    with pytest.raises(ValueError, match="image"):
        load_images(source, tmp_path / "one.npz", None, 512, None, 0)


def test_the_card_of_another_name(tiny, tmp_path):
    card = json.loads(tiny.card.read_text())
    (tmp_path / "other.json").write_text(json.dumps(card))
    assert load_source(tiny.model, tmp_path / "other.json").card == tasks.load_card(tiny.card)
