"""Measure many models, one after the other, on a machine that is not ours alone.

One worker per engine loads a small reference model once and the models in turn, bound to one
processor. Blocks of the model and of the reference take turns. Two things show that somebody else
was at work, and neither looks at the model's own times, so that what is left is not made to agree:

- a probe, a fixed piece of work, follows each inference. It takes longer while somebody else is on
  the processor's other hardware thread or in its caches, on a rented machine most of the time and
  a few milliseconds at a time. An inference counts if its probe is near the quickest of this model,
  and no block begins before the probe after the reference is near the quickest ever seen there;
- the worker had a processor for a smaller part of an inference than `Pace.share`: it was
  interrupted. Such an inference does not count. Where most of them are, the processor time of each
  stands in for its time, and the measurement says so: `clock` is "cpu" in its facts. This needs an
  engine that works in one thread of the worker, which the reference shows; of others no inference
  is held to have been interrupted.

Blocks go on until enough inferences count, or patience ends; then the calmest count. By how much
the reference beside them was slower than at its calmest is part of the noise. A worker that crashes
or hangs costs one measurement; the next one starts another worker.
"""

from __future__ import annotations

import os
import tempfile
import time
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
    Series,
    SessionOptions,
    Worker,
)

RECYCLE = 100  # models after which a worker is started anew: engines may leak
REMEMBERED = 4000  # inferences of the reference that its calmest state is taken of
FIRST = 30  # blocks of the reference before the first model
CALMEST = 0.02  # quantile that stands for the calmest state: single ones may be luck
FEWEST = 5  # inferences that count, however disturbed they were
HANDING_MS = 0.02  # without a processor that is no interruption: an engine wakes its own thread
# Processors that the reference keeps busy: of an engine that works in one thread of the worker, all
# of one where it is not interrupted.
ALL_BUSY, MORE_THAN_ONE = 0.9, 1.1
_LONG_MS, _SHORT_MS = 10.0, 1.0
Turn = tuple[RemoteSession, int, int]  # session, unmeasured inferences, inferences
EFFORT = Effort(blocks=10, block_ms=12.0, least=1, steady=0.05, warmups=3, rounds=4)


@dataclass(frozen=True)
class Pace:
    """How much measuring a model gets.

    effort        blocks that must hold something that counts, their aimed length, and `rounds`
                  times as many blocks at most
    reference_ms  aimed length of a block of the reference
    calm          an inference counts if its probe is within this part of the quickest
    patience_s    waiting for a calm moment, at most, in all
    share         an inference counts if the worker had a processor for this part of it
    """

    effort: Effort = EFFORT
    reference_ms: float = 3.0
    calm: float = 0.06
    patience_s: float = 1.0
    share: float = 0.98


PACE = Pace()


@dataclass(frozen=True)
class Timing:
    """What came of one model.

    latency       of the inferences that counted
    reference_ms  median of the reference beside them
    version       of the engine
    facts         calmest_ms: the reference at its calmest; waited_s: for calm moments; counted:
                  the part of all inferences that counted; interrupted: the part that was; clock:
                  "wall" or "cpu"
    ops           the engine's kernels with their times, from inferences of their own; () where it
                  could not be asked
    """

    latency: Latency
    reference_ms: float
    version: str
    facts: Mapping[str, object]
    ops: tuple[ExecutedOp, ...] = ()


