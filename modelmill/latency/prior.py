"""What known platforms say about a platform that nobody has measured yet.

A platform is taken as a function of the model: its latency is `level * base * (1 + f)`, where the
base is the mean of the known platforms, each scaled to the same level, and `f` is a Gaussian
process whose kernel is a sum of four parts, each kept as features so that everything stays linear:

    a level of its own, the known platforms' own departures from the base (a new platform is like a
    mixture of them), the shares of each kind of work (it has other prices for them), and a smooth
    remainder over the features (squared exponential, by the Nystroem method).

The scales of the parts were chosen on the four validation platforms of HELP's NAS-Bench-201 split
(Lee et al., Hardware-adaptive Efficient Latency Prediction, NeurIPS 2021) and are the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modelmill.latency.complete import complete, shares, squares, standard

Array = np.ndarray

LEVEL, PLATFORMS, WORK, REMAINDER = 0.1, 1.0, 0.001, 0.001  # variances of f, relative squared
NYSTROM_POINTS = 150


@dataclass(frozen=True)
class Prior:
    """The base in ms and the features of the three parts of the kernel, for N models."""

    base_ms: Array  # (N,)
    platforms: Array  # (N, P)
    work: Array  # (N, X)
    remainder: Array  # (N, Q)

    @property
    def features_NK(self) -> Array:
        """One row per model whose inner products are the prior covariance of `f`."""
        parts = (
            np.full((len(self.base_ms), 1), np.sqrt(LEVEL)),
            np.sqrt(PLATFORMS) * self.platforms,
            np.sqrt(WORK) * self.work,
            np.sqrt(REMAINDER) * self.remainder,
        )
        return np.concatenate(parts, axis=1)


def learn(features_NF: Array, source_log_ms_NP: Array, seed: int = 0) -> Prior:
    """The prior over a new platform's latencies of N models.

    `features_NF`: amounts of work >= 0 (counts of operators, multiplications, bytes ...);
    `source_log_ms_NP`: natural logarithm of ms on P known platforms, nan where not measured.
    ValueError where shapes differ, an amount is negative or not finite, or a platform is empty.
    """
    features_NF = np.asarray(features_NF, float)
    source_log_ms_NP = np.asarray(source_log_ms_NP, float)
    _check(features_NF, source_log_ms_NP)
    ms_NP = complete(features_NF, np.exp(source_log_ms_NP), seed)
    scaled_NP = ms_NP / np.median(ms_NP, axis=0)
    base_N = scaled_NP.mean(1)
    departure_NP = scaled_NP / base_N[:, None]
    departure_NP = departure_NP / np.median(departure_NP, axis=0) - 1
    return Prior(
        base_ms=base_N * float(np.exp(np.log(np.median(ms_NP, axis=0)).mean())),
        platforms=departure_NP / np.sqrt(departure_NP.shape[1]),
        work=shares(features_NF, base_N),
        remainder=_nystrom(standard(np.log1p(features_NF)), seed),
    )


def _nystrom(place_NF: Array, seed: int) -> Array:
    """Features whose inner products approximate exp(-distance^2 / 2)."""
    centres = np.random.default_rng(seed).permutation(len(place_NF))[:NYSTROM_POINTS]
    kernel = np.exp(-squares(place_NF[centres], place_NF[centres]) / 2)
    values, vectors = np.linalg.eigh(kernel)
    kept = values > 1e-6
    whiten = vectors[:, kept] / np.sqrt(values[kept])
    return np.asarray(np.exp(-squares(place_NF, place_NF[centres]) / 2) @ whiten)


def _check(features_NF: Array, source_NP: Array) -> None:
    if features_NF.ndim != 2 or source_NP.ndim != 2 or len(features_NF) != len(source_NP):
        raise ValueError(
            f"features {features_NF.shape} and latencies {source_NP.shape} must be two tables "
            "with one row per model, the same models in the same order"
        )
    if not np.isfinite(features_NF).all() or (features_NF < 0).any():
        raise ValueError("features must be finite amounts of work >= 0 (counts, MACs, bytes)")
    if np.isinf(source_NP).any():
        raise ValueError("a known latency is 0 or infinite: leave it out (nan) or measure it again")
    if not source_NP.shape[1] or not np.isfinite(source_NP).any(0).all():
        raise ValueError(
            "a known platform without any measured model says nothing: leave it out, "
            "and keep at least one platform"
        )
