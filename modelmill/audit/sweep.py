"""Many pipelines over one chunk of pictures, each step done once for all that agree in it.

Pipelines are taken in the order of their decoders, so that at any time one decoder's pictures are
in memory, and beside them the inputs and outputs of the pipelines at hand. A batch always has the
same number of pictures, so the numbers do not depend on how the work was shared out.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from modelmill import ir
from modelmill.audit.decode import pillow
from modelmill.audit.pipeline import HALVES, STAGES, Network, Pipeline
from modelmill.audit.suppression import read
from modelmill.runtimes import DeploymentError, SessionOptions, Worker
from modelmill.targets import load_target
from modelmill.tasks import Card, DataError, Dataset, Task
from modelmill.tasks.card import Size
from modelmill.tasks.images import Floats, Picture, Pixels, by_opencv, grey, place, placed, scaled
from modelmill.tasks.images import resize as card_resize

Outputs = Mapping[str, np.ndarray]
Run = Callable[[Mapping[str, np.ndarray]], Outputs]


@dataclass(frozen=True, eq=False)
class Answers:
    """What a pipeline said of the pictures of a chunk, in order.

    predictions  None where the pipeline could not read the picture
    refused      picture (its place in the data) and why
    change       largest absolute difference of an output from that of the first pipeline
    """

    predictions: tuple[Any, ...]
    refused: tuple[tuple[int, str], ...] = ()
    change: float = 0.0


@dataclass(frozen=True)
class Parting:
    """How many of so many numbers differ, and by how much at most; inf: other shapes."""

    elements: int
    differing: int
    largest: float


@dataclass
class Sweep:
    """Holds networks open while chunks come; use it as a context.

    card: by which `dataset` was opened. batch: pictures of one inference; whole: it is fixed, so
    that a smaller one is filled with copies of the last picture; for an engine it always is.
    """

    dataset: Dataset
    task: Task
    card: Card
    network: Network
    folder: Path
    input_name: str
    batch: int
    whole: bool = False
    timeout_s: float = 300.0
    _workers: dict[str, Worker] = field(default_factory=dict)
    _opened_files: int = 0
    _runs: dict[Any, Run] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the engines; what is asked for again is opened again."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
        self._runs.clear()

    def answers(self, indices: Sequence[int], pipelines: Sequence[Pipeline]) -> list[Answers]:
        """What each pipeline says of the pictures at `indices`.

        Raises:
            DataError: the card's own decoder cannot read a picture.
            DeploymentError: an engine failed.
        """
        chunk = Chunk(self, tuple(indices))
        order = sorted(range(len(pipelines)), key=lambda i: (i > 0, _place_in_order(pipelines[i])))
        found = {i: chunk.answer(pipelines[i]) for i in order}
        return [found[i] for i in range(len(pipelines))]

    def truths(self, indices: Sequence[int]) -> list[Any]:
        """The truth of each picture; None without labels."""
        return [self.dataset.read(i)[1] for i in indices]

    def failure(self, pipeline: Pipeline) -> str:
        """Why a pipeline cannot run, found out on the first picture; "" if it can."""
        try:
            self.answers([0], [pipeline])
        except DataError:
            raise
        except (ValueError, DeploymentError) as error:
            if isinstance(error, DeploymentError):  # it may have taken the engine's process along
                self.close()
            return str(error).splitlines()[0]
        return ""

    def parting(
        self, indices: Sequence[int], stage: str, trained: Pipeline, device: Pipeline
    ) -> Parting:
        """How far the two are apart behind a stage, other than the last, on some pictures."""
        sides = [Chunk(self, tuple(indices)).values(stage, p) for p in (trained, device)]
        elements = differing = 0
        largest = 0.0
        for a, b in zip(*sides, strict=True):
            elements += a.size
            if a.shape != b.shape:
                differing, largest = differing + a.size, math.inf
                continue
            apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
            differing += int(np.count_nonzero(apart))
            largest = max(largest, float(apart.max(initial=0.0)))
        return Parting(elements, differing, largest)

    def run(self, pipeline: Pipeline) -> Run:
        """The function from feeds to outputs of a pipeline's network; opened at the first use."""
        key = (pipeline.precision, pipeline.rewrites)
        if key not in self._runs:
            self._runs[key] = self._opened(pipeline)
        return self._runs[key]

    def _worker(self, engine: str) -> Worker:
        """One process per engine: to start one for each network costs more than to run it."""
        if engine not in self._workers:
            self._workers[engine] = Worker(engine, self.timeout_s)
        return self._workers[engine]

    def _opened(self, pipeline: Pipeline) -> Run:
        network = pipeline.precision or self.network
        graph = ir.load(network.path)
        for step in pipeline.rewrites:
            graph = step.run(graph)
        if network.engine is None:
            return _in_executor(graph, network)
        path = network.path
        if pipeline.rewrites:  # a name of this process's own: another one writes there as well
            path = self.folder / f".rewritten-{os.getpid()}-{self._opened_files}.onnx"
            ir.save(graph, path)
        options = SessionOptions(threads=1, timeout_s=self.timeout_s, batch=self.batch)
        try:
            session = self._worker(network.engine).open(path, options)
        finally:
            if pipeline.rewrites:
                path.unlink()
        self._opened_files += 1
        return lambda feeds: session.run(dict(feeds))


