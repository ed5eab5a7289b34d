"""The labour of an audit: pipelines over chunks of pictures, by this process or by several.

A chunk is the unit: what it gave is kept on disk, so a stopped audit goes on from there. Chunks and
batches are the same however many processes share them, so the numbers are, too.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from modelmill import plugins, tasks
from modelmill.audit import Answers, Network, Pipeline, Sweep
from modelmill.audit.sweep import Parting
from modelmill.line.artifact import limited
from modelmill.line.show import Show
from modelmill.line.source import DataSource
from modelmill.line.store import Json, Store
from modelmill.tasks import Card, Dataset

CHUNK = 16  # pictures; their bytes in full size lie in memory at one time


@dataclass(frozen=True)
class Work:
    """Everything a process needs to begin; picklable if `data` is a path."""

    data: DataSource
    card: Card
    limit: int | None
    seed: int
    networks: Mapping[str, Network]
    folder: Path
    input_name: str
    batch: int
    timeout_s: float
    transform: Callable[[Any], Any] | None = None

    def dataset(self) -> Dataset:
        """The pictures."""
        return limited(tasks.open_data(self.data, self.card, self.transform), self.limit, self.seed)

    def sweep(self) -> Sweep:
        """Opens nothing yet but the data."""
        task = plugins.load("modelmill.tasks", self.card.task)
        return Sweep(
            self.dataset(), task, self.card, self.networks, self.folder, self.input_name,
            self.batch, self.timeout_s,
        )  # fmt: skip


_sweep: Sweep | None = None  # of a process that works for another


def _begin(work: Work) -> None:
    """In a new process: Ctrl-C is for the first one alone."""
    global _sweep  # noqa: PLW0603 (a process pool has no other place)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with _one_thread_for_good():
        _sweep = work.sweep()


def _asked(what: str, arguments: tuple[Any, ...]) -> Any:
    assert _sweep is not None
    return getattr(_sweep, what)(*arguments)


@contextmanager
def _one_thread_for_good() -> Iterator[None]:
    """torch and OpenCV with one thread: sums do not depend on the number of cores."""
    import torch

    torch.set_num_threads(1)
    yield
    try:
        import cv2
    except ImportError:
        return
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
        torch.set_num_threads(1)
        return self.stack.enter_context(self.work.sweep())

    def each(self, what: str, asked: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """(place in `asked`, result) of a method of Sweep for each tuple of arguments, as they
        come.

        Raises:
            ValueError: what the work raised, or a process that died.
        """
        if self.workers == 1:
            for i, arguments in enumerate(asked):
                yield i, getattr(self._own, what)(*arguments)
            return
        futures: dict[Future[Any], int] = {
            self._pool.submit(_asked, what, arguments): i for i, arguments in enumerate(asked)
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
    prediction: type
    show: Show

    def try_all(self, title: str, pipelines: Sequence[Pipeline]) -> list[Answers]:
        """What each pipeline says of all pictures; the first is what `change` is measured from."""
        chunks = [
            range(i, min(i + CHUNK, self.pictures)) for i in range(0, self.pictures, CHUNK)
        ]
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
            for k, answers in self.crew.each("answers", asked):
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
             "change": a.change}
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
            flat = iter(
                tasks.unpack(self.store.path(f"{entry}.npz").read_bytes(), self.prediction)
            )
            return [
                Answers(
                    tuple(next(flat) if there else None for there in f["held"]),
                    tuple((int(i), why) for i, why in f["refused"]),
                    float(f["change"]),
                )
                for f in facts
            ]
        except (OSError, ValueError, KeyError, StopIteration, RuntimeError):
            return None

    def partings(
        self, asked: Sequence[tuple[Sequence[int], str, Pipeline, Pipeline]]
    ) -> list[Parting]:
        """How far two pipelines are apart behind a stage, for each of several questions."""
        found: dict[int, Parting] = {}
        with self.show.step("compare the stages bit by bit", len(asked)) as advance:
            for i, parting in self.crew.each("parting", asked):
                found[i] = parting
                advance(len(found))
        return [found[i] for i in range(len(asked))]


def _joined(parts: Sequence[Answers]) -> Answers:
    return Answers(
        tuple(p for part in parts for p in part.predictions),
        tuple(r for part in parts for r in part.refused),
        max(part.change for part in parts),
    )
