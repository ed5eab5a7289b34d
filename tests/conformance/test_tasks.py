"""What every task and every decoder must do, for each plug-in there is."""

import numpy as np
import pytest

from modelmill import plugins
from modelmill.tasks import Task, card_from_json, open_data, pack, unpack

TASKS = plugins.names("modelmill.tasks")
DECODERS = plugins.names("modelmill.tasks.decoders")


@pytest.fixture(params=TASKS)
def task(request) -> Task:
    return plugins.load("modelmill.tasks", request.param)


def test_there_are_the_known_plugins():
    assert {"classification", "detection"} <= set(TASKS)
    assert {"argmax", "fastestdet"} <= set(DECODERS)


@pytest.mark.parametrize("name", TASKS)
def test_the_name_is_the_files(name):
    task = plugins.load("modelmill.tasks", name)
    assert isinstance(task, Task) and task.name == name


@pytest.mark.parametrize("seed", [0, 1])
def test_the_truth_itself_scores_one(task, seed):
    card, truths = task.example(seed)
    assert all(isinstance(truth, task.truth) for truth in truths)
    predictions = [task.ideal(truth, card) for truth in truths]
    assert all(isinstance(p, task.prediction) and p.invalid == 0 for p in predictions)
    score = task.score(predictions, truths, card)
    assert tuple(score) == task.metrics
    assert list(score.values()) == pytest.approx([1] * len(score))
    if task.correct is not None:
        assert task.correct(predictions, truths).tolist() == [True] * len(truths)


def test_another_truth_scores_less(task):
    """Rotating the answers by one picture must cost something, and stays a fraction."""
    card, truths = task.example(0)
    predictions = [task.ideal(truth, card) for truth in truths]
    score = task.score(predictions[1:] + predictions[:1], truths, card)
    assert all(0 <= value <= 1 for value in score.values())
    assert score[task.primary(card)] < 1


def test_the_example_is_repeatable_and_its_card_is_valid(task):
    (card, truths), (again, same) = task.example(5), task.example(5)
    assert card == again and repr(truths) == repr(same)
    assert card_from_json(card.to_json()) == card
    assert task.primary(card) in task.metrics


def test_data_of_the_example_keeps_its_truths(task):
    card, truths = task.example(0)
    image = np.zeros((*card.input.size, 3), np.uint8)
    data = open_data([(image, truth) for truth in truths], card)
    assert repr([data.sample(i).truth for i in range(len(data))]) == repr(truths)


def test_a_prediction_as_truth_and_as_bytes(task):
    """Against itself every model is perfect, and so it is after its answers lay in a file."""
    card, truths = task.example(0)
    predictions = [task.ideal(truth, card) for truth in truths]
    assert task.as_truth is not None
    answers = [task.as_truth(p, card) for p in predictions]
    assert all(isinstance(answer, task.truth) for answer in answers)
    data = pack(predictions)
    assert data == pack(predictions)
    again = unpack(data, task.prediction)
    assert [type(p) for p in again] == [task.prediction] * len(truths)
    score = task.score(again, answers, card)
    assert score[task.metrics[0]] == pytest.approx(1)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_refuses_outputs_of_a_strange_shape(name):
    decode = plugins.load("modelmill.tasks.decoders", name)
    card, _ = plugins.load("modelmill.tasks", "classification").example(0)
    for shape in ((1,), (1, 1, 1, 1, 1)):
        with pytest.raises(ValueError, match=f"{name} reads"):
            decode({"y": np.zeros(shape, np.float32)}, card, [card.input.size])
