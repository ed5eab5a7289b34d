"""Score: run a model over data and compare with the truth, whatever runs it.

`evaluate` takes a function from feeds to outputs, so the simulator and every engine are scored by
the same code.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from modelmill.tasks.card import Card
from modelmill.tasks.data import Dataset, prepared
from modelmill.tasks.images import DataError, prepare
from modelmill.tasks.task import Task

Run = Callable[[dict[str, npt.NDArray[Any]]], Mapping[str, npt.NDArray[Any]]]


@dataclass(frozen=True, eq=False)
class Score:
    """How good a model is: `value` of `metric` on `n` pictures, and what it was computed from.

    Metrics are fractions between 0 and 1. `invalid` counts predictions with numbers that are not
    finite.
    """

    metric: str
    value: float
    metrics: dict[str, float]
    n: int
    invalid: int
    predictions: tuple[Any, ...]
    truths: tuple[Any, ...]


def evaluate(
    task: Task,
    run: Run,
    dataset: Dataset,
    card: Card,
    batch_size: int,
    input_name: str,
    progress: Callable[[int], None] | None = None,
) -> Score:
    """Score `run` on every picture of `dataset`.

    `run` maps {input_name: float32 batch} to the graph's outputs. It always gets whole batches, so
    that a graph with a fixed batch works: the last is filled with copies of its last picture, whose
    predictions are dropped. `progress` gets the number of pictures done so far. The next batch is
    decoded while `run` works on one.

    Raises:
        DataError: no labels, or a picture that cannot be used.
        ValueError: the decoder does not fit the outputs.
    """
    if not dataset.labelled:
        raise DataError(
            f"{dataset.where} has no labels, so there is nothing to score against; add one folder "
            "per class, labels.csv, instances.json or y, or use it for calibration only (--calib)"
        )
    if len(dataset) == 0:
        raise DataError(f"{dataset.where}: no pictures are left to score")
    function = prepare(card)
    predictions: list[Any] = []
    truths: list[Any] = []
    for x, facts in prepared(dataset, range(len(dataset)), function, batch_size, read_ahead=True):
        for name, _, truth in facts:
            if truth is None:
                raise DataError(f"{dataset.where}: {name} has no label, others have")
        count = len(facts)
        if count < batch_size:
            x = np.concatenate([x, np.repeat(x[-1:], batch_size - count, axis=0)])
        sizes = [size for _, size, _ in facts] + [facts[-1][1]] * (batch_size - count)
        decoded = task.decode(run({input_name: x}), card, sizes)
        if len(decoded) != batch_size:
            raise ValueError(
                f"output.decode = {card.output.decode!r} gave {len(decoded)} predictions for "
                f"{batch_size} pictures"
            )
        predictions += decoded[:count]
        truths += [truth for _, _, truth in facts]
        if progress is not None:
            progress(len(truths))
    metrics = task.score(predictions, truths, card)
    metric = task.primary(card)
    invalid = sum(p.invalid for p in predictions)
    return Score(
        metric, metrics[metric], metrics, len(truths), invalid, tuple(predictions), tuple(truths)
    )
