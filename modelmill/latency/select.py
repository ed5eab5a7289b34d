"""Which models to measure on a new platform, before anything is known of it.

Greedy A-optimal design (Krause, Singh and Guestrin, JMLR 9, 2008, compare such criteria): the next
model is the one whose measurement lowers the variance of the predictions, averaged over all models,
the most. The variance of a Gaussian process does not depend on what is measured, so the whole list
is known beforehand and uses no latency of the new platform.
"""

from __future__ import annotations

import numpy as np

from modelmill.latency.features import KINDS, GraphFeatures, kind
from modelmill.latency.prior import Prior, learn

Array = np.ndarray

NOISE = 0.001  # expected variance of one relative measurement
MOST_CANDIDATES = 4000


def work(graph: GraphFeatures) -> Array:
    """Amounts of work as `choose` takes them: million MACs, MB moved and units of each kind."""
    kinds = np.array([KINDS.index(kind(label)) for label in graph.labels])
    parts = (graph.macs / 1e6, graph.traffic / 1e6, np.ones(len(kinds)))
    return np.concatenate([np.bincount(kinds, part, len(KINDS)) for part in parts])


def choose(features_NF: Array, source_log_ms_NP: Array, count: int, seed: int = 0) -> list[int]:
    """Rows of the `count` models to measure, the most telling first; tables as in `prior.learn`."""
    return choose_prior(learn(features_NF, source_log_ms_NP, seed), count, seed)


def choose_prior(prior: Prior, count: int, seed: int = 0) -> list[int]:
    """The same with a prior that was learned before. The seed draws the candidates if many."""
    models = len(prior.base_ms)
    if not 1 <= count <= models:
        raise ValueError(
            f"{count} models to measure: must be 1..{models}, as many as the table has"
        )
    features_NK = prior.features_NK
    pool = np.random.default_rng(seed).permutation(models)[: max(MOST_CANDIDATES, count)]
    pool_MK = features_NK[pool]
    second_KK = pool_MK.T @ pool_MK / len(pool)  # the average over models, as a quadratic form
    left_KK = np.eye(features_NK.shape[1])
    chosen: list[int] = []
    for _ in range(count):
        ahead_MK = pool_MK @ left_KK
        variance_M = (ahead_MK * pool_MK).sum(1) + NOISE
        gain_M = ((ahead_MK @ second_KK) * ahead_MK).sum(1) / variance_M
        gain_M[chosen] = -1.0
        best = int(np.argmax(gain_M))
        chosen.append(best)
        left_KK = left_KK - np.outer(ahead_MK[best], ahead_MK[best]) / variance_M[best]
    return [int(row) for row in pool[chosen]]
