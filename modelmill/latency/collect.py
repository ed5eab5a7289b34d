"""Measure many models, one after the other, on a machine that is not ours alone.

One worker per engine loads a small reference model once and the models in turn, bound to one
processor. Blocks of the model and of the reference take turns. Two things show that somebody else
was at work, and neither looks at the model's own times, so that what is left is not made to agree:

- the reference is slower or faster in the blocks before and after than its own running median: the
  block counts only where no calmer ones are to be had;
- the worker had a processor for a smaller part of an inference than `Pace.share`: it was
  interrupted. Such an inference does not count. Where most of them are, the processor time of each
  stands in for its time, and the measurement says so: `clock` is "cpu" in its facts. This needs an
  engine that works in one thread of the worker, which the reference shows; of others no inference
  is held to have been interrupted.

If the medians of the blocks scatter too much, the round is repeated, and the calmest one counts. A
worker that crashes or hangs costs one measurement; the next one starts another worker.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self

import numpy as np

from modelmill import ir
from modelmill.latency import zoo
from modelmill.latency.measure import Effort, Latency
from modelmill.runtimes import (
    DeploymentError,
    ExecutedOp,
    RemoteSession,
    SessionOptions,
    Worker,
)

RECYCLE = 100  # models after which a worker is started anew: engines may leak
REMEMBERED = 400  # blocks of the reference that its level is taken of
FIRST = 30  # blocks of the reference before the first model
HANDING_MS = 0.02  # without a processor that is no interruption: an engine wakes its own thread
# Processors that the reference keeps busy: of an engine that works in one thread of the worker, all
# of one where it is not interrupted.
ALL_BUSY, MORE_THAN_ONE = 0.9, 1.1
_LONG_MS, _SHORT_MS = 10.0, 1.0
Times = tuple[np.ndarray, np.ndarray]  # of one series: ms, and ms that it had a processor
Series = tuple[RemoteSession, int, int]  # session, unmeasured inferences, inferences
EFFORT = Effort(blocks=10, block_ms=15.0, least=1, steady=0.05, warmups=3, noise=0.05, rounds=2)


@dataclass(frozen=True)
class Pace:
    """How much measuring a model gets. `effort` as in `measure`; its round takes about
    blocks x (block_ms + reference_ms).

    reference_ms  aimed length of a block of the reference
    drift         a block is calm if the reference beside it is within this part of its level
    share         an inference counts if the worker had a processor for this part of it
    """

    effort: Effort = EFFORT
    reference_ms: float = 3.0
    drift: float = 0.1
    share: float = 0.98


PACE = Pace()


@dataclass(frozen=True)
class Timing:
    """What came of one model.

    latency       of the blocks that counted
    reference_ms  median of the reference beside them
    version       of the engine
    facts         level_ms: the running median of the reference; disturbed: blocks that were left
                  out; interrupted: the part of all inferences that was; clock: "wall" or "cpu"
    ops           the engine's kernels with their times, from inferences of their own; () where it
                  could not be asked
    """

    latency: Latency
    reference_ms: float
    version: str
    facts: Mapping[str, object]
    ops: tuple[ExecutedOp, ...] = ()


@dataclass(frozen=True, eq=False)
class _Block:
    """Times of one block; drift: of the reference beside it, reference_ms: its median."""

    times: Times
    drift: float
    reference_ms: float


@dataclass
class Bench:
    """An engine ready to time one model after the other. Not for several threads at once."""

    runtime: str
    options: SessionOptions
    pace: Pace = PACE
    _level: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _worker: Worker | None = None
    _reference: RemoteSession | None = None
    _runs: int = 1
    _on_this_thread: bool = False
    _folder: tempfile.TemporaryDirectory[str] | None = None
    _used: int = 0

    def time(self, path: Path, feeds: Mapping[str, np.ndarray]) -> Timing:
        """Latency of the model file at `path` on the batch `feeds`.

        Raises:
            ValueError: the engine, the file or the feeds are not what they should be.
            DeploymentError: the engine refused the model, crashed or hung.
        """
        if self._used >= RECYCLE:
            self.close()
        try:
            reference = self._ready()
            assert self._worker is not None
            with self._worker.open(path, self.options) as session:
                self._used += 1
                timing = self._time(session, reference, feeds)
                return replace(timing, ops=self._ops(session))
        except DeploymentError:
            self.close()
            raise

    def _ops(self, session: RemoteSession) -> tuple[ExecutedOp, ...]:
        """Its kernels; an engine that cannot tell them has still been timed."""
        try:
            return tuple(session.executed())
        except DeploymentError:
            self.close()
            return ()

    def close(self) -> None:
        """End the worker; the next model starts another."""
        if self._worker is not None:
            self._worker.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._worker, self._reference, self._used = None, None, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ------------------------------------------------------------ reference

    def _ready(self) -> RemoteSession:
        """The reference in a worker that runs."""
        if self._reference is not None:
            return self._reference
        self._worker = Worker(self.runtime, self.options.timeout_s)
        graph = zoo.reference()
        self._folder = tempfile.TemporaryDirectory(prefix="modelmill-")
        path = Path(self._folder.name) / "reference.onnx"
        ir.save(graph, path)
        self._reference = self._worker.open(path, self.options)
        session = self._reference
        once = median(session.time(random_feeds(graph), 10, 20))
        self._runs = max(3, round(self.pace.reference_ms / once))
        found = self._worker.turns([(session, 1, self._runs)] * FIRST)
        wall, cpu = (np.concatenate(side) for side in zip(*found, strict=True))
        # Of the fastest, which nobody interrupted: what a hypervisor takes away counts as work.
        fastest = wall <= np.quantile(wall, 0.25)
        busy = float(np.median(cpu[fastest] / wall[fastest]))
        self._on_this_thread = self.options.threads == 1 and ALL_BUSY < busy < MORE_THAN_ONE
        self._level.extend(self._middle(*series) for series in found)
        return session

    def _middle(self, wall_ms: np.ndarray, cpu_ms: np.ndarray) -> float:
        """Median of the inferences that count."""
        return float(np.median(np.concatenate(self._samples([(wall_ms, cpu_ms)])[0])))

    # ------------------------------------------------------------ model

    def _time(
        self, session: RemoteSession, reference: RemoteSession, feeds: Mapping[str, np.ndarray]
    ) -> Timing:
        effort = self.pace.effort
        size, settle, done = self._warm_up(session, feeds)
        turn = (session, settle, size), (reference, 1, self._runs)
        best: list[_Block] = []
        noise, rounds = inf, 0
        found: list[_Block] = []
        while rounds < effort.rounds and noise > effort.noise:
            rounds += 1
            blocks = self._round(turn)
            found += blocks
            limit = sorted(b.drift for b in blocks)[effort.blocks - 1]
            calm = [b for b in blocks if b.drift <= limit]
            here = Latency(self._samples([b.times for b in calm])[0], 1, 1).noise
            if here < noise:
                best, noise = calm, here
        samples, clock = self._samples([b.times for b in best])
        batch = next(iter(feeds.values())).shape[0] if feeds else 1
        wall, cpu = (np.concatenate(side) for side in zip(*(b.times for b in found), strict=True))
        interrupted = float(np.mean(~self._whole(wall, cpu))) if self._on_this_thread else 0.0
        facts = {
            "level_ms": median(self._level),
            "disturbed": sum(b.drift > self.pace.drift for b in found),
            "interrupted": interrupted,
            "clock": clock,
        }
        latency = Latency(samples, self.options.threads, batch, done, rounds)
        return Timing(latency, median(b.reference_ms for b in best), session.version, facts)

    def _warm_up(
        self, session: RemoteSession, feeds: Mapping[str, np.ndarray]
    ) -> tuple[int, int, int]:
        """(inferences per block, unmeasured ones before each, inferences run so far)"""
        assert self._worker is not None
        effort = self.pace.effort
        once = min(session.time(feeds, 1, 2))
        size, done = 1, 3
        for _ in range(effort.warmups):
            size = max(effort.least, round(effort.block_ms / once))
            before, once = once, self._middle(*self._worker.turns([(session, 0, size)])[0])
            done += size
            if abs(once - before) < effort.steady * before:
                break
        size = max(effort.least, round(effort.block_ms / once))
        return size, 0 if once > _LONG_MS else 1 if once > _SHORT_MS else 3, done

    def _round(self, turn: tuple[Series, Series]) -> list[_Block]:
        """As many calm blocks as are wanted, with the others between them; after twice as many the
        calm ones may be fewer.
        """
        assert self._worker is not None
        wanted, level = self.pace.effort.blocks, median(self._level)
        before = self._level[-1]
        blocks: list[_Block] = []
        while len(blocks) < 2 * wanted:
            missing = wanted - sum(b.drift <= self.pace.drift for b in blocks)
            if missing <= 0:
                break
            found = self._worker.turns(turn * min(missing, 2 * wanted - len(blocks)))
            for times, beside in zip(found[::2], found[1::2], strict=True):
                after = self._middle(*beside)
                self._level.append(after)
                drift = max(abs(before / level - 1), abs(after / level - 1))
                blocks.append(_Block(times, drift, (before + after) / 2))
                before = after
        return blocks

    def _whole(self, wall_ms: np.ndarray, cpu_ms: np.ndarray) -> np.ndarray:
        """Which inferences were not interrupted; handing work to a thread takes a moment."""
        missing = wall_ms - cpu_ms
        return np.asarray(missing <= np.maximum((1 - self.pace.share) * wall_ms, HANDING_MS))

    def _samples(self, blocks: Sequence[Times]) -> tuple[tuple[tuple[float, ...], ...], str]:
        """The times that count, block by block, and which clock they are of."""
        if not self._on_this_thread:
            return tuple(tuple(wall.tolist()) for wall, _ in blocks), "wall"
        whole = [self._whole(wall, cpu) for wall, cpu in blocks]
        if sum(int(w.sum()) for w in whole) * 2 < sum(w.size for w in whole):
            return tuple(tuple(cpu.tolist()) for _, cpu in blocks), "cpu"
        pairs = zip(blocks, whole, strict=True)
        return tuple(tuple(wall[w].tolist()) for (wall, _), w in pairs if w.any()), "wall"


def random_feeds(graph: ir.Graph, batch: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """One batch of normal random numbers for a graph; zeros where it takes whole numbers.

    Raises:
        ValueError: a dimension other than the batch is open.
    """
    random = np.random.default_rng(seed)
    feeds = {}
    for info in ir.inputs(graph).values():
        first, *rest = info.shape or (batch,)
        shape = [first if isinstance(first, int) else batch, *rest]
        if not all(isinstance(d, int) for d in shape):
            raise ValueError(
                f"input {info.name!r} has the open shape {info.shape}: its latency depends on the "
                "sizes; fix them at export"
            )
        drawn = random.standard_normal([int(d) for d in shape if d is not None])
        feeds[info.name] = (drawn * (info.dtype.kind == "f")).astype(info.dtype)
    return feeds


def quiet_cpu() -> tuple[int, ...]:
    """One processor to bind a worker to: the last this process may use; none where the system
    cannot bind.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    return (max(os.sched_getaffinity(0)),)
