"""What a predictor still gets wrong, smoothed over similar models and taken back.

Errors of held-out models are interpolated over the space of whole-graph features by kriging (a
Gaussian process with the kernel exp(-distance / length)); far from every measured model the
correction is 0. Its own held-out errors have a closed form (Rasmussen and Williams, "Gaussian
Processes for Machine Learning", 2006, eq. 5.12): with K the kernel's matrix plus noise, and r the
errors, leaving i out leaves [K^-1 r]_i / [K^-1]_ii. The length and the noise are those with the
smallest such errors; where none is smaller than doing nothing, nothing is done.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modelmill.latency.complete import squares
from modelmill.latency.features import GraphFeatures

_LENGTHS = (1.0, 3.0)
_NOISES = (0.3, 1.0, 3.0)
_SURE = 0.1
_NEAREST = 3


@dataclass(frozen=True)
class Space:
    """Where measured models lie: whole-graph features, each divided by its spread.

    points  (M, W)
    mean, scale  (W,) of a feature: point = (feature - mean) * scale
    unit    median distance of a model to its nearest other: distances are counted in it
    """

    points: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    unit: float

    def place(self, graph: GraphFeatures) -> np.ndarray:
        """(W,) where a graph lies."""
        return np.asarray((graph.whole - self.mean) * self.scale)

    def distances(self, point: np.ndarray) -> np.ndarray:
        """(M,) from a place to every measured model."""
        return np.asarray(np.sqrt(((self.points - point) ** 2).sum(axis=1)) / self.unit)


def space(graphs: tuple[GraphFeatures, ...]) -> Space:
    """The space of these models."""
    whole = np.stack([graph.whole for graph in graphs]).astype(np.float32)
    mean, spread = whole.mean(axis=0), whole.std(axis=0)
    scale = np.where(spread > 1e-3, 1 / np.maximum(spread, 1e-3), 0).astype(np.float32)
    points = (whole - mean) * scale
    found = between(points, points)
    np.fill_diagonal(found, np.inf)
    nearest = found.min(axis=1)
    usual = np.median(nearest[np.isfinite(nearest)]) if len(points) > 1 else 1.0
    return Space(points, mean, scale, max(float(usual), 1e-3))


def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(len(a), len(b)) Euclidean distances."""
    return np.asarray(np.sqrt(squares(a, b)))


def far(distances: np.ndarray) -> float:
    """How far a model is from what was measured: the mean distance to the nearest few."""
    count = min(_NEAREST, len(distances))
    return float(np.partition(distances, count - 1)[:count].mean()) if count else np.inf


@dataclass(frozen=True)
class Kriging:
    """length: of the kernel, in units of `Space`; weights: (M,) of the measured models, all 0 where
    nothing is to be taken back.
    """

    length: float
    weights: np.ndarray

    def __call__(self, distances: np.ndarray) -> float:
        """The error to expect at these distances (M,) from the measured models."""
        return float(np.exp(-distances / self.length) @ self.weights)


def krige(
    place: Space, error: np.ndarray, sure: np.ndarray | None = None
) -> tuple[Kriging, np.ndarray]:
    """The interpolation of errors (M,), nan where unknown, and what is left of each where it is
    predicted from the others. sure: (M,) which of them are no single measurements and next to free
    of noise.
    """
    known = np.flatnonzero(np.isfinite(error))
    weights, left = np.zeros(len(error), dtype=np.float32), error.copy()
    points = place.points[known]
    distances = between(points, points) / place.unit
    best, length = float((error[known] ** 2).sum()), _LENGTHS[0]
    for candidate in _LENGTHS if len(known) > 10 else ():
        for noise in _NOISES:
            own = np.full(len(known), noise)
            if sure is not None:
                own[sure[known]] = _SURE
            matrix = np.exp(-distances / candidate) + np.diag(own)
            inverse = np.linalg.inv(matrix)
            solved = inverse @ error[known]
            remains = solved / np.diag(inverse)
            if (remains**2).sum() < best:
                best, length = float((remains**2).sum()), candidate
                weights[known], left[known] = solved, remains
    return Kriging(length, weights), left
