"""Ranges from statistics, judged by true errors on the data itself."""

import numpy as np
import pytest
import torch

from modelmill.numerics import QuantSpec, choose_encoding
from modelmill.quant.observe import Observer
from modelmill.quant.ranges import METHODS, choose_range

U8 = QuantSpec(8, signed=False, symmetric=False)
S8 = QuantSpec(8)


def statistics(*parts):
    observer = Observer()
    for part in parts:
        observer.update(torch.from_numpy(np.asarray(part, np.float32)))
    return observer.statistics()


def squared_error(x, spec, ends, weight=1.0):
    error = (choose_encoding(spec, *ends).fake(x) - x).astype(np.float64) ** 2
    return float((error * np.where(x < 0, weight, 1.0)).sum())


def data(kind, n=4000):
    rng = np.random.default_rng(0)
    x = {
        "gauss": rng.normal(size=n), "laplace": rng.laplace(size=n),
        "student": rng.standard_t(3, n), "relu": np.maximum(rng.standard_t(3, n), 0),
        "negative": -np.abs(rng.standard_t(3, n)),
    }[kind]  # fmt: skip
    return x.astype(np.float32)


@pytest.mark.parametrize("kind", ["gauss", "laplace", "student", "relu", "negative"])
def test_minmax_is_exact(kind):
    x = data(kind)
    ends = min(x.min(), 0), max(x.max(), 0)
    assert choose_range("minmax", statistics(x[:100], x[100:]), U8) == ends


@pytest.mark.parametrize("kind", ["laplace", "student", "relu", "negative"])
@pytest.mark.parametrize("spec", [U8, S8, QuantSpec(4, False, False)], ids=str)
def test_mse_beats_minmax_on_heavy_tails(kind, spec):
    x = data(kind)
    s = statistics(x)
    mse, minmax = (squared_error(x, spec, choose_range(m, s, spec)) for m in ("mse", "minmax"))
    assert mse <= minmax * (1 if spec.bits == 8 else 0.8)


@pytest.mark.parametrize("kind", ["gauss", "laplace", "student", "relu"])
def test_mse_is_near_the_best_there_is(kind):
    """Against a search over the data, which no histogram stands between."""
    x = data(kind)
    low, high = min(x.min(), 0), x.max()
    shares = np.linspace(0.1, 1, 19)
    best = min(squared_error(x, U8, (low * a, high * b)) for a in shares for b in shares)
    assert squared_error(x, U8, choose_range("mse", statistics(x), U8)) <= 1.05 * best


def test_negative_errors_that_matter_less():
    """Behind a LeakyReLU: the weighted error is smaller, the codes go to the positive side."""
    x = data("student")
    s = statistics(x)
    plain = choose_range("mse", s, U8)
    leaky = choose_range("mse", s, U8, negative_weight=0.01)
    assert leaky[0] > plain[0]
    assert squared_error(x, U8, leaky, 0.01) < squared_error(x, U8, plain, 0.01)


def test_percentile_ignores_a_planted_outlier():
    x = np.random.default_rng(0).uniform(-1, 1, (40, 5000)).astype(np.float32)
    whole = x.ravel()  # one element in 200,000 lies outside: the percentile is 99.999
    observer = Observer()
    observer.update(torch.from_numpy(whole.reshape(-1, 100)))
    observer.update(torch.tensor([20.0]))
    s = observer.statistics()
    assert choose_range("minmax", s, U8) == (whole.min(), 20)
    low, high = choose_range("percentile", s, U8)
    assert -1.05 < low < -0.9 and 0.9 < high < 1.05


def test_kl_clips_an_outlier_of_a_gaussian():
    x = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    low, high = choose_range("kl", statistics(x, [60.0]), U8)
    assert 1.0 < high < 20 and -4 <= low < 0
    assert choose_range("kl", statistics(x), U8)[1] <= x.max()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("x", [[0, 0], [3, 3, 3], [-2, -2], [1e-30, 1e30], [0.5]], ids=str)
def test_odd_tensors_have_ranges_too(method, x):
    low, high = choose_range(method, statistics(x), U8)
    assert min(min(x), 0) * 1.001 <= low <= 0 <= high <= max(max(x), 0) * 1.001
    choose_encoding(U8, low, high)


@pytest.mark.parametrize("method", METHODS)
def test_a_range_scales_with_its_data(method):
    x = data("student")
    one, other = (
        choose_range(method, statistics(x), U8),
        choose_range(method, statistics(x * 8), U8),
    )
    np.testing.assert_allclose(np.array(one) * 8, other, rtol=1e-5)


def test_unknown_method():
    with pytest.raises(ValueError, match="Choices: minmax, percentile, mse, kl"):
        choose_range("best", statistics([1.0]), U8)
