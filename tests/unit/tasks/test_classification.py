"""Top-1 and top-5 against scikit-learn, and what counts as wrong."""

import numpy as np
from sklearn.metrics import top_k_accuracy_score

from modelmill.tasks.classification import PLUGIN, Ranking
from modelmill.tasks.decoders.argmax import decode


def test_accuracies_are_those_of_scikit_learn(card):
    rng = np.random.default_rng(0)
    x, truths = rng.random((200, 9)), rng.integers(0, 9, 200)
    ten = card(classes=9)
    found = PLUGIN.score(decode({"y": x}, ten, [(6, 8)] * 200), truths.tolist(), ten)
    assert found == {
        f"top{k}": top_k_accuracy_score(truths, x, k=k, labels=range(9)) for k in (1, 5)
    }


def test_correct_per_picture_and_invalid_counts_as_wrong(card):
    predictions = [Ranking((2, 1, 0)), Ranking((1, 2, 0)), Ranking((), 1)]
    correct = PLUGIN.correct(predictions, [2, 2, 0])
    assert correct.tolist() == [True, False, False] and correct.dtype == bool
    assert PLUGIN.score(predictions, [2, 2, 0], card()) == {"top1": 1 / 3, "top5": 2 / 3}


def test_headline(card):
    assert PLUGIN.primary(card()) == "top1" and PLUGIN.primary(card(metric="top5")) == "top5"
