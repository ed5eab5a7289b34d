"""Latency of sessions measured side by side: a machine drifts, so they take turns.

Each session is warmed up until two successive blocks agree. Then every session runs one block, then
every session the next, in turns of alternating order (A B, B A, ...), so that a slow drift of clock
or load meets all of them alike. A block is a series of single inferences, timed inside the worker
around the engine's call alone, after a few unmeasured calls that bring the model back into the
caches. If the medians of the blocks scatter too much, something else ran: the round is repeated, a
bounded number of times, and the calmest round counts. All its samples are kept.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from modelmill.runtimes.protocol import SessionOptions

_SETTLE = 3  # unmeasured calls before each block


@dataclass(frozen=True)
class Effort:
    """How much measuring is done. The time of one round is about sessions x blocks x block_ms.

    blocks     blocks per session; their scatter is what a comparison is judged by
    block_ms   aimed length of a block; it has at least `least` inferences
    steady     warm-up ends when the medians of two successive blocks differ by less than this part
    warmups    blocks of warm-up at most
    noise      a round whose noise (see `Latency.noise`) is below this is accepted at once
    rounds     rounds at most
    """

    blocks: int = 20
    block_ms: float = 50.0
    least: int = 3
    steady: float = 0.02
    warmups: int = 10
    noise: float = 0.05
    rounds: int = 3

    def __post_init__(self) -> None:
        if self.blocks < 2 or self.least < 1 or self.warmups < 1 or self.rounds < 1:
            raise ValueError(f"too little effort to measure anything: {self}")


@dataclass(frozen=True)
class Latency:
    """Raw times of one session in milliseconds, one tuple per block, in the order measured.

    threads, batch   of the session that was measured; a time is that of a whole batch
    warmup           inferences before the first block
    rounds           rounds measured until one was calm enough, or the limit was reached
    slower           how much slower than at its calmest a reference beside it was, as a part
    """

    samples_ms: tuple[tuple[float, ...], ...]
    threads: int
    batch: int
    warmup: int = 0
    rounds: int = 1
    slower: float = 0.0

    @property
    def n(self) -> int:
        return sum(len(block) for block in self.samples_ms)

    @property
    def p50_ms(self) -> float:
        return self._percentile(50)

    @property
    def p90_ms(self) -> float:
        return self._percentile(90)

    @property
    def p99_ms(self) -> float:
        return self._percentile(99)

    @property
    def noise(self) -> float:
        """Interquartile range of the medians of the blocks, as a part of their median, and `slower`
        on top: blocks that were all disturbed alike agree.
        """
        low, middle, high = np.percentile([np.median(b) for b in self.samples_ms], (25, 50, 75))
        return float((high - low) / middle) + self.slower

    @property
    def calm_ms(self) -> float:
        """What an inference takes that nobody disturbs: of all the quickest one in fifty."""
        return self._percentile(2)

    def _percentile(self, q: float) -> float:
        return float(np.percentile(np.concatenate(self.samples_ms), q))


class Timed(Protocol):
    """What can be measured: a `RemoteSession`, or something that stands before one."""

    @property
    def options(self) -> SessionOptions: ...

    def time(self, feeds: Mapping[str, np.ndarray], warmup: int, n: int) -> list[float]:
        """Milliseconds of `n` inferences after `warmup` others."""


def measure(
    sessions: Mapping[str, Timed],
    feeds: Mapping[str, np.ndarray],
    effort: Effort = Effort(),
) -> dict[str, Latency]:
    """Latency of each session on the same batch {input name: array}.

    Raises:
        ValueError: no session, or `feeds` do not fit one of them.
        DeploymentError: an engine failed.
    """
    if not sessions:
        raise ValueError("no session to measure")
    sizes, warmups = {}, {}
    for name, session in sessions.items():
        sizes[name], warmups[name] = _warm_up(session, feeds, effort)
    best: dict[str, tuple[tuple[float, ...], ...]] = {}
    calmest = math.inf
    rounds = 0
    while rounds < effort.rounds and calmest > effort.noise:
        rounds += 1
        samples = _one_round(sessions, feeds, sizes, effort.blocks)
        noise = max(Latency(s, 1, 1).noise for s in samples.values())
        if noise < calmest:
            best, calmest = samples, noise
    batch = _batch(feeds)
    return {
        name: Latency(best[name], session.options.threads, batch, warmups[name], rounds)
        for name, session in sessions.items()
    }


def _warm_up(session: Timed, feeds: Mapping[str, np.ndarray], effort: Effort) -> tuple[int, int]:
    """(inferences per block, inferences run so far)"""
    first = session.time(feeds, 1, effort.least)
    done = 1 + effort.least
    median = float(np.median(first))
    size = effort.least
    for _ in range(effort.warmups):
        size = max(effort.least, round(effort.block_ms / median))
        before = median
        median = float(np.median(session.time(feeds, 0, size)))
        done += size
        if abs(median - before) < effort.steady * before:
            break
    return size, done


def _one_round(
    sessions: Mapping[str, Timed],
    feeds: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    blocks: int,
) -> dict[str, tuple[tuple[float, ...], ...]]:
    samples: dict[str, list[tuple[float, ...]]] = {name: [] for name in sessions}
    for block in range(blocks):
        for name in list(sessions) if block % 2 == 0 else reversed(list(sessions)):
            samples[name].append(tuple(sessions[name].time(feeds, _SETTLE, sizes[name])))
    return {name: tuple(blocks) for name, blocks in samples.items()}


def _batch(feeds: Mapping[str, np.ndarray]) -> int:
    shape = next(iter(feeds.values())).shape if feeds else ()
    return shape[0] if shape else 1
