"""The labour of an audit: pipelines over chunks of pictures, by this process or by several.

A chunk is the unit: what it gave is kept on disk, so a stopped audit goes on from there. Chunks and
batches are the same however many processes share them, so the numbers are, too.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from modelmill import plugins, tasks
from modelmill.audit import Answers, Network, Parting, Pipeline, Sweep
from modelmill.line.artifact import limited
from modelmill.line.show import Show
from modelmill.line.source import DataSource
from modelmill.line.store import Json, Store
from modelmill.tasks import Card, Dataset

CHUNK, MEMORY = 16, 2**27  # most pictures at one time, and bytes that they may have in full size


@dataclass(frozen=True)
class Work:
    """Everything a process needs to begin; picklable if `data` is a path."""

    data: DataSource
    card: Card
    limit: int | None
    seed: int
    network: Network
    folder: Path
    input_name: str
    batch: int
    whole: bool
    timeout_s: float
    transform: Callable[[Any], Any] | None = None

    def dataset(self) -> Dataset:
        """The pictures."""
        return limited(tasks.open_data(self.data, self.card, self.transform), self.limit, self.seed)

    def sweep(self) -> Sweep:
        """Opens nothing yet but the data."""
        task = plugins.load("modelmill.tasks", self.card.task)
        return Sweep(
            self.dataset(), task, self.card, self.network, self.folder, self.input_name,
            self.batch, self.whole, self.timeout_s,
        )  # fmt: skip


_sweep: Sweep | None = None  # of a process that works for another


def _begin(work: Work) -> None:
    """In a new process: Ctrl-C is for the first one alone."""
    global _sweep
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _one_thread()
    _sweep = work.sweep()


def _asked(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(_sweep, *arguments)


def _one_thread() -> None:
    """Torch and OpenCV with one thread: sums do not depend on the number of cores."""
    import torch

    torch.set_num_threads(1)
    with suppress(ImportError):
        import cv2

        cv2.setNumThreads(1)


@dataclass(eq=False)
class Crew:
    """One process or several; use it as a context."""

    work: Work
    workers: int
    stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *details: object) -> None:
        self.stack.close()

    @cached_property
    def _pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.workers, context, _begin, (self.work,))
        self.stack.callback(pool.shutdown, cancel_futures=True)
        return pool

    @cached_property
    def _own(self) -> Sweep:
        import torch

        threads = torch.get_num_threads()
        self.stack.callback(torch.set_num_threads, threads)
        _one_thread()
        return self.stack.enter_context(self.work.sweep())

    def each(
        self, function: Callable[..., Any], asked: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[int, Any]]:
        """(place in `asked`, result) of a function of a module, which gets the Sweep and each tuple
        of arguments, as they come.

        Raises:
            ValueError: what the work raised, or a process that died.
        """
        if self.workers == 1:
            for i, arguments in enumerate(asked):
                yield i, function(self._own, *arguments)
            return
        futures: dict[Future[Any], int] = {
            self._pool.submit(_asked, function, arguments): i for i, arguments in enumerate(asked)
        }
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                "a process of the audit ended early, perhaps for want of memory; what is finished "
                "is kept: the same command with --resume and --workers 1 goes on"
            ) from error
        finally:
            for future in futures:
                future.cancel()


@dataclass(eq=False)
class Bench:
    """Where pipelines are tried: the crew, what is kept of earlier runs, and who watches."""

    crew: Crew
    store: Store
    key: Json
    pictures: int
    chunk: int
    prediction: type
    show: Show

    def try_all(self, title: str, pipelines: Sequence[Pipeline]) -> list[Answers]:
        """What each pipeline says of all pictures; the first is what `change` is measured from."""
        chunks = spans(self.pictures, self.chunk)
        said = [repr(p) for p in pipelines]
        held: dict[int, list[Answers]] = {}
        entries = [self._entry(said, chunk) for chunk in chunks]
        for i, entry in enumerate(entries):
            found = self._kept(entry)
            if found is not None:
                held[i] = found
        missing = [i for i in range(len(chunks)) if i not in held]
        label = f"{title}: {len(pipelines)} pipelines"
        with self.show.step(label, self.pictures) as advance:
            done = sum(len(chunks[i]) for i in held)
            advance(done)
            asked = [(list(chunks[i]), list(pipelines)) for i in missing]
            for k, answers in self.crew.each(Sweep.answers, asked):
                i = missing[k]
                self._keep(entries[i], answers)
                again = self._kept(entries[i])  # as a resumed audit would read it
                assert again is not None
                held[i] = again
                done += len(chunks[i])
                advance(done)
        return [_joined([held[i][p] for i in range(len(chunks))]) for p in range(len(pipelines))]

    def _entry(self, said: list[str], chunk: range) -> str:
        text = json.dumps([self.key, said, chunk.start, chunk.stop])
        return f"cache/{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def _keep(self, entry: str, answers: Sequence[Answers]) -> None:
        flat = [p for a in answers for p in a.predictions if p is not None]
        facts = [
            {"held": [p is not None for p in a.predictions], "refused": a.refused,
             "change": a.change if math.isfinite(a.change) else None}
            for a in answers
        ]  # fmt: skip
        self.store.write(f"{entry}.npz", tasks.pack(flat))
        self.store.write_json(f"{entry}.json", {"answers": facts})

    def _kept(self, entry: str) -> list[Answers] | None:
        """What an earlier run, or this one, has stored; the JSON is written last."""
        if not self.store.path(f"{entry}.json").is_file():
            return None
        try:
            facts = json.loads(self.store.path(f"{entry}.json").read_bytes())["answers"]
            flat = iter(tasks.unpack(self.store.path(f"{entry}.npz").read_bytes(), self.prediction))
            return [
                Answers(
                    tuple(next(flat) if there else None for there in f["held"]),
                    tuple((int(i), why) for i, why in f["refused"]),
                    math.inf if f["change"] is None else float(f["change"]),
                )
                for f in facts
            ]
        except (OSError, ValueError, KeyError, StopIteration, RuntimeError):
            return None

    def failures(self, pipelines: Sequence[Pipeline]) -> list[str]:
        """Why each pipeline cannot run, "" where it can; on one picture."""
        found = dict(self.crew.each(Sweep.failure, [(p,) for p in pipelines]))
        return [found[i] for i in range(len(pipelines))]

    def partings(
        self, asked: Sequence[tuple[Sequence[int], str, Pipeline, Pipeline]]
    ) -> list[Parting]:
        """How far two pipelines are apart behind a stage, for each of several questions."""
        found: dict[int, Parting] = {}
        with self.show.step("compare the stages bit by bit", len(asked)) as advance:
            for i, parting in self.crew.each(Sweep.parting, asked):
                found[i] = parting
                advance(len(found))
        return [found[i] for i in range(len(asked))]


def spans(count: int, size: int) -> list[range]:
    """0 to `count` in pieces of `size`."""
    return [range(i, min(i + size, count)) for i in range(0, count, size)]


def _joined(parts: Sequence[Answers]) -> Answers:
    return Answers(
        tuple(p for part in parts for p in part.predictions),
        tuple(r for part in parts for r in part.refused),
        max(part.change for part in parts),
    )
