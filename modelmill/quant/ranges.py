"""From statistics to a range: min-max, percentile, MSE and KL, each a function of one tensor's
`Statistics`.

minmax       the smallest and largest element seen.
percentile   the range that keeps a given share of the elements on each side.
mse          the range [a * low, b * high] whose expected squared quantization error is smallest:
             inside, a step s gives s^2 / 12; outside, the distance to the end is lost, which counts
             four times from 8 bits on. Exact zeros cost nothing, as 0 is always a code.
             Where a LeakyReLU of slope k reads the tensor, errors below 0 reach the network k times
             smaller: they are weighted by k^2, and the range spends its codes on the positive side.
kl           the range whose quantized distribution is closest to the original in Kullback-Leibler
             divergence (Migacz, "8-bit inference with TensorRT", GTC 2017).

A scale that must be a power of two is then chosen among the exponents around the one that covers
this range, by the smallest expected squared error. Logarithmic codes have the same relative
precision everywhere, so a narrower range gains nothing: only min-max and percentile make sense.
"""

from __future__ import annotations

import numpy as np

from modelmill.numerics import QuantSpec, choose_encoding
from modelmill.quant.observe import Statistics

METHODS = ("minmax", "percentile", "mse", "kl")
PERCENTILE = 99.999
SHRINK = np.linspace(0.1, 1.0, 91)  # candidate shares of the full range
KL_CODES = 128  # of 8 bits, on one side of 0; fewer where the format has fewer
EXPONENTS = (-2, -1, 0, 1)  # around the power of two that covers a range
CLIPPED_WEIGHT = 4.0  # a clipped outlier is gone, rounding noise averages out; docs/LOG.md


def choose_range(
    method: str, statistics: Statistics, spec: QuantSpec, negative_weight: float = 1.0
) -> tuple[float, float]:
    """The real range to quantize by `method`, one of METHODS.

    `negative_weight` scales squared errors of negative elements (method "mse" only).

    Raises:
        ValueError: unknown method (lists the choices).
    """
    if method not in METHODS:
        raise ValueError(f"unknown calibration method {method!r}. Choices: {', '.join(METHODS)}")
    low, high = min(statistics.low, 0.0), max(statistics.high, 0.0)
    if low == high or not statistics.counts.any():
        return low, high
    found = _by_method(method, statistics, spec, (low, high), negative_weight)
    return _power_of_two(statistics, spec, found, negative_weight) if spec.power_of_two else found


def _by_method(
    method: str,
    statistics: Statistics,
    spec: QuantSpec,
    limits: tuple[float, float],
    negative_weight: float,
) -> tuple[float, float]:
    """The range that `method` chooses; `limits` is the whole one."""
    if method == "minmax" or (spec.logarithmic and method != "percentile"):
        return limits
    if method == "percentile":
        return _percentile(statistics, *limits)
    if method == "mse":
        return _smallest_error(statistics, spec, *limits, negative_weight)
    share = _kl_share(statistics, min(KL_CODES, 2 ** (spec.bits - 1)), *limits)
    return float(limits[0] * share), float(limits[1] * share)


def _percentile(statistics: Statistics, low: float, high: float) -> tuple[float, float]:
    total = statistics.counts.sum() + statistics.zeros
    centers = statistics.centers
    outside = (1.0 - PERCENTILE / 100.0) * total
    below = np.cumsum(statistics.counts)
    above = np.cumsum(statistics.counts[::-1])[::-1]
    kept = (below > outside) & (above > outside)
    if not kept.any():
        return low, high
    return max(low, min(float(centers[kept][0]), 0.0)), min(
        high, max(float(centers[kept][-1]), 0.0)
    )


