"""What a build starts from: the model, its card, its task, and the images to calibrate on and to
score with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelmill import ir, plugins, tasks
from modelmill.line.inspect import is_pytorch, label
from modelmill.tasks import Card, CardError, Dataset, Task

DataSource = str | Path | Iterable[Any]


@dataclass(frozen=True)
class Source:
    """A model with everything that tells how to feed, read and score it."""

    name: str
    graph: ir.Graph
    card: Card
    task: Task
    input_name: str
    batch: int | None  # None: any batch

    def scoring_batch(self, wanted: int) -> int:
        """The batch to score with: `wanted`, or the model's own if it is fixed."""
        return wanted if self.batch is None else self.batch


@dataclass(frozen=True)
class Images:
    """calibration and evaluation never share an image unless the user gave both; note says where
    they come from.
    """

    calibration: Dataset
    evaluation: Dataset
    note: str


def load_source(model: str | Path | ir.Graph, card: str | Path | Card | None) -> Source:
    """Load a model and its card and check one against the other.

    Raises:
        ValueError: no such model, an unknown operator, no card, or a card that contradicts the
        graph.
    """
    loaded = read_card(model, card)
    graph = read_graph(model, loaded)
    from modelmill import executor  # here, as scoring an artifact needs no PyTorch

    missing = executor.unsupported(graph)
    if missing:
        listed = ", ".join(f"{op} (node {node!r})" for node, op in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ir.ModelError(
            f"the executor has no operator {listed}{more}; rewrite it at export, or add it: one "
            "function in modelmill/executor, see CONTRIBUTING.md"
        )
    return with_card(model, graph, loaded)


def with_card(model: str | Path | ir.Graph, graph: ir.Graph, card: Card) -> Source:
    """The source of a graph and its card, checked against each other.

    Raises:
        ValueError: the card contradicts the graph.
    """
    inputs = ir.inputs(graph)
    if len(inputs) != 1:
        raise ir.ModelError(
            f"the model has {len(inputs)} inputs ({', '.join(inputs)}), a card describes one "
            "picture input"
        )
    name, info = next(iter(inputs.items()))
    tasks.check_card(card, info.shape, {n: o.shape for n, o in ir.outputs(graph).items()})
    batch = info.shape[0] if isinstance(info.shape[0], int) else None
    task = plugins.load("modelmill.tasks", card.task)
    return Source(label(model), graph, card, task, name, batch)


def read_card(model: str | Path | ir.Graph, card: str | Path | Card | None) -> Card:
    """The card given, or the one beside the model."""
    if isinstance(card, Card):
        return card
    if card is not None:
        return tasks.load_card(card)
    if isinstance(model, ir.Graph):
        raise CardError("a graph needs a card; give card=")
    if not is_pytorch(model) and not Path(model).is_file():
        raise ir.ModelError(f"{model}: no such file; give the path of an ONNX or .pt2 file")
    path = tasks.default_card_path(model)
    if not path.is_file():
        raise CardError(
            f"no card: {path} does not exist. A card tells how the model is fed and read (size, "
            "colour, resize, mean, std, decoder); write one, see docs/card.md, or give --card"
        )
    return tasks.load_card(path)


def read_graph(model: str | Path | ir.Graph, card: Card) -> ir.Graph:
    """The model as a graph: an ONNX file, an exported program, or a PyTorch factory fed as the card
    says.
    """
    if isinstance(model, ir.Graph):
        return model
    return ir.from_torch(str(model), card.input.shape(1)) if is_pytorch(model) else ir.load(model)


def load_images(
    source: Source,
    data: DataSource,
    calib: DataSource | None,
    calibrate: int,
    limit: int | None,
    seed: int,
    transform: Callable[[Any], Any] | None = None,
) -> Images:
    """Open the images; without `calib` the calibration images are taken out of `data` and not
    scored.

    Raises:
        ValueError: empty, unreadable or unlabelled data, or not enough of it.
    """
    evaluation = tasks.open_data(data, source.card, transform)
    if calib is not None:
        pool = tasks.open_data(calib, source.card, transform)
        if len(pool) > calibrate:
            pool, _ = tasks.split(pool, calibrate, seed)
        note = f"calibrated on {len(pool)} images of {pool.where}"
    else:
        count = min(calibrate, len(evaluation) // 2)
        pool, evaluation = tasks.split(evaluation, count, seed)
        note = (
            f"no calibration data was given: {count} images of {evaluation.where} were used to "
            "calibrate and are "
            f"excluded from the score"
        )
    if limit is not None and limit < len(evaluation):
        kept, _ = tasks.split(evaluation, limit, seed)
        evaluation = kept
        note += f"; scored on {limit} images drawn with seed {seed} (--limit)"
    return Images(pool, evaluation, note)
