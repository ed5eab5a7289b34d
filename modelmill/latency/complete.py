"""What known platforms would take for models that were not measured on them, in milliseconds.

The features are amounts of work (operators of a kind, multiplications, bytes), which add up. One
non-negative sum of them, fitted to all platforms in relative error, is the yardstick; for each
platform a Gaussian process (linear and squared-exponential kernel, its scales by marginal
likelihood: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, ch. 5) says by
which ratio the platform departs from the yardstick. A ratio and not a logarithm: a graph that an
engine folds into a constant takes next to no time, and its logarithm would swamp every other model.

A measurement is its prediction plus a residual, and a residual is noise or something the features
do not see. What two platforms both see is not noise: of a platform's residuals the share is kept
that correlates with those of some other platform.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray

MOST_POINTS = 1500  # exact inference is cubic; beyond this the tables above gained nothing
TUNING_POINTS = 200
FEWEST_SHARED = 20  # models on two platforms before their residuals are compared


def standard(a_NF: Array) -> Array:
    """Columns of mean 0 and variance 1/F, so that a row has squared length 1 on average."""
    a_NF = a_NF - a_NF.mean(0)
    spread_F = a_NF.std(0)
    kept = spread_F > 1e-9 * max(1.0, float(np.abs(a_NF).max(initial=0.0)))
    return np.asarray(a_NF[:, kept] / spread_F[kept] / np.sqrt(max(int(kept.sum()), 1)))


def squares(a_NF: Array, b_MF: Array) -> Array:
    """Squared distances between the rows of two matrices, shape (N, M)."""
    d_NM = (a_NF**2).sum(1)[:, None] + (b_MF**2).sum(1)[None] - 2 * a_NF @ b_MF.T
    return np.asarray(np.maximum(d_NM, 0.0))


def shares(features_NF: Array, unit_N: Array) -> Array:
    """Each amount of work (and a constant) per unit of expected time, standardised."""
    work = np.column_stack([features_NF / np.maximum(features_NF.mean(0), 1e-12), unit_N * 0 + 1])
    return standard(work / unit_N[:, None])


def complete(features_NF: Array, source_ms_NP: Array, seed: int = 0) -> Array:
    """Latencies of all N models on all P platforms, ms, from those that were measured.

    `features_NF` are amounts >= 0; `source_ms_NP` is nan where nothing was measured, and every
    platform has some measurement. Measured entries come back smoothed (see above).
    """
    yardstick_N = _yardstick(features_NF, source_ms_NP, seed)
    linear_NX = shares(features_NF, yardstick_N)
    place_NF = standard(np.log1p(features_NF))
    result_NP = np.empty_like(source_ms_NP)
    residual_NP = np.full_like(source_ms_NP, np.nan)
    for p, measured_N in enumerate(source_ms_NP.T):
        known = np.flatnonzero(np.isfinite(measured_N))
        ratio_N = measured_N / yardstick_N
        level = float(np.median(ratio_N[known]))
        some = _some(known, MOST_POINTS, seed)
        target = np.clip(ratio_N[some] / level, 0.0, 4.0) - 1  # an outage is no 40-fold model
        fit_N = 1 + _regress(linear_NX, place_NF, some, target, seed)
        result_NP[:, p] = np.maximum(fit_N, 0.01) * level
        residual_NP[known, p] = ratio_N[known] - result_NP[known, p]
    kept_P = _shared(residual_NP)
    return np.asarray(
        np.maximum(result_NP + kept_P * np.nan_to_num(residual_NP), 1e-4 * np.median(result_NP, 0))
        * yardstick_N[:, None]
    )


def _yardstick(features_NF: Array, source_ms_NP: Array, seed: int) -> Array:
    from scipy.optimize import nnls

    scaled_NP = source_ms_NP / np.nanmedian(source_ms_NP, axis=0)
    known = _some(np.flatnonzero(np.isfinite(scaled_NP).any(1)), MOST_POINTS, seed)
    target = np.nanmean(scaled_NP[known], axis=1)
    weight = 1 / np.maximum(target, 0.25 * np.median(target))
    work = np.column_stack([features_NF, np.ones(len(features_NF))])
    work = work / np.maximum(work[known].mean(0), 1e-12)
    amount, _ = nnls(work[known] * weight[:, None], target * weight)
    return np.asarray(work @ (amount + 1e-3 / len(amount)))  # never zero


def _some(indices: Array, most: int, seed: int) -> Array:
    if len(indices) <= most:
        return indices
    return np.random.default_rng(seed).permutation(indices)[:most]


def _regress(linear_NX: Array, place_NF: Array, known: Array, target: Array, seed: int) -> Array:
    """The mean of the Gaussian process at all N models."""
    from scipy.linalg import cho_factor, cho_solve

    linear = linear_NX[known] @ linear_NX[known].T
    distance = squares(place_NF[known], place_NF[known])
    tune = _some(np.arange(len(known)), TUNING_POINTS, seed)
    a, b, length, noise = _scales(
        linear[np.ix_(tune, tune)], distance[np.ix_(tune, tune)], target[tune]
    )
    gram = 1 + a * linear + b * np.exp(-distance / (2 * length**2))
    weights = cho_solve(cho_factor(gram + noise * np.eye(len(known))), target)
    near_N = np.empty(len(place_NF))
    for rows in np.array_split(np.arange(len(place_NF)), len(place_NF) // 1000 + 1):
        between = squares(place_NF[rows], place_NF[known])  # in parts, which stay in the cache
        near_N[rows] = np.exp(between / (-2 * length**2)) @ weights
    return np.asarray(weights.sum() + a * (linear_NX @ (linear_NX[known].T @ weights)) + b * near_N)


def _scales(linear: Array, distance: Array, target: Array) -> Array:
    """Scale of either kernel, length and noise variance of greatest marginal likelihood."""
    from scipy.optimize import minimize

    def cost(log_scales: Array) -> float:
        a, b, length, noise = np.exp(log_scales)
        gram = (
            1 + a * linear + b * np.exp(-distance / (2 * length**2)) + noise * np.eye(len(target))
        )
        root = np.linalg.cholesky(gram)
        white = np.linalg.solve(root, target)
        fit = 0.5 * white @ white + np.log(np.diag(root)).sum()
        return float(fit + 0.01 * log_scales @ log_scales)  # a weak pull keeps it from running off

    bounds = [(-9, 4), (-9, 4), (-3, 3), (-12, 1)]
    start = np.log([0.1, 0.1, 0.7, 0.01])
    found = minimize(cost, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 20})
    return np.asarray(np.exp(found.x))


def _shared(residual_NP: Array) -> Array:
    """For each platform the share of its residuals that another platform confirms, 0..1."""
    platforms = residual_NP.shape[1]
    share_P = np.ones(platforms)  # nobody to compare with: as measured
    for p in range(platforms):
        found = []
        for q in range(platforms):
            both = np.isfinite(residual_NP[:, p]) & np.isfinite(residual_NP[:, q])
            if q != p and both.sum() >= FEWEST_SHARED:
                found.append(_agreement(residual_NP[both, p], residual_NP[both, q]))
        if found:
            share_P[p] = max(found)
    return share_P


def _agreement(a_N: Array, b_N: Array) -> float:
    """Correlation of ranks, at least 0; a few outliers do not decide."""
    from scipy.stats import rankdata

    a_N, b_N = rankdata(a_N), rankdata(b_N)
    if a_N.std() == 0 or b_N.std() == 0:
        return 0.0
    return max(0.0, float(np.corrcoef(a_N, b_N)[0, 1]))