def _smallest_error(
    statistics: Statistics, spec: QuantSpec, low: float, high: float, negative_weight: float
) -> tuple[float, float]:
    """The candidate range with the smallest expected squared error."""
    lows = low * SHRINK if low < 0 else np.zeros(1)
    highs = high * SHRINK if high > 0 else np.zeros(1)
    if spec.symmetric:
        reach = np.maximum(-low, high) * SHRINK
        steps = reach / spec.qmax
        ends = -reach, reach
    else:
        low_grid, high_grid = np.meshgrid(lows, highs, indexing="ij")
        ends = low_grid.reshape(-1), high_grid.reshape(-1)
        steps = (ends[1] - ends[0]) / (spec.qmax - spec.qmin)
    best = int(np.argmin(_expected_errors(statistics, spec, ends, steps, negative_weight)))
    return float(ends[0][best]), float(ends[1][best])


def _power_of_two(
    statistics: Statistics, spec: QuantSpec, found: tuple[float, float], negative_weight: float
) -> tuple[float, float]:
    """The range of the codes under the best power of two near the one that covers `found`."""
    covering = choose_encoding(spec, *found)
    steps = float(covering.scale) * np.exp2(np.array(EXPONENTS, np.float64))
    zero_point = float(covering.zero_point)
    ends = (spec.qmin - zero_point) * steps, (spec.qmax - zero_point) * steps
    errors = _expected_errors(statistics, spec, ends, steps, negative_weight)
    best = int(np.argmin(errors))
    return float(ends[0][best]), float(ends[1][best])


def _expected_errors(
    statistics: Statistics,
    spec: QuantSpec,
    ends: tuple[np.ndarray, np.ndarray],
    steps: np.ndarray,
    negative_weight: float,
) -> np.ndarray:
    """Expected squared error, summed over the histogram, of each candidate: the ends of its range,
    and its scale.
    """
    counts, centers = statistics.counts, statistics.centers
    weights = counts * np.where(centers < 0, negative_weight, 1.0)
    # Tail sums by prefix: sum over c > h of n (c - h)^2 = S2 - 2 h S1 + h^2 S0.
    sums = [np.concatenate([[0.0], np.cumsum(weights * centers**k)]) for k in range(3)]
    right, left = np.searchsorted(centers, ends[1]), np.searchsorted(centers, ends[0])
    over, under = [s[-1] - s[right] for s in sums], [s[left] for s in sums]
    inside = sums[0][-1] - over[0] - under[0]
    clipped = _clipped(over, ends[1]) + _clipped(under, ends[0])
    weight = CLIPPED_WEIGHT if spec.bits >= 8 else 1.0  # below, rounding is what hurts
    return np.asarray(inside * steps**2 / 12 + weight * clipped)


def _clipped(tail: list[np.ndarray], end: np.ndarray) -> np.ndarray:
    """Squared distance to `end`, summed over a tail with the power sums `tail`."""
    return np.asarray(tail[2] - 2 * end * tail[1] + end**2 * tail[0])


def _kl_share(statistics: Statistics, levels: int, low: float, high: float) -> float:
    """Share of the absolute range with the smallest divergence between the clipped and the
    quantized distribution.
    """
    bins = len(statistics.counts)
    reach = max(-low, high)
    counts = np.histogram(np.abs(statistics.centers), bins, (0, reach), weights=statistics.counts)[
        0
    ]
    best, best_share = np.inf, 1.0
    for width in range(levels, bins + 1, bins // KL_CODES):
        clipped = counts[:width].copy()
        clipped[-1] += counts[width:].sum()
        divergence = _divergence(clipped, counts[:width], levels)
        if divergence < best:
            best, best_share = divergence, width / bins
    return best_share


def _divergence(reference: np.ndarray, source: np.ndarray, levels: int) -> float:
    """KL(reference || source spread over so many levels); counts in, nats out."""
    starts = np.arange(levels) * len(source) // levels
    filled = source > 0
    sums = np.add.reduceat(source, starts)
    members = np.maximum(np.add.reduceat(filled.astype(np.float64), starts), 1.0)
    level = np.repeat(sums / members, np.diff(np.append(starts, len(source)))) * filled
    p, q = reference / max(reference.sum(), 1.0), level / max(level.sum(), 1.0)
    smooth = (
        1e-9  # mass where the quantized distribution has none, as the clipped tail in the last bin
    )
    keep = p > 0
    return float(np.sum(p[keep] * np.log(p[keep] / np.maximum(q[keep], smooth))))
