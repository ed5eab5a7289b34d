"""What predictors learn from: graphs as features, and their latencies on several platforms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from modelmill.latency.features import GraphFeatures
from modelmill.latency.profile import Shares


@dataclass(frozen=True)
class Table:
    """Measured models.

    graphs     features of M models
    log_ms     (M, P) natural logarithm of the median latency in ms; nan: not measured
    platforms  names of the P columns
    names      of the models, for people; families: "" unknown; structures: keys of the database
    log_drift  (M, P) logarithm of the time that the reference model took beside a measurement, to
               its usual one on the platform; 0 where none was measured. None: all 0
    profiles   (M, P) where the time went, as of `profile.shares`; None where that is not known
    """

    graphs: tuple[GraphFeatures, ...]
    log_ms: np.ndarray
    platforms: tuple[str, ...]
    names: tuple[str, ...]
    families: tuple[str, ...]
    structures: tuple[str, ...]
    log_drift: np.ndarray | None = None
    profiles: tuple[tuple[Shares | None, ...], ...] = ()

    def __post_init__(self) -> None:
        count = len(self.graphs)
        if self.log_ms.shape != (count, len(self.platforms)):
            raise ValueError(
                f"latencies of shape {self.log_ms.shape} for {count} models on "
                f"{len(self.platforms)} platforms"
            )
        if not len(self.names) == len(self.families) == len(self.structures) == count:
            raise ValueError("names, families and structures: one of each per model")

    def __len__(self) -> int:
        return len(self.graphs)

    @property
    def drift(self) -> np.ndarray:
        """(M, P) `log_drift`, or zeros."""
        return np.zeros_like(self.log_ms) if self.log_drift is None else self.log_drift

    def calm(self, slopes: np.ndarray) -> Table:
        """The table as if the machine had always been in its usual state. slopes: (P,) by how much
        models become slower where the reference does, as powers.
        """
        return replace(self, log_ms=self.log_ms - slopes * self.drift, log_drift=None)

    def at(self, rows: Sequence[int] | np.ndarray) -> Table:
        """The table of these models, in that order."""
        return Table(
            tuple(self.graphs[i] for i in rows),
            self.log_ms[np.asarray(rows, dtype=np.int64)],
            self.platforms,
            tuple(self.names[i] for i in rows),
            tuple(self.families[i] for i in rows),
            tuple(self.structures[i] for i in rows),
            self.drift[np.asarray(rows, dtype=np.int64)],
            tuple(self.profiles[i] for i in rows) if self.profiles else (),
        )


@dataclass(frozen=True)
class Errors:
    """How far predictions are off: `mape` the mean of |predicted / measured - 1|, `within` the part
    of models that are off by at most a tenth, `n` how many; nan for none.
    """

    mape: float
    within: float
    n: int


def errors(predicted: np.ndarray, measured: np.ndarray) -> Errors:
    """Errors of logarithms of latencies, over all pairs where both are known."""
    known = np.isfinite(predicted) & np.isfinite(measured)
    if not known.any():
        return Errors(float("nan"), float("nan"), 0)
    off = np.abs(np.expm1(predicted[known] - measured[known]))
    return Errors(float(off.mean()), float((off <= 0.1).mean()), int(known.sum()))


def folds(table: Table, count: int, seed: int) -> np.ndarray:
    """(M,) number of a fold for each model, drawn evenly within each family, so that every part
    holds of everything.
    """
    random = np.random.default_rng(seed)
    members: dict[str, list[int]] = {}
    for row, family in enumerate(table.families):
        members.setdefault(family, []).append(row)
    order = [row for rows in members.values() for row in random.permutation(rows)]
    found = np.empty(len(table), dtype=np.int64)
    found[order] = np.arange(len(table)) % count
    return found