@dataclass
class Bench:
    """An engine ready to time one model after the other. Not for several threads at once.
    calmest_ms: of the reference, as far as it is known from before.
    """

    runtime: str
    options: SessionOptions
    pace: Pace = PACE
    calmest_ms: float = inf
    _beside: _Memory = field(default_factory=lambda: _Memory())
    _worker: Worker | None = None
    _reference: RemoteSession | None = None
    _runs: int = 1
    _on_this_thread: bool = False
    _folder: tempfile.TemporaryDirectory[str] | None = None
    _used: int = 0

    def __post_init__(self) -> None:
        self._beside.wall_ms = self.calmest_ms

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
        every = _joined(found)
        # Of the fastest, which nobody interrupted: what a hypervisor takes away counts as work.
        fastest = every.wall <= np.quantile(every.wall, 0.25)
        busy = float(np.median(every.cpu[fastest] / every.wall[fastest]))
        self._on_this_thread = self.options.threads == 1 and ALL_BUSY < busy < MORE_THAN_ONE
        self._beside.add(found)
        return session

    # ------------------------------------------------------------ model

    def _time(
        self, session: RemoteSession, reference: RemoteSession, feeds: Mapping[str, np.ndarray]
    ) -> Timing:
        size, settle, done = self._warm_up(session, feeds)
        beside = (reference, 1, self._runs)
        blocks, around, waited_s = self._blocks((session, settle, size), beside)
        counts = self._counting(blocks)
        every = _joined(blocks)
        clock = "cpu" if self._mostly_interrupted(every) else "wall"
        pairs = zip(blocks, counts, strict=True)
        samples = tuple(tuple(getattr(b, clock)[c].tolist()) for b, c in pairs if c.any())
        calmest_ms = self._beside.wall_ms
        reference_ms = self._reference_ms(around)
        facts = {
            "calmest_ms": calmest_ms,
            "waited_s": round(waited_s, 3),
            "counted": float(np.mean(np.concatenate(counts))),
            "interrupted": float(np.mean(~self._whole(every))),
            "clock": clock,
        }
        rounds = -(-len(blocks) // self.pace.effort.blocks)
        batch = next(iter(feeds.values())).shape[0] if feeds else 1
        slower = max(reference_ms / calmest_ms - 1, 0.0)
        latency = Latency(samples, self.options.threads, batch, done, rounds, slower)
        return Timing(latency, reference_ms, session.version, facts)

    def _blocks(self, turn: Turn, beside: Turn) -> tuple[list[Series], list[Series], float]:
        """Blocks of a model until enough of them hold inferences that count, blocks of the
        reference around them, and seconds waited for calm moments.
        """
        assert self._worker is not None
        effort = self.pace.effort
        blocks: list[Series] = []
        around = self._worker.turns([beside])
        waited_s = 0.0
        while len(blocks) < effort.rounds * effort.blocks:
            while not self._calm(around[-1]) and waited_s < self.pace.patience_s:
                start = time.perf_counter()
                around[-1:] = self._worker.turns([beside])
                self._beside.add(around[-1:])
                waited_s += time.perf_counter() - start
            block, after = self._worker.turns([turn, beside])
            self._beside.add([after])
            blocks.append(block)
            around.append(after)
            if sum(bool(c.any()) for c in self._counting(blocks)) >= effort.blocks:
                break
        return blocks, around, waited_s

    def _calm(self, beside: Series) -> bool:
        """Whether nobody else was there when the reference was last run."""
        return bool(beside.probe[-1] <= (1 + self.pace.calm) * self._beside.probe_ms)

    def _counting(self, blocks: Sequence[Series]) -> list[np.ndarray]:
        """Which inferences of each block count."""
        every = _joined(blocks)
        counts = self._whole(every)
        if self._mostly_interrupted(every):  # then processor times are taken
            counts[:] = True
        counts[counts] = calmest(every.probe[counts], self.pace.calm)
        return np.split(counts, np.cumsum([b.wall.size for b in blocks])[:-1])

    def _reference_ms(self, around: Sequence[Series]) -> float:
        """Median of the reference in its calmest moments among these."""
        every = _joined(around)
        return float(np.median(every.wall[calmest(every.probe, self.pace.calm)]))

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
            before, once = once, float(np.median(self._worker.turns([(session, 0, size)])[0].wall))
            done += size
            if abs(once - before) < effort.steady * before:
                break
        size = max(effort.least, round(effort.block_ms / once))
        return size, 0 if once > _LONG_MS else 1 if once > _SHORT_MS else 3, done

    def _whole(self, series: Series) -> np.ndarray:
        """Which inferences were not interrupted; handing work to a thread takes a moment."""
        if not self._on_this_thread:
            return np.ones(series.wall.size, dtype=bool)
        most = np.maximum((1 - self.pace.share) * series.wall, HANDING_MS)
        return np.asarray(series.wall - series.cpu <= most)

    def _mostly_interrupted(self, series: Series) -> bool:
        """Whether the processor time of each inference must stand in for its time."""
        return bool(2 * self._whole(series).mean() < 1)


def calmest(probe: np.ndarray, calm: float) -> np.ndarray:
    """Which of some inferences nobody disturbed, by their probes: those within the part `calm` of
    the quickest; and the `FEWEST` calmest, however disturbed they were.
    """
    limit = (1 + calm) * float(np.quantile(probe, CALMEST, method="lower"))
    enough = float(np.sort(probe)[min(FEWEST, probe.size) - 1])
    return np.asarray(probe <= max(limit, enough))


@dataclass
class _Memory:
    """The last inferences of the reference, and how they were at their calmest, ever."""

    probe: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    wall: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    probe_ms: float = inf
    wall_ms: float = inf

    def add(self, found: Sequence[Series]) -> None:
        """Remember what was measured."""
        for series in found:
            self.probe.extend(series.probe)
            self.wall.extend(series.wall)
        self.probe_ms = min(self.probe_ms, float(np.quantile(self.probe, CALMEST)))
        self.wall_ms = min(self.wall_ms, float(np.quantile(self.wall, CALMEST)))


def _joined(series: Sequence[Series]) -> Series:
    sides = ([getattr(s, side) for s in series] for side in ("wall", "cpu", "probe"))
    return Series(*(np.concatenate(side) for side in sides))


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
