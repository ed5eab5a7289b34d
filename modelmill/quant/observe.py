"""Stream calibration data through the float model and keep, per tensor, its range and a histogram.

Memory does not grow with the number of images: a histogram has a fixed number of bins, and when a
value falls outside, the covered range doubles and neighbouring bins merge, which keeps every count
exact. Ranges see every element; histograms see a part of the elements, at a fixed odd stride, as
their shape does not need more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from modelmill import executor, ir

CEILING_DB = 200.0
BINS = 2048  # as PPQ, MQBench and torchao use for MSE; a multiple of 128, which the KL search needs
SAMPLES, SAMPLES_PER_IMAGE = 4096, 128
WAITING = 1 << 16  # samples kept per tensor before they are counted
Batches = Iterable[Mapping[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Statistics:
    """What calibration saw of one tensor.

    low, high: exact smallest and largest element. edges: [first, last] real number the histogram
    covers. counts: float64, shape (bins,), of the sampled elements other than exact zeros; zeros:
    how many of those there were.
    """

    low: float
    high: float
    edges: tuple[float, float]
    counts: np.ndarray
    zeros: float

    @property
    def centers(self) -> np.ndarray:
        """Middle of each bin, shape (bins,)."""
        first, last = self.edges
        return first + (np.arange(len(self.counts)) + 0.5) * ((last - first) / len(self.counts))


class Observer:
    """Statistics of one tensor in the making."""

    def __init__(self, bins: int = BINS) -> None:
        self.bins = bins
        self.low, self.high = np.inf, -np.inf
        self.first, self.last = 0.0, 0.0
        self.counts = np.zeros(bins)
        self.zeros = 0.0
        self.waiting: list[torch.Tensor] = []
        self.waiting_size = 0

    def update(self, x: torch.Tensor) -> None:
        """Take in a tensor of any shape.

        Raises:
            ValueError: it holds a NaN or an infinity.
        """
        if x.numel() == 0:
            return
        flat = _flat(x.detach())  # reductions are nine times as fast on one dimension
        low, high = (float(v) for v in torch.aminmax(flat))
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError("NaN or infinity")
        self.low, self.high = min(self.low, low), max(self.high, high)
        limit = max(SAMPLES, SAMPLES_PER_IMAGE * len(x)) if x.dim() else 1
        stride = -(-flat.numel() // limit) | 1  # odd, so that it does not walk along one channel
        self.waiting.append(flat[::stride].float().clone())  # the executor reuses its buffers
        self.waiting_size += len(self.waiting[-1])
        if self.waiting_size >= WAITING:
            self._count()

    def _count(self) -> None:
        """Put the waiting samples into the histogram, all at once as calls cost more than bins."""
        if not self.waiting:
            return
        sample = torch.cat(self.waiting)
        self.waiting, self.waiting_size = [], 0
        self._cover(self.low, self.high)
        if self.last == self.first:
            self.zeros += float(sample.numel())  # nothing but zeros so far
            return
        counts = torch.histc(sample, self.bins, self.first, self.last).numpy().astype(np.float64)
        zeros = float(sample.numel() - torch.count_nonzero(sample))
        if zeros:  # into the bin where histc, which rounds in its own way, has put them
            where = int(torch.histc(torch.zeros(1), self.bins, self.first, self.last).argmax())
            counts[where] -= zeros
        self.counts += counts
        self.zeros += zeros

    def _cover(self, low: float, high: float) -> None:
        """Widen the histogram, by doubling, until [low, high] and 0 are inside."""
        low, high = min(low, 0.0), max(high, 0.0)
        if self.first == self.last:
            self.first, self.last = low, high
            return
        while high > self.last:
            self.counts = np.concatenate(
                [self.counts.reshape(-1, 2).sum(1), np.zeros(self.bins // 2)]
            )
            self.last = self.first + 2 * (self.last - self.first)
        while low < self.first:
            self.counts = np.concatenate(
                [np.zeros(self.bins // 2), self.counts.reshape(-1, 2).sum(1)]
            )
            self.first = self.last - 2 * (self.last - self.first)

    def statistics(self) -> Statistics:
        """What was seen so far; an observer that saw nothing has the range 0..0."""
        self._count()
        low, high = (self.low, self.high) if self.low <= self.high else (0.0, 0.0)
        return Statistics(low, high, (self.first, self.last), self.counts.copy(), self.zeros)


def _flat(x: torch.Tensor) -> torch.Tensor:
    """All elements in memory order; no copy for the two layouts the executor produces."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1)
    return x.reshape(-1)


def decibels(signal: float, noise: float) -> float:
    """SQNR in dB of two energies, `CEILING_DB` where nothing was lost or there is nothing."""
    if noise <= 0 or signal <= 0:
        return CEILING_DB
    return min(10 * math.log10(signal / noise), CEILING_DB)


def take(graph: ir.Graph, batches: Batches, images: int) -> Iterator[Mapping[str, np.ndarray]]:
    """The first `images` images; the last batch is cut short unless the graph has a fixed batch."""
    dynamic, left = ir.is_batch_dynamic(graph), images
    for feeds in batches:
        size = len(next(iter(feeds.values())))
        yield {name: x[:left] for name, x in feeds.items()} if dynamic else feeds
        left -= size
        if left <= 0:
            return


def merge(statistics: Sequence[Statistics]) -> Statistics:
    """The statistics of several tensors taken together, as one encoding for all of them needs.

    Counts are moved to the bins of the widest range by their centres, which is off by less than one
    of its bins.
    """
    if len(statistics) == 1:
        return statistics[0]
    first = min(s.edges[0] for s in statistics)
    last = max(s.edges[1] for s in statistics)
    counts = np.zeros(len(statistics[0].counts))
    for s in statistics:
        if last > first:
            counts += np.histogram(s.centers, len(counts), (first, last), weights=s.counts)[0]
    return Statistics(
        min(s.low for s in statistics),
        max(s.high for s in statistics),
        (first, last),
        counts,
        sum(s.zeros for s in statistics),
    )


def observe(
    graph: ir.Graph,
    names: Sequence[str],
    batches: Batches,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Statistics]:
    """Run `batches` through the float graph and gather the statistics of the named values.

    Peak memory: the model, one batch of activations that are alive at once, and 300 KiB per name.

    Raises:
        ValueError: no batch, or a value becomes NaN or infinite (named).
    """
    observers = {name: Observer() for name in names}
    module = executor.Module(graph)

    def visit(name: str, x: torch.Tensor) -> None:
        try:
            observers[name].update(x)
        except ValueError as error:
            raise ValueError(
                f"value {name!r} holds {error} on calibration data; the model overflows, or the "
                "card's scale, mean or "
                "std is wrong. Check the card, then run 'modelmill inspect MODEL'."
            ) from error

    images = 0
    with torch.inference_mode():
        for feeds in batches:
            module.visit(feeds, observers, visit)
            images += len(next(iter(feeds.values())))
            progress(images)
    if not images:
        raise ValueError(
            "calibration needs at least one image, found none; check --calib and --data"
        )
    return {name: observer.statistics() for name, observer in observers.items()}
