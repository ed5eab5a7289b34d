"""Counts of measurements by platform that stay exact and cost nothing: each look reads what is new.

Measurements are only ever added, with rising ids, so a count is the one before plus the rows above
the last id. Latencies and noise are kept as counts in bins of equal ratio; a quantile read off them
is right to the width of a bin (6 % of the value), and the pages say "about".
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modelmill.records.database import Database
from modelmill.web.reader import reading

PER_DECADE = 40  # bins; 10^(1/40) = 1.06
MS = 10.0 ** (
    np.arange(-4 * PER_DECADE, 6 * PER_DECADE + 1) / PER_DECADE
)  # edges, 0.1 us to 17 min
NOISE = 10.0 ** (np.arange(-5 * PER_DECADE, 1 * PER_DECADE + 1) / PER_DECADE)
CHUNK = 50_000  # rows read at once
MOST_BINS = 80  # that a histogram on a page has


@dataclass
class Counts:
    """Of one platform: how many measurements, and how many in each bin of p50 and of noise."""

    n: int = 0
    p50: np.ndarray = field(default_factory=lambda: np.zeros(len(MS) - 1, np.int64))
    noise: np.ndarray = field(default_factory=lambda: np.zeros(len(NOISE) - 1, np.int64))

    @property
    def median_ms(self) -> float | None:
        """About the median of the medians."""
        return _quantile(MS, self.p50, 0.5)

    def noise_at(self, share: float) -> float | None:
        """About the noise that this share of the measurements does not exceed."""
        return _quantile(NOISE, self.noise, share)


class Tally:
    """Counts of a database, by key of the platform."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._last = 0
        self._counts: dict[str, Counts] = {}

    def look(self) -> dict[str, Counts]:
        """The counts now.

        Raises:
            UnreadableError: the database cannot be read.
        """
        import sqlalchemy as sa

        fact = self._database.tables["modelmill_measurements"]
        columns = (fact.c.platform, fact.c.id, fact.c.p50_ms, fact.c.noise)
        with self._lock, reading(self._database) as connection:
            newest = connection.execute(sa.select(sa.func.max(fact.c.id))).scalar() or 0
            if newest < self._last:  # rows were taken away, or it is another file
                self._last, self._counts = 0, {}
            if newest == self._last:
                return self._counts
            new = sa.select(*columns)
            if self._last:  # the first time all rows are read off an index, without their samples
                new = new.where(fact.c.id > self._last)
            # Pages that are being made may hold the old counts: these are not written into.
            counts = {k: Counts(c.n, c.p50.copy(), c.noise.copy()) for k, c in self._counts.items()}
            for rows in connection.execute(new).partitions(CHUNK):
                newest = max(newest, _add(counts, rows))
            self._last, self._counts = newest, counts
            return counts


def _add(counts: dict[str, Counts], rows: Sequence[Sequence[Any]]) -> int:
    """Count rows of (platform, id, p50, noise); the largest id."""
    keys, ids, p50, noise = (np.array(column) for column in zip(*rows, strict=True))
    for key in set(keys.tolist()):
        here = keys == key
        held = counts.setdefault(key, Counts())
        held.n += int(here.sum())
        # What lies outside is counted at the edge.
        held.p50 += np.histogram(np.clip(p50[here], MS[0], MS[-1]), MS)[0]
        held.noise += np.histogram(np.clip(noise[here], NOISE[0], NOISE[-1]), NOISE)[0]
    return int(ids.max())


def _quantile(edges: np.ndarray, counts: np.ndarray, share: float) -> float | None:
    total = int(counts.sum())
    if not total:
        return None
    i = int(np.searchsorted(np.cumsum(counts), share * total))
    return float(np.sqrt(edges[i] * edges[i + 1]))


def histogram(edges: np.ndarray, counts: np.ndarray) -> dict[str, list[float] | list[int]]:
    """The bins that hold anything, joined until few enough are left: {edges, counts}.

    At most MOST_BINS, and fewer where there is little to count.
    """
    there = np.flatnonzero(counts)
    if not there.size:
        return {"edges": [], "counts": []}
    low, high = int(there[0]), int(there[-1]) + 1
    most = min(MOST_BINS, max(10, round(2 * math.sqrt(counts.sum()))))
    wide = -(-(high - low) // most)
    starts = np.arange(low, high, wide)
    joined = np.add.reduceat(counts[:high], starts)
    ends = [*edges[starts].tolist(), float(edges[high])]
    return {"edges": [float(f"{e:.4g}") for e in ends], "counts": [int(c) for c in joined]}
