"""The int8 networks of an audit: the model quantized for each target by the usual recipe.

A target whose engine is here runs on it; another is simulated in its integer arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modelmill import ir, plugins, tasks
from modelmill.audit import Network, Sweep
from modelmill.line.audit_work import Crew
from modelmill.line.quantize import Where, default_recipe, prepare_graph, quantize_all
from modelmill.line.show import Show
from modelmill.line.source import DataSource
from modelmill.line.store import Json, Store, file_hash, key_of
from modelmill.runtimes import DeploymentError, probe
from modelmill.targets import load_target
from modelmill.tasks import Card, Dataset

USUAL = ("ort_cpu", "openvino_cpu", "tensorrt", "qnn")  # two engines of a PC, two families of chips
PRECISION = "w8a8"
CALIBRATION = 64  # pictures


@dataclass(frozen=True)
class Calibration:
    """Pictures to calibrate with: a path of its own, or places in the data audited."""

    data: DataSource | None
    indices: tuple[int, ...]

    def note(self, count: int) -> str:
        """Where they come from, for the report."""
        if self.data is not None:
            return f"int8 was calibrated on {len(self.indices)} pictures of {self.data}"
        return (
            f"int8 was calibrated on {len(self.indices)} of the {count} pictures that are scored, "
            "so its loss may come out too small; give others with --calib"
        )


def calibration(data: DataSource | None, dataset: Dataset, card: Card, seed: int) -> Calibration:
    """At most CALIBRATION pictures drawn by `seed`, of `data` or of those audited."""
    pool = dataset if data is None else tasks.open_data(data, card)
    order = np.random.default_rng(seed).permutation(len(pool))[:CALIBRATION]
    return Calibration(data, tuple(sorted(int(i) for i in order)))


def quantize_for(sweep: Sweep, target: str, pictures: Calibration, path: str) -> str:
    """Write the QDQ network of `target` to `path`; "" or why it cannot be."""
    pool = sweep.dataset if pictures.data is None else tasks.open_data(pictures.data, sweep.card)
    batches = tasks.batches(
        pool, pictures.indices, tasks.prepare(sweep.card), sweep.batch, sweep.input_name
    )
    graph = prepare_graph(ir.load(sweep.network.path))
    try:
        chosen = {target: load_target(target)}
        recipe = default_recipe(sweep.task.name)
        made = quantize_all(graph, chosen, Where(PRECISION), batches, recipe)
    except ValueError as error:
        return str(error).splitlines()[0]
    ir.save(made[target].to_qdq(), Path(path))
    return ""


def networks(
    targets: Sequence[str], crew: Crew, store: Store, key: Json, pictures: Calibration, show: Show
) -> tuple[list[Network], list[tuple[str, str]]]:
    """The int8 networks, and (name, why) of those that cannot be; made once per folder."""
    asked = []
    for target in targets:
        digest = key_of({**key, "target": repr(load_target(target)), "images": pictures.indices})
        asked.append((target, f"int8-{Path(target).stem}-{digest[:12]}.onnx"))
    missing = [
        (target, pictures, str(store.path(f"artifacts/.{name}")))
        for target, name in asked
        if not store.path(f"artifacts/{name}").is_file()
    ]
    refused: dict[str, str] = {}
    if missing:
        with show.step("quantize to int8", len(missing)) as advance:
            for done, (i, why) in enumerate(crew.each(quantize_for, missing), 1):
                target, _, path = missing[i]
                if why:
                    refused[target] = why
                else:  # whole files or none: a stopped audit leaves the hidden name
                    Path(path).rename(Path(path).with_name(Path(path).name[1:]))
                advance(done)
    found = [
        _network(target, store.path(f"artifacts/{name}"))
        for target, name in asked
        if target not in refused
    ]
    return found, [(f"int8-{Path(t).stem}", why) for t, why in refused.items()]


def _network(target: str, path: Path) -> Network:
    engine = load_target(target).runtime
    if engine is not None:
        try:
            probe(engine)
        except DeploymentError:
            engine = None  # not here: simulated
    simulated = None if engine is not None else target
    return Network(f"int8-{Path(target).stem}", path, file_hash(path), engine, simulated)


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """Targets by name: "usual", "all", "none", or their own names.

    Raises:
        ValueError: no such target.
    """
    words = {"usual": USUAL, "none": (), "all": tuple(plugins.names("modelmill.targets"))}
    found = [t for name in names for t in words.get(name, (name,))]
    for name in found:
        load_target(name)
    return tuple(dict.fromkeys(found))
