"""Two predictors of whole graphs, which a better one has to beat.

Line    ms = a macs + b bytes + c,  a, b, c >= 0, least squares of relative errors
Trees   gradient-boosted trees (Friedman, 2001; scikit-learn) from GraphFeatures.whole to the
        logarithm of the latency
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelmill.latency.features import GraphFeatures
from modelmill.latency.table import Table


@dataclass(frozen=True)
class Line:
    """rates: (3, P) ms per million MACs, per million bytes, and per model."""

    rates: np.ndarray

    def log_ms(self, graphs: Sequence[GraphFeatures]) -> np.ndarray:
        """(M, P) logarithms of latencies."""
        return np.asarray(np.log(np.maximum(_sums(graphs) @ self.rates, 1e-6)))


def fit_line(table: Table) -> Line:
    """A line per platform through the models measured there."""
    from scipy.optimize import nnls

    sums, rates = _sums(table.graphs), []
    for log_ms in table.log_ms.T:
        known = np.isfinite(log_ms)
        relative = sums[known] / np.exp(log_ms[known, None])
        rates.append(nnls(relative, np.ones(len(relative)))[0])
    return Line(np.stack(rates, axis=1))


def _sums(graphs: Sequence[GraphFeatures]) -> np.ndarray:
    return np.array([(g.total_macs / 1e6, g.total_traffic / 1e6, 1.0) for g in graphs])


@dataclass(frozen=True)
class Trees:
    """One ensemble of trees per platform."""

    models: tuple[Any, ...]

    def log_ms(self, graphs: Sequence[GraphFeatures]) -> np.ndarray:
        """(M, P) logarithms of latencies."""
        x = np.stack([g.whole for g in graphs])
        return np.stack([model.predict(x) for model in self.models], axis=1)


def fit_trees(table: Table, seed: int = 0) -> Trees:
    """Trees per platform, from the models measured there."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    x, models = np.stack([g.whole for g in table.graphs]), []
    for log_ms in table.log_ms.T:
        known = np.isfinite(log_ms)
        model = HistGradientBoostingRegressor(
            max_iter=300, learning_rate=0.06, min_samples_leaf=8, random_state=seed
        )
        models.append(model.fit(x[known], log_ms[known]))
    return Trees(tuple(models))
