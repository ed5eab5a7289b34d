"""Do the deployments of one build say the same? Every pair of them, and the float model.

The deployed predictions of every picture are kept beside the details. One deployment's answers are
taken as the truth (`Task.as_truth`) and the other is scored against them by the task's own code:
the share of pictures with the same first class, or the average precision of one's boxes against the
other's. That is finer than two scores, which may be equal while the models are wrong on different
pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from modelmill import tasks
from modelmill.line.job import Job
from modelmill.line.report import FLOAT, CrossAgreement
from modelmill.line.show import Advance
from modelmill.line.store import Json, Store, file_hash
from modelmill.tasks import Card, DataError, Score, Task

PICTURES = 200  # compared at most where right is no yes or no: average precision is slow


def predictions_file(name: str) -> str:
    """Where the predictions of a deployment lie in the build's folder; `FLOAT` for the model's."""
    return f"details/{name}.predictions.npz"


def kept(task: Task, name: str, score: Score) -> dict[str, bytes]:
    """The file of a score's predictions, for `Store.step`; none where they cannot be compared."""
    if task.as_truth is None:
        return {}
    return {predictions_file(name): tasks.pack(score.predictions)}


def cross_agreement(job: Job, names: Sequence[str]) -> CrossAgreement | None:
    """The comparison of the named deployments that left their predictions, the float model first.

    None where the task cannot compare, or fewer than two have predictions.
    """
    task, store = job.source.task, job.store
    files = {name: store.path(predictions_file(name)) for name in (FLOAT, *names)}
    hashes = {name: file_hash(path) for name, path in files.items() if path.is_file()}
    if task.as_truth is None or len(hashes) < 2:
        return None

    def compute() -> tuple[Json, dict[str, bytes]]:
        held = {name: read(store, name, task) for name in hashes}
        with job.show.step("compare the deployments", len(held) ** 2) as advance:
            return compare_all(task, job.source.card, held, advance).to_json(), {}

    result = job.store.step("cross-agreement", {**job.key, "predictions": hashes}, compute)
    return CrossAgreement.from_json(result)


def read(store: Store, name: str, task: Task) -> tuple[Any, ...]:
    """The predictions of a deployment.

    Raises:
        ValueError: the file is damaged.
        FileNotFoundError: there is none.
    """
    return tasks.unpack(store.path(predictions_file(name)).read_bytes(), task.prediction)


def compare_all(
    task: Task,
    card: Card,
    held: Mapping[str, Sequence[Any]],
    advance: Advance = lambda done: None,
) -> CrossAgreement:
    """Every pair of `held` (name -> predictions of the same pictures in one order).

    Where one has fewer pictures than another, the first ones are compared.
    """
    n = min(map(len, held.values()))
    if task.correct is None:
        n = min(n, PICTURES)
    few = {name: predictions[:n] for name, predictions in held.items()}
    rows: list[tuple[float | None, ...]] = []
    done = 0
    for found in few.values():
        row = []
        for answers in few.values():
            row.append(likeness(task, card, found, answers))
            done += 1
            advance(done)
        rows.append(tuple(row))
    return CrossAgreement(task.metrics[0], n, tuple(few), tuple(rows))


def likeness(task: Task, card: Card, found: Sequence[Any], answers: Sequence[Any]) -> float | None:
    """The task's headline metric of `found` with `answers` as truth, a fraction; None where the
    answers hold nothing to find.
    """
    assert task.as_truth is not None
    if not answers:
        return None
    truths = [task.as_truth(answer, card) for answer in answers]
    try:
        headline = replace(card, metric=task.metrics[0])
        scored = task.resampled(found, truths, headline)(np.arange(len(truths)))
        return float(scored[task.metrics[0]])
    except DataError:  # not one box is sure
        return None
