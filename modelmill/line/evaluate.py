"""Score a model file on a real engine: `modelmill eval` and `modelmill.evaluate`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelmill import tasks
from modelmill.line.artifact import engine_file, engine_of, limited, load_artifact
from modelmill.line.inspect import Model
from modelmill.line.show import SILENT, Show
from modelmill.line.source import DataSource, Source
from modelmill.records.machine import this_machine
from modelmill.runtimes import SessionOptions, open_session
from modelmill.tasks import Card, Dataset, Score

BATCH = 100


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on an engine; `score` holds metric, value, n and every prediction."""

    model: str
    runtime: str
    version: str
    threads: int
    score: Score
    peak_memory_mib: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Everything but the predictions."""
        return {
            "model": self.model,
            "runtime": self.runtime,
            "version": self.version,
            "threads": self.threads,
            "metric": self.score.metric,
            "value": self.score.value,
            "metrics": self.score.metrics,
            "n": self.score.n,
            "invalid": self.score.invalid,
            "peak_memory_mib": self.peak_memory_mib,
            "seconds": self.seconds,
        }


def evaluate(  # noqa: PLR0913 (keyword arguments are the interface)
    model: Model,
    data: DataSource,
    target: str | None = None,
    *,
    runtime: str | None = None,
    card: str | Path | Card | None = None,
    limit: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    timeout_s: float = 300.0,
    transform: Callable[[Any], Any] | None = None,
    show: Show = SILENT,
) -> Evaluation:
    """Score a model on a real engine.

    Args:
        model: an ONNX file, `package.module:factory[@weights]`, a .pt2 file, or a graph.
        data: labelled images, see `modelmill.tasks.open_data`.
        target: a target, whose engine is taken; or name the engine with `runtime`.
        runtime: an engine, or the path of an adapter file.
        card: how it is fed and read; None: the one beside it, or of the build that it comes from.
        limit: score so many images, drawn by `seed`.
        seed: of the draw.
        threads: of the engine; None: every core.
        timeout_s: of one request to the engine.
        transform: see `modelmill.tasks.open_data`.
        show: who watches.

    Raises:
        ValueError: wrong input.
        DeploymentError: the engine refused, crashed, hung or ran out of memory.
    """
    engine = engine_of(target, runtime)
    source = load_artifact(model, card)
    dataset = limited(tasks.open_data(data, source.card, transform), limit, seed)
    options = SessionOptions(threads or this_machine().cores, timeout_s)
    with engine_file(model, source.graph) as path:
        return score_on(engine, source, path, dataset, options, show)


def score_on(
    engine: str, source: Source, path: Path, dataset: Dataset, options: SessionOptions, show: Show
) -> Evaluation:
    """Score the file at `path`, which is `source`, on an engine.

    Raises:
        ValueError: no labels, or images that cannot be used.
        DeploymentError: the engine failed.
    """
    start = time.perf_counter()
    batch = source.scoring_batch(min(BATCH, len(dataset)))
    asked = SessionOptions(options.threads, options.timeout_s, batch=batch)
    with (
        open_session(engine, path, asked) as session,
        show.step(f"score {source.name} on {engine}", len(dataset)) as advance,
    ):
        score = tasks.evaluate(
            source.task, session.run, dataset, source.card, batch, source.input_name, advance
        )
        peak = round(session.peak_memory_mib(), 1)
        seconds = round(time.perf_counter() - start, 3)
        return Evaluation(
            source.name, engine, session.version, options.threads, score, peak, seconds
        )