def _place_in_order(pipeline: Pipeline) -> tuple[str, ...]:
    """Pipelines of one decoder, then of one input, come together."""
    return tuple(repr(part) for part in pipeline.key("precision"))


def _in_executor(graph: ir.Graph, network: Network) -> Run:
    """The executor: in float32, in a 16-bit type by torch's kernels, or in a target's integers."""
    import torch

    from modelmill import executor
    from modelmill.executor.integer import IntegerModule

    half = network.name in HALVES
    kind = getattr(torch, network.name) if half else torch.float32
    module: Any = (
        executor.Module(graph).to(kind)
        if network.target is None
        else IntegerModule(*ir.from_qdq(graph), load_target(network.target).arithmetic)
    )

    def run(feeds: Mapping[str, np.ndarray]) -> Outputs:
        with torch.inference_mode():
            given = {name: torch.from_numpy(x).to(kind) for name, x in feeds.items()}
            made = module(given).items()
            return {name: (y.float() if half else y).numpy() for name, y in made}

    return run


@dataclass(eq=False)
class Chunk:
    """The work on some pictures; what the last pipeline needed is kept for the next one."""

    sweep: Sweep
    indices: tuple[int, ...]
    kept: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    first: Outputs | None = None
    refusals: dict[Any, dict[int, str]] = field(default_factory=dict)

    @functools.cached_property
    def originals(self) -> tuple[list[Picture], list[Size]]:
        """Pictures as the card reads them, and their sizes; read with their truth's checks."""
        samples = [self.sweep.dataset.sample(i) for i in self.indices]
        return [s.image for s in samples], [s.size for s in samples]

    def answer(self, pipeline: Pipeline) -> Answers:
        """What a pipeline says of these pictures."""
        outputs = self._outputs(pipeline)
        if self.first is None:
            self.first = outputs
        refused = self._refused(pipeline)
        sizes = self.originals[1]
        predictions: list[Any] = list(self._read(pipeline, outputs, sizes))
        held = np.array([i not in refused for i in range(len(self.indices))])
        for i in refused:
            predictions[i] = None
        change = max(
            (float(np.nanmax(np.abs(y[held] - self.first[k][held]), initial=0.0))
             for k, y in outputs.items()), default=0.0,
        )  # fmt: skip
        named = tuple((self.indices[i], why) for i, why in sorted(refused.items()))
        return Answers(tuple(predictions), named, change)

    def _read(self, pipeline: Pipeline, outputs: Outputs, sizes: Sequence[Size]) -> Iterable[Any]:
        if pipeline.reading is None:
            return self.sweep.task.decode(outputs, pipeline.card, sizes)
        return read(pipeline.reading, self.sweep.task, outputs, pipeline.card, sizes)

    def _once(self, stage: str, pipeline: Pipeline, compute: Callable[[], Any]) -> Any:
        """The result of a stage, kept until a pipeline needs another one."""
        key = pipeline.key(stage)
        held = self.kept.get(stage)
        if held is None or held[0] != key:
            self.kept.pop(stage, None)  # let go of the old one before the new one is made
            held = self.kept[stage] = (key, compute())
        return held[1]

    def _refused(self, pipeline: Pipeline) -> dict[int, str]:
        return self.refusals.get(pipeline.key("decode"), {})

    def pictures(self, pipeline: Pipeline) -> list[Picture]:
        """Decoded pictures; where the decoder refuses one, the card's stands in its place."""
        return self._once("decode", pipeline, lambda: self._decoded(pipeline))  # type: ignore[no-any-return]

    def _decoded(self, pipeline: Pipeline) -> list[Picture]:
        data, spec = self.sweep.dataset, pipeline.card.input
        originals = self.originals[0]
        same = pipeline.decode is None and spec.exif == self.sweep.card.input.exif
        if same or data.encoded is None:
            return originals
        found, refused = [], {}
        decoder = pillow if pipeline.decode is None else pipeline.decode.run
        for place_in_chunk, i in enumerate(self.indices):
            try:
                found.append(decoder(data.encoded(i), data.ids[i], spec))
            except DataError as error:
                refused[place_in_chunk] = str(error)
                found.append(originals[place_in_chunk])
        self.refusals[pipeline.key("decode")] = refused
        return found

    def values(self, stage: str, pipeline: Pipeline) -> list[np.ndarray]:
        """What stands behind a stage but the last: per picture, or one array for all."""
        position = STAGES.index(stage)
        if position == 0:
            return list(self.pictures(pipeline))
        if position == 1:
            return list(self.coloured(pipeline))
        if position <= STAGES.index("crop"):
            return [self.levels(pipeline)]
        if position <= STAGES.index("scaling"):
            return [self.inputs(pipeline)]
        return list(self._outputs(pipeline).values())

    def coloured(self, pipeline: Pipeline) -> list[Picture]:
        """RGB after the colour path, or grey."""

        def compute() -> list[Picture]:
            made = self.pictures(pipeline)
            if pipeline.colour is not None:
                made = [pipeline.colour.run(picture) for picture in made]
            if pipeline.card.input.color == "GRAY":
                made = [grey(picture, by_opencv(pipeline.card.input)) for picture in made]
            return made

        return self._once("colour", pipeline, compute)  # type: ignore[no-any-return]

    def levels(self, pipeline: Pipeline) -> Pixels:
        """Levels (n, H, W, c) of the input's size."""

        def compute() -> Pixels:
            spec, made = pipeline.card.input, []
            for picture in self.coloured(pipeline):
                fitted = _fit(pipeline, spec, picture)
                made.append(fitted if fitted.ndim == 3 else fitted[:, :, None])
            return np.stack(made)

        return self._once("crop", pipeline, compute)  # type: ignore[no-any-return]

    def inputs(self, pipeline: Pipeline) -> Floats:
        """What the network is fed with."""

        def compute() -> Floats:
            feed = scaled if pipeline.feed is None else pipeline.feed.run
            made: Floats = feed(self.levels(pipeline), pipeline.card.input)
            return made

        return self._once("scaling", pipeline, compute)  # type: ignore[no-any-return]

    def _outputs(self, pipeline: Pipeline) -> Outputs:
        def compute() -> Outputs:
            run, x, n = self.sweep.run(pipeline), self.inputs(pipeline), self.sweep.batch
            network = pipeline.precision or self.sweep.network
            whole = self.sweep.whole or network.engine is not None
            found: list[Outputs] = []
            for start in range(0, len(x), n):
                part = x[start : start + n]
                short = n - len(part)
                if short and whole:
                    copies = np.repeat(part[-1:], short, axis=0)
                    made = run({self.sweep.input_name: np.concatenate([part, copies])})
                else:
                    made = run({self.sweep.input_name: part})
                found.append({k: y[: len(part)] for k, y in made.items()})
            return {k: np.concatenate([f[k] for f in found]) for k in found[0]}

        return self._once("precision", pipeline, compute)  # type: ignore[no-any-return]


def _fit(pipeline: Pipeline, spec: Any, picture: Picture) -> Pixels:
    """One picture resized and cropped or bordered."""
    if spec.resize is None:
        return picture
    size = (picture.shape[0], picture.shape[1])
    lies = (place if pipeline.place is None else pipeline.place.run)(spec, size)
    if pipeline.resize is None:
        return placed(card_resize(picture, lies.resized, spec.resize.method), lies, spec)
    return placed(pipeline.resize.run(picture, lies.resized), lies, spec)
