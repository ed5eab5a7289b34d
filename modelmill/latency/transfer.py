"""Latencies of many models on a new platform, from a few measured there and other platforms.

The prior (`latency/prior.py`) says what platforms look like; the samples say which one this is. The
level is the median of what was measured against the base; the ratio to it is a Gaussian process.
How unusual the platform is and how noisy its measurements are is not known beforehand, so a small
grid of both is averaged by marginal likelihood. Noise has heavy tails (Student t with 4 degrees of
freedom, fitted by reweighting: Lange, Little and Taylor, JASA 84, 1989), so that one measurement
gone wrong among ten does not decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from modelmill.latency.prior import LEVEL, PLATFORMS, REMAINDER, WORK, Prior, learn

Array = np.ndarray

TAIL = 4.0
REWEIGHTINGS = 10
UNUSUAL = (-1.5, 0.0, 1.5)  # of the mixture of known platforms, natural logarithm of its variance
OWN_PRICES = (-1.5, 0.0, 1.5, 3.0)  # the same for the parts that know no platform
NOISE = (0.0005, 0.002, 0.008, 0.03)  # variances of one relative measurement
FLOOR = 0.1  # below this share of the base the ratio decays instead of turning negative
FEWEST = 2


@dataclass(frozen=True)
class Adapted:
    """Natural logarithm of the predicted ms of N models, and the standard deviation around it.

    The spread is that of one more measurement, noise included: 0.1 is about 10 % of the latency.
    """

    log_ms: Array  # (N,)
    spread: Array  # (N,)


def adapt(
    features_NF: Array, source_log_ms_NP: Array, samples: Mapping[int, float], seed: int = 0
) -> Adapted:
    """Predict all N models on a new platform from `samples`, {row: ms measured there}.

    The tables are those of `prior.learn`; ValueError for bad ones, for samples outside of the
    table or not positive, and for fewer than two.
    """
    return adapt_prior(learn(features_NF, source_log_ms_NP, seed), samples)


def adapt_prior(prior: Prior, samples: Mapping[int, float]) -> Adapted:
    """The same with a prior that was learned before: many platforms, one prior."""
    rows, ms = _checked(samples, len(prior.base_ms))
    ratio = ms / prior.base_ms[rows]
    level = float(np.median(ratio))
    parts = _Parts.of(prior, rows)
    candidates = [
        _solve(parts, ratio / level - 1, *grid) for grid in product(OWN_PRICES, UNUSUAL, NOISE)
    ]
    evidence = np.array([c.evidence for c in candidates])
    share = np.exp(evidence - evidence.max())
    share = np.where(share > 0.01 * share.max(), share, 0.0)
    share = share / share.sum()
    mean_N = np.zeros(len(prior.base_ms))
    square_N = np.zeros(len(prior.base_ms))
    for candidate, weight in zip(candidates, share, strict=True):
        if weight:
            one_N, variance_N = _predict(parts, candidate)
            mean_N += weight * one_N
            square_N += weight * (variance_N + one_N**2)
    plain_N = 1 + mean_N
    low_N = FLOOR * np.exp(np.minimum(plain_N - FLOOR, 0) / FLOOR)
    ratio_N = np.where(plain_N > FLOOR, plain_N, low_N)
    deviation_N = np.sqrt(np.maximum(square_N - mean_N**2, 1e-12))
    return Adapted(
        log_ms=np.log(ratio_N * level * prior.base_ms),
        spread=deviation_N / np.maximum(ratio_N, FLOOR),
    )


@dataclass(frozen=True)
class _Parts:
    """Covariances of either part: all models with the n samples, and each model with itself."""

    mixed: Array  # (N, n)
    own: Array  # (N, n)
    mixed_alone: Array  # (N,)
    own_alone: Array  # (N,)
    rows: Array  # (n,)

    @staticmethod
    def of(prior: Prior, rows: Array) -> _Parts:
        p, w, r = prior.platforms, prior.work, prior.remainder
        return _Parts(
            mixed=PLATFORMS * p @ p[rows].T,
            own=WORK * w @ w[rows].T + REMAINDER * r @ r[rows].T,
            mixed_alone=PLATFORMS * (p**2).sum(1),
            own_alone=WORK * (w**2).sum(1) + REMAINDER * (r**2).sum(1),
            rows=rows,
        )


@dataclass(frozen=True)
class _Candidate:
    own: float
    platforms: float
    noise: float
    evidence: float
    gram: Array  # covariance of the samples, noise included
    weights: Array  # gram^-1 target


def _solve(
    parts: _Parts, target: Array, log_own: float, log_platforms: float, noise: float
) -> _Candidate:
    own, platforms = float(np.exp(log_own)), float(np.exp(log_platforms))
    kernel = LEVEL + platforms * parts.mixed[parts.rows] + own * parts.own[parts.rows]
    trust = np.ones(len(target))
    for _ in range(REWEIGHTINGS):
        gram = kernel + np.diag(noise / trust)
        weights = np.linalg.solve(gram, target)
        residual = weights * noise / trust
        used, trust = trust, (TAIL + 1) / (TAIL + residual**2 / noise)
    fit = -0.5 * target @ weights - 0.5 * np.linalg.slogdet(gram)[1]
    distrust = TAIL / 2 * (np.log(used) - used + 1).sum()
    usual = 0.25 * ((log_own / 1.5) ** 2 + (log_platforms / 1.5) ** 2)
    return _Candidate(own, platforms, noise, float(fit + distrust - usual), gram, weights)


def _predict(parts: _Parts, c: _Candidate) -> tuple[Array, Array]:
    """Mean and variance of one measurement of each model, relative to the base."""
    between_Nn = LEVEL + c.platforms * parts.mixed + c.own * parts.own
    alone_N = LEVEL + c.platforms * parts.mixed_alone + c.own * parts.own_alone
    known_alone = (between_Nn * np.linalg.solve(c.gram, between_Nn.T).T).sum(1)
    return between_Nn @ c.weights, np.maximum(alone_N - known_alone, 0) + c.noise


def _checked(samples: Mapping[int, float], models: int) -> tuple[Array, Array]:
    rows = np.array(sorted(samples), int)
    ms = np.array([samples[int(row)] for row in rows], float)
    if len(rows) < FEWEST:
        raise ValueError(f"{len(rows)} measured models are too few: measure at least {FEWEST}")
    if rows[0] < 0 or rows[-1] >= models:
        raise ValueError(f"samples name rows {rows[0]}..{rows[-1]}, the table has 0..{models - 1}")
    wrong = rows[~(np.isfinite(ms) & (ms > 0))]
    if len(wrong):
        raise ValueError(
            f"row {wrong[0]}: {samples[int(wrong[0])]} is no latency; measure it again"
        )
    return rows, ms
