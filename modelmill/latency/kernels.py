"""A sum over kernels whose costs are gradient-boosted trees, in the style of nn-Meter.

nn-Meter (Zhang et al., MobiSys 2021) splits a graph into the kernels that an engine fuses, measures
many of each type alone, fits a regressor per type, and adds up. Here whole models alone were
measured, so the costs are learned through their sum:

    ms(model) = sum over kernels k of exp(f(k)),     f = log of a line in macs, bytes, 1, + trees

A step of boosting on the squared error e of log ms has the gradient e * exp(f(k)) / ms for kernel
k: a tree is fitted to -e of the model that k is in, weighted by the kernel's share of it. The type
of a kernel (its head, how much tail, whether a sum) is among the features of the trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelmill.latency.features import COLUMNS, KINDS, GraphFeatures, kind
from modelmill.latency.table import Table

_RESIDUAL = COLUMNS.index("residual")
_ROUNDS, _RATE, _DEPTH = 100, 0.2, 5
_DRAWN = 8000  # kernels that a tree is fitted to


@dataclass(frozen=True)
class KernelSum:
    """lines: (3 len(KINDS), P) ms per million MACs, million bytes, and kernel, of each kind.
    trees: for each platform, what was added to the logarithm one after the other.
    """

    labels: tuple[str, ...]
    lines: np.ndarray
    trees: tuple[tuple[Any, ...], ...]

    def log_ms(self, graphs: Sequence[GraphFeatures]) -> np.ndarray:
        """(M, P) logarithms of latencies."""
        x, owner = _rows(graphs, self.labels)
        columns = []
        for rates, trees in zip(self.lines.T, self.trees, strict=True):
            f = _line(x, rates) + sum(_RATE * tree.predict(x) for tree in trees)
            columns.append(np.log(np.bincount(owner, np.exp(f), len(graphs))))
        return np.stack(columns, axis=1)


def fit_kernels(table: Table, seed: int = 0) -> KernelSum:
    """Costs of kernels on each platform, from the models measured there."""
    labels = tuple(sorted({label for graph in table.graphs for label in graph.labels}))
    lines, trees = [], []
    for log_ms in table.log_ms.T:
        known = np.flatnonzero(np.isfinite(log_ms))
        x, owner = _rows([table.graphs[i] for i in known], labels)
        rates, grown = _boost(x, owner, log_ms[known], np.random.default_rng(seed))
        lines.append(rates)
        trees.append(grown)
    return KernelSum(labels, np.stack(lines, axis=1), tuple(trees))


def _boost(
    x: np.ndarray, owner: np.ndarray, log_ms: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, tuple[Any, ...]]:
    from scipy.optimize import nnls
    from sklearn.tree import DecisionTreeRegressor

    sums = np.stack([np.bincount(owner, c, len(log_ms)) for c in _parts(x).T], axis=1)
    # Nothing is free: a kind whose costs the others explain would have the logarithm of 0.
    rates = np.maximum(nnls(sums / np.exp(log_ms)[:, None], np.ones(len(sums)))[0], 1e-5)
    f, trees = _line(x, rates), []
    for _ in range(_ROUNDS):
        costs = np.exp(f)
        total = np.bincount(owner, costs, len(log_ms))
        rows = random.permutation(len(x))[:_DRAWN]
        target = (log_ms - np.log(total))[owner[rows]]
        tree = DecisionTreeRegressor(
            max_depth=_DEPTH,
            max_features=0.3,
            min_weight_fraction_leaf=0.005,
            random_state=int(random.integers(2**31)),
        )
        tree.fit(x[rows], target, sample_weight=(costs / total[owner])[rows])
        f = f + _RATE * tree.predict(x)
        trees.append(tree)
    return rates, tuple(trees)


def _rows(graphs: Sequence[GraphFeatures], labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """A row per kernel of all graphs, and the graph each belongs to. A row begins with million MACs
    and million bytes of the kernel and the number of its kind.
    """
    place = {label: float(i) for i, label in enumerate(labels)}
    rows, owner = [], []
    for number, graph in enumerate(graphs):
        heads = np.unique(graph.kernels, return_index=True)[1]
        count = len(heads)
        macs = np.bincount(graph.kernels, graph.macs, count) / 1e6
        moved = np.bincount(graph.kernels, graph.traffic, count) / 1e6
        tails = np.bincount(graph.kernels, minlength=count) - 1
        sums = np.bincount(graph.kernels, graph.x[:, _RESIDUAL], count)
        kinds = [float(KINDS.index(kind(graph.labels[head]))) for head in heads]
        types = [place.get(graph.labels[head], -1.0) for head in heads]
        first = np.stack([macs, moved, np.array(kinds), np.array(types), tails, sums], axis=1)
        rows.append(np.concatenate([first, graph.x[heads]], axis=1))
        owner.append(np.full(count, number))
    return np.concatenate(rows).astype(np.float32), np.concatenate(owner)


def _parts(x: np.ndarray) -> np.ndarray:
    """(kernels, 3 len(KINDS)) what the line multiplies: MACs, bytes and 1, each in its kind's
    column.
    """
    kinds = np.eye(len(KINDS))[x[:, 2].astype(np.int64)]
    ones = np.ones(len(x))
    return np.concatenate([kinds * part[:, None] for part in (x[:, 0], x[:, 1], ones)], axis=1)


def _line(x: np.ndarray, rates: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(_parts(x) @ rates + 1e-7))
