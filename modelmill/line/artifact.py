"""A model file on its way to an engine: its card, its task, its engine. Nothing is run here.

An artifact of a build has no card beside it; the build's manifest holds the one it was made with.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from modelmill import ir, tasks
from modelmill.line.inspect import Model
from modelmill.line.source import Source, read_card, read_graph, with_card
from modelmill.runtimes import find_platform, load_runtime
from modelmill.runtimes.doctor import is_between
from modelmill.targets import load_target
from modelmill.tasks import Card, Dataset


def find_card(model: Model, card: str | Path | Card | None) -> Card:
    """The card given, else the one beside the model, else that of the build the model came from.

    Raises:
        CardError: there is none, or it is malformed.
    """
    if card is not None or isinstance(model, ir.Graph) or tasks.default_card_path(model).is_file():
        return read_card(model, card)
    try:
        manifest = json.loads((Path(model).parent.parent / "manifest.json").read_bytes())
        held = manifest["inputs"]["card"]
    except (OSError, ValueError, KeyError, TypeError):
        return read_card(model, None)
    return tasks.card_from_json(held)


def load_artifact(model: Model, card: str | Path | Card | None = None) -> Source:
    """A model with its card, checked against each other; the executor need not know its operators.

    Raises:
        ValueError: no such model or card, or a card that contradicts the graph.
    """
    found = find_card(model, card)
    return with_card(model, read_graph(model, found), found)


def engine_of(target: str | None, runtime: str | None) -> str:
    """The engine that a target runs on, or `runtime` itself, after a look whether it is installed.

    Raises:
        ValueError: none or both are given, or no such target or engine (lists the choices).
        EngineMissing: not installed; the text holds the pip line.
    """
    if (target is None) == (runtime is None):
        raise ValueError(
            "say where to run it: a target (-t ort_cpu) or an engine (--runtime onnxruntime)"
        )
    name = load_target(target).runtime if target is not None else str(runtime)
    if name is None:
        raise ValueError(
            f"no engine here runs the target {target}: it is simulated, in 'modelmill build' alone"
        )
    check_engine(name, "this needs")
    return name


def check_engine(name: str, who: str) -> None:
    """Whether an engine is installed, in a version that its adapter was made for.

    Raises:
        ValueError: no such engine, another version, or two environments claim the platform.
        EngineMissing: not installed; the text holds the line that installs it.
    """
    platform = find_platform(name)
    runtime = load_runtime(platform.runtime)
    low, high = runtime.supported
    if platform.version and not is_between(platform.version, low, high):
        raise ValueError(
            f"{who} {name} in a version >={low},<{high}; {platform.version} is installed in "
            f"{platform.folder or 'this environment'}. Next: {runtime.pip}"
        )


def engines_of(targets: str | Sequence[str], runtimes: str | Sequence[str]) -> list[str]:
    """The engines of targets, then those named themselves; see `engine_of`."""
    named = [(targets,) if isinstance(targets, str) else targets]
    named += [(runtimes,) if isinstance(runtimes, str) else runtimes]
    return [engine_of(t, None) for t in named[0]] + [engine_of(None, r) for r in named[1]]


@contextmanager
def engine_file(model: Model, graph: ir.Graph) -> Iterator[Path]:
    """The ONNX file for an engine: the model itself, or a temporary one for what is no file."""
    if not isinstance(model, ir.Graph) and Path(model).suffix == ".onnx":
        yield Path(model)
        return
    with tempfile.TemporaryDirectory(prefix="modelmill-") as folder:
        path = Path(folder) / "model.onnx"
        ir.save(graph, path)
        yield path


def limited(dataset: Dataset, limit: int | None, seed: int) -> Dataset:
    """`limit` images drawn by `seed`, the same that a build with this limit scores; None: all.

    Raises:
        ValueError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit must be at least 1, not {limit}")
    return (
        dataset if limit is None or limit >= len(dataset) else tasks.split(dataset, limit, seed)[0]
    )
