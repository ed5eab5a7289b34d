"""Is it really faster? A ratio of medians and its confidence interval, from interleaved blocks.

speedup = p50 of the reference / p50 of the candidate: above 1 the candidate is faster.

Single times within a block are far from independent (clock, caches, whatever else runs), so the
block is what is drawn again: a paired block bootstrap draws block numbers with replacement, takes
these blocks of both sides, and computes the ratio anew. With a few blocks the plain percentile
interval is too short; its level is corrected as for Student's t (Hesterberg, "What Teachers Should
Know About the Bootstrap", The American Statistician 69, 2015: the expanded percentile interval).

The same file loaded twice can differ by up to a percent for good, because its buffers lie elsewhere
in memory, and enough samples make any such difference significant. So a verdict needs an interval
that excludes not 1 alone, but everything within `margin` of it.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from modelmill.latency.measure import Latency

Verdict = Literal["faster", "slower", "no significant difference"]
_DRAWS = 2000
_CHUNK = 4_000_000  # samples drawn at once: bounds the memory


@dataclass(frozen=True)
class Speedup:
    """How many times as fast the candidate is, with the bounds of a confidence interval."""

    ratio: float
    low: float
    high: float
    confidence: float = 0.95
    margin: float = 0.01

    @property
    def verdict(self) -> Verdict:
        """What may be said; nothing, unless the interval excludes 1 and what lies within margin."""
        if self.low > 1 + self.margin:
            return "faster"
        return "slower" if self.high < 1 / (1 + self.margin) else "no significant difference"


def compare(
    reference: Latency, candidate: Latency, seed: int = 0, confidence: float = 0.95
) -> Speedup:
    """Speedup of the candidate over the reference; both from one call of `measure`.

    Raises:
        ValueError: numbers of blocks that differ, or fewer than two blocks.
    """
    a, b = (np.array(side.samples_ms, dtype=np.float64) for side in (reference, candidate))
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} blocks: measure both sides together")
    if len(a) < 2:
        raise ValueError("a comparison needs at least two blocks of samples")
    random = np.random.default_rng(seed)
    draws = random.integers(0, len(a), (_DRAWS, len(a)))
    ratios = _medians(a, draws) / _medians(b, draws)
    tail = _expanded_tail((1 - confidence) / 2, len(a))
    low, high = np.quantile(ratios, (tail, 1 - tail))
    ratio = float(np.median(a) / np.median(b))
    return Speedup(ratio, float(low), float(high), confidence)


def _medians(blocks: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Median over all samples of the drawn blocks: blocks (B, k), draws (D, B) -> (D,)."""
    step = max(1, _CHUNK // blocks.size)
    parts = [
        np.median(blocks[draws[i : i + step]].reshape(-1, blocks.size), axis=1)
        for i in range(0, len(draws), step)
    ]
    return np.concatenate(parts)


def _expanded_tail(tail: float, n: int) -> float:
    """The percentile to read so that the interval of n blocks covers as much as it claims."""
    return NormalDist().cdf(math.sqrt(n / (n - 1)) * _student_quantile(tail, n - 1))


def _student_quantile(p: float, freedom: int) -> float:
    """Quantile of Student's t, by the expansion of Cornish and Fisher in 1 / freedom."""
    z = NormalDist().inv_cdf(p)
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3
