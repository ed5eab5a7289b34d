"""The statistics of a comparison on samples whose truth is known; no test here looks at a clock."""

import numpy as np
import pytest
import scipy.stats

from modelmill.latency import Latency, Speedup, compare
from modelmill.latency.compare import _expanded_tail, _student_quantile


def pair(random, blocks, ratio):
    """Two sides that share the drift of the machine, with noise of their own on every scale."""
    drift = np.cumsum(random.normal(0, 0.02, blocks))
    sides = []
    for scale in (ratio, 1.0):
        level = scale * np.exp(drift + random.normal(0, 0.02, blocks))
        times = level[:, None] * (1 + np.abs(random.normal(0, 0.1, (blocks, 8))))
        sides.append(Latency(tuple(map(tuple, times)), threads=1, batch=1))
    return sides


def test_equal_sides_are_rarely_called_different():
    random = np.random.default_rng(0)
    found = [compare(*pair(random, 20, 1.0), seed=i) for i in range(100)]
    wrong = sum(not s.low <= 1 <= s.high for s in found)
    assert wrong <= 11  # 95 % intervals: 5 expected, 11 is the 99th percentile
    assert sum(s.verdict != "no significant difference" for s in found) <= wrong


def test_the_interval_covers_the_true_ratio():
    random = np.random.default_rng(1)
    found = [compare(*pair(random, 20, 1.7), seed=i) for i in range(100)]
    assert sum(not s.low <= 1.7 <= s.high for s in found) <= 11


def test_ten_percent_is_found():
    random = np.random.default_rng(2)
    for i in range(20):
        assert compare(*pair(random, 20, 1.1), seed=i).verdict == "faster"
        assert compare(*pair(random, 20, 1 / 1.1), seed=i).verdict == "slower"


def test_the_ratio_is_that_of_the_medians_and_the_seed_decides_the_rest():
    a, b = pair(np.random.default_rng(3), 8, 1.3)
    one = compare(a, b, seed=5)
    assert one.ratio == a.p50_ms / b.p50_ms
    assert one == compare(a, b, seed=5) and one != compare(a, b, seed=6)
    assert one.low < one.ratio < one.high
    back = compare(b, a, seed=5)
    assert (back.low, back.high) == pytest.approx((1 / one.high, 1 / one.low))


def test_common_drift_is_no_difference():
    """A machine that slows down by half during the measurement slows both sides."""
    random = np.random.default_rng(4)
    drift = np.linspace(1.0, 1.5, 20)[:, None]
    a, b = (
        Latency(tuple(map(tuple, drift * (1 + 0.01 * random.random((20, 9))))), 1, 1) for _ in "ab"
    )
    found = compare(a, b)
    assert 0.98 < found.low <= 1 <= found.high < 1.02


def test_a_verdict_needs_more_than_the_margin():
    assert Speedup(1.005, 1.004, 1.006).verdict == "no significant difference"
    assert Speedup(0.995, 0.994, 0.996).verdict == "no significant difference"
    assert Speedup(1.005, 1.004, 1.006, margin=0.0).verdict == "faster"
    assert Speedup(1.03, 1.011, 1.05).verdict == "faster"
    assert Speedup(0.97, 0.95, 0.989).verdict == "slower"


def test_sides_that_do_not_belong_together():
    with pytest.raises(ValueError, match="3 and 2 blocks"):
        compare(Latency(((1.0,),) * 3, 1, 1), Latency(((1.0,),) * 2, 1, 1))
    with pytest.raises(ValueError, match="at least two"):
        compare(Latency(((1.0,),), 1, 1), Latency(((1.0,),), 1, 1))


@pytest.mark.parametrize("freedom", [4, 9, 19, 99])
@pytest.mark.parametrize("p", [0.005, 0.025, 0.05])
def test_students_quantile(p, freedom):
    assert _student_quantile(p, freedom) == pytest.approx(scipy.stats.t.ppf(p, freedom), rel=0.015)


@pytest.mark.parametrize("n", [5, 10, 20, 100])
def test_expanded_tail(n):
    wider = scipy.stats.t.ppf(0.025, n - 1) * np.sqrt(n / (n - 1))
    assert _expanded_tail(0.025, n) == pytest.approx(scipy.stats.norm.cdf(wider), rel=0.03)
    assert _expanded_tail(0.025, n) < 0.025
