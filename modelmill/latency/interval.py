"""How wide the interval around a prediction must be to hold the truth nine times of ten.

    scale(d, s) = a + b d + c s,                     all >= 0
    interval    = prediction * exp(+- q scale(d, s))

d is the distance to the nearest measured models, s the disagreement of an ensemble about this one.
a, b, c are fitted to errors of models that an ensemble's members were not trained on: some were
left out at random, others with their whole family, so that there are near and far ones among them.
q is the conformal quantile (Vovk et al., 2005; normalised: Papadopoulos et al., 2011): of the
ratios error / scale of n models left out at random it is the ceil(0.9 (n + 1))-th smallest. That
covers nine of ten models drawn like those measured, whatever the errors look like; far away it is
the scale that grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

COVERAGE = 0.9
ENOUGH = 30  # held-out errors that a platform needs for a quantile of its own
_LEAST = 0.01  # no interval is narrower than a hundredth: nothing is measured better


@dataclass(frozen=True)
class Held:
    """Errors of held-out models: logarithm of predicted / measured, the distance and the
    disagreement at each; `random` says which were left out at random, not with their family. (n,)
    each, `platform` the number of a platform.
    """

    error: np.ndarray
    distance: np.ndarray
    spread: np.ndarray
    platform: np.ndarray
    random: np.ndarray


@dataclass(frozen=True)
class Interval:
    """factors: a, b, c above; quantiles: q per platform."""

    factors: tuple[float, float, float]
    quantiles: tuple[float, ...]

    def half(self, platform: int, distance: float, spread: float) -> float:
        """Half the width of the interval of a log latency; infinite where nothing calibrates it."""
        a, b, c = self.factors
        return max(_LEAST, self.quantiles[platform] * (a + b * distance + c * spread))


def calibrate(held: Held, platforms: int) -> Interval:
    """Factors and quantiles from held-out errors; a platform with few takes the quantile of all."""
    from scipy.optimize import nnls

    if not len(held.error):
        return Interval((1.0, 0.0, 0.0), (math.inf,) * platforms)
    size = np.abs(held.error)
    columns = np.stack([np.ones(len(size)), held.distance, held.spread], axis=1)
    # Weights even out the many small errors and the few large ones.
    weight = 1 / (size + np.median(size) + 1e-6)
    found = nnls(columns * weight[:, None], size * weight)[0]
    floor = 0.1 * float(np.median(size)) + 1e-6
    a, b, c = max(float(found[0]), floor), float(found[1]), float(found[2])
    ratios = size / (columns @ (a, b, c))
    everywhere = _quantile(ratios[held.random])
    own = [ratios[held.random & (held.platform == p)] for p in range(platforms)]
    quantiles = tuple(_quantile(r) if len(r) >= ENOUGH else everywhere for r in own)
    return Interval((a, b, c), quantiles)


def _quantile(ratios: np.ndarray) -> float:
    """The conformal quantile; infinite where there are too few for any."""
    rank = math.ceil(COVERAGE * (len(ratios) + 1))
    return float(np.sort(ratios)[rank - 1]) if rank <= len(ratios) else math.inf
