"""Real models on real pictures, run by ONNX Runtime, give the scores measured for them.

The numbers are those of the table in the data's README, obtained there with other code.
"""

import numpy as np
import onnxruntime
import pytest

from modelmill import plugins
from modelmill.tasks import (
    batches,
    check_card,
    default_card_path,
    evaluate,
    load_card,
    open_data,
    prepare,
)


def _session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("name", "folder", "batch", "expected"),
    [
        ("mobilenetv1_025_imagenet", "imagenet", 20, {"top1": 0.52, "top5": 230 / 300}),
        ("fastestdet_coco", "coco", 1, {"ap": 0.166, "ap50": 0.305, "ap75": 0.165}),
    ],
)
def test_scores_are_the_documented_ones(data_dir, name, folder, batch, expected):
    model = data_dir / "models" / f"{name}.onnx"
    card, session = load_card(default_card_path(model)), _session(model)
    (fed,), outputs = session.get_inputs(), session.get_outputs()
    check_card(card, fed.shape, {o.name: o.shape for o in outputs})

    def run(feeds):
        return {outputs[0].name: session.run(None, feeds)[0]}

    task, data = plugins.load("modelmill.tasks", card.task), open_data(data_dir / folder, card)
    score = evaluate(task, run, data, card, batch, fed.name)
    assert score.invalid == 0
    assert score.metrics == pytest.approx(expected, abs=4e-3)  # one picture of 300


@pytest.mark.parametrize("name", ["resnet20_cifar10", "resnet56_cifar10"])
def test_zip_of_jpegs(data_dir, name):
    model = data_dir / "models" / f"{name}.onnx"
    card, session = load_card(default_card_path(model)), _session(model)
    data = open_data(data_dir / "cifar10" / "test.zip", card)
    assert len(data) == 10_000
    truths = [data.sample(i).truth for i in range(0, 10_000, 1000)]
    assert truths == list(range(10))
    # every hundredth picture: documented are 88.1 and 83.2 %, of 100 pictures four sigma is 16
    feeds = batches(data, range(0, 10_000, 100), prepare(card), 50, session.get_inputs()[0].name)
    found = np.concatenate([session.run(None, feed)[0].argmax(1) for feed in feeds])
    assert (found == np.arange(100) // 10).mean() > 0.68
