"""From statistics to a range: min-max, percentile, MSE and KL, each a function of one tensor's `Statistics`.

minmax       the smallest and largest element seen.
percentile   the range that keeps a given share of the elements on each side.
mse          the range [a * low, a * high] whose expected squared quantization error is smallest: inside, a step s
             gives s^2 / 12; outside, the distance to the end is lost. Exact zeros cost nothing, as 0 is always a code.
kl           the range whose quantized distribution is closest to the original in Kullback-Leibler divergence
             (Migacz, "8-bit inference with TensorRT", GTC 2017).
"""

from __future__ import annotations

import numpy as np

from modelmill.numerics import QuantSpec
from modelmill.quant.observe import Statistics

METHODS = ("minmax", "percentile", "mse", "kl")
PERCENTILE = 99.999
SHRINK = np.linspace(0.2, 1.0, 161)  # candidate shares of the full range
KL_CODES = 128


def choose_range(method: str, statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
    """The real range to quantize by `method`, one of METHODS.

    Raises:
        ValueError: unknown method (lists the choices).
    """
    if method not in METHODS:
        raise ValueError(f"unknown calibration method {method!r}. Choices: {', '.join(METHODS)}")
    low, high = min(statistics.low, 0.0), max(statistics.high, 0.0)
    if method == "minmax" or low == high or not statistics.counts.any():
        return low, high
    if method == "percentile":
        return _percentile(statistics, low, high)
    if method == "mse":
        share = SHRINK[np.argmin(_squared_errors(statistics, spec, low, high))]
    else:
        share = _kl_share(statistics, low, high)
    return float(low * share), float(high * share)


def _percentile(statistics: Statistics, low: float, high: float) -> tuple[float, float]:
    total = statistics.counts.sum() + statistics.zeros
    centers = statistics.centers
    outside = (1.0 - PERCENTILE / 100.0) * total
    below = np.cumsum(statistics.counts)
    above = np.cumsum(statistics.counts[::-1])[::-1]
    kept = (below > outside) & (above > outside)
    if not kept.any():
        return low, high
    return max(low, min(float(centers[kept][0]), 0.0)), min(high, max(float(centers[kept][-1]), 0.0))


def _squared_errors(statistics: Statistics, spec: QuantSpec, low: float, high: float) -> np.ndarray:
    """Expected squared error of every candidate share, shape (len(SHRINK),)."""
    counts, centers = statistics.counts, statistics.centers
    lows, highs = low * SHRINK, high * SHRINK
    if spec.symmetric:
        steps = np.maximum(highs / max(spec.qmax, 1), -lows / max(-spec.qmin, spec.qmax))
        lows, highs = steps * min(spec.qmin, -spec.qmax), steps * spec.qmax
    else:
        steps = (highs - lows) / (spec.qmax - spec.qmin)
    # Tail sums by prefix: sum over c > h of n (c - h)^2 = S2 - 2 h S1 + h^2 S0.
    sums = [np.concatenate([[0.0], np.cumsum(counts * centers**k)]) for k in range(3)]
    right = np.searchsorted(centers, highs)
    left = np.searchsorted(centers, lows)
    over = [s[-1] - s[right] for s in sums]
    under = [s[left] for s in sums]
    inside = sums[0][-1] - over[0] - under[0]
    clipped = over[2] - 2 * highs * over[1] + highs**2 * over[0] + under[2] - 2 * lows * under[1] + lows**2 * under[0]
    return np.asarray(inside * steps**2 / 12 + clipped)


def _kl_share(statistics: Statistics, low: float, high: float) -> float:
    """Share of the absolute range with the smallest divergence between the clipped and the quantized distribution."""
    bins = len(statistics.counts)
    reach = max(-low, high)
    counts = np.histogram(np.abs(statistics.centers), bins, (0, reach), weights=statistics.counts)[0]
    best, best_share = np.inf, 1.0
    for width in range(KL_CODES, bins + 1, bins // KL_CODES):
        clipped = counts[:width].copy()
        clipped[-1] += counts[width:].sum()
        divergence = _divergence(clipped, counts[:width])
        if divergence < best:
            best, best_share = divergence, width / bins
    return best_share


def _divergence(reference: np.ndarray, source: np.ndarray) -> float:
    """KL(reference || source spread over KL_CODES levels); counts in, nats out."""
    starts = np.arange(KL_CODES) * len(source) // KL_CODES
    filled = source > 0
    sums = np.add.reduceat(source, starts)
    members = np.maximum(np.add.reduceat(filled.astype(np.float64), starts), 1.0)
    level = np.repeat(sums / members, np.diff(np.append(starts, len(source)))) * filled
    p, q = reference / max(reference.sum(), 1.0), level / max(level.sum(), 1.0)
    smooth = 1e-9  # mass where the quantized distribution has none, as the clipped tail in the last bin
    keep = p > 0
    return float(np.sum(p[keep] * np.log(p[keep] / np.maximum(q[keep], smooth))))
