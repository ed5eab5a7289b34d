"""A platform from few samples (complete, prior, transfer, select), on worlds known exactly.

Few models, of which fewer still tune the prior and carry it, as with a large table: these are drawn
and not all. The bounds are relative errors and shares, whatever the number of models.
"""

from collections.abc import Iterator

import numpy as np
import pytest
from scipy.stats import spearmanr

from modelmill.latency.complete import complete
from modelmill.latency.prior import Prior, learn
from modelmill.latency.select import choose, choose_prior
from modelmill.latency.transfer import Adapted, adapt, adapt_prior

PRICES = np.array(  # ms per unit of work: six known platforms, then a new one in their span
    [
        [1.0, 0.5, 0.2, 0.8],
        [2.0, 0.4, 0.6, 1.0],
        [0.5, 1.5, 0.3, 0.9],
        [1.5, 1.0, 1.2, 2.0],
        [0.7, 0.2, 0.9, 1.1],
        [1.1, 0.8, 0.8, 0.6],
    ]
)
NEW_PRICES = np.array([3.0, 1.2, 0.5, 2.0])


MODELS, TUNING, NYSTROM = 150, 75, 60


def amounts(models: int = MODELS, seed: int = 0) -> np.ndarray:
    """How often each of three operators occurs in a model."""
    return np.random.default_rng(seed).integers(0, 7, (models, 3)).astype(float)


def latencies(work_NF: np.ndarray, prices_PF: np.ndarray) -> np.ndarray:
    """Milliseconds, models by platforms: the last price is paid once per model."""
    return np.column_stack([work_NF, np.ones(len(work_NF))]) @ np.atleast_2d(prices_PF).T


WORK = amounts()
SOURCE = np.log(latencies(WORK, PRICES))
NEW = latencies(WORK, NEW_PRICES)[:, 0]


def error(adapted: Adapted, truth: np.ndarray = NEW) -> np.ndarray:
    return np.abs(np.exp(adapted.log_ms) / truth - 1)


def measured(rows: list[int], ms: np.ndarray = NEW) -> dict[int, float]:
    return {row: float(ms[row]) for row in rows}


@pytest.fixture(scope="module", autouse=True)
def a_part_of_the_models() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modelmill.latency.complete.TUNING_POINTS", TUNING)
        patch.setattr("modelmill.latency.prior.NYSTROM_POINTS", NYSTROM)
        yield


@pytest.fixture(scope="module")
def prior(a_part_of_the_models: None) -> Prior:
    return learn(WORK, SOURCE)


def test_a_platform_that_mixes_the_known_ones_is_recovered_in_milliseconds() -> None:
    found = adapt(WORK, SOURCE, measured(choose(WORK, SOURCE, 10)))
    assert error(found).mean() < 0.02
    assert spearmanr(found.log_ms, NEW)[0] > 0.998


def test_holes_in_the_known_tables_do_not_matter() -> None:
    holes = SOURCE.copy()
    holes[np.random.default_rng(1).random(holes.shape) < 0.5] = np.nan
    found = adapt(WORK, holes, measured(choose(WORK, holes, 10)))
    assert error(found).mean() < 0.03


def test_one_measurement_gone_wrong_is_survived(prior: Prior) -> None:
    rows = choose_prior(prior, 10)
    for row in rows:
        for factor in (1e-3, 5.0):
            samples = measured(rows)
            samples[row] *= factor
            found = adapt_prior(prior, samples)
            assert error(found).mean() < 0.15
            assert spearmanr(found.log_ms, NEW)[0] > 0.97


def test_the_interval_covers_and_widens_with_the_noise(prior: Prior) -> None:
    random = np.random.default_rng(3)
    rows = choose_prior(prior, 32)
    calm = adapt_prior(prior, measured(rows))
    noisy = NEW * np.exp(0.1 * random.standard_normal(len(NEW)))
    loud = adapt_prior(prior, measured(rows, noisy))
    inside = np.abs(np.log(noisy) - loud.log_ms) < 1.645 * loud.spread
    assert 0.8 < inside.mean() <= 0.99
    assert np.median(loud.spread) > 2 * np.median(calm.spread)


def test_one_known_platform_is_enough() -> None:
    found = adapt(WORK, SOURCE[:, :1], measured(choose(WORK, SOURCE[:, :1], 16)))
    assert error(found).mean() < 0.1


def test_the_same_seed_gives_the_same_answer() -> None:
    rows = choose(WORK, SOURCE, 10, seed=4)
    assert rows == choose(WORK, SOURCE, 10, seed=4)
    one, two = (adapt(WORK, SOURCE, measured(rows), seed=4) for _ in range(2))
    assert (one.log_ms == two.log_ms).all() and (one.spread == two.spread).all()


@pytest.mark.parametrize(
    ("samples", "word"),
    [
        ({0: 1.0}, "at least 2"),
        ({0: 1.0, MODELS: 1.0}, f"0..{MODELS - 1}"),
        ({0: 1.0, 7: 0.0}, "row 7"),
        ({0: 1.0, 7: float("nan")}, "row 7"),
    ],
)
def test_bad_samples_are_named(prior: Prior, samples: dict[int, float], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        adapt_prior(prior, samples)


def test_bad_tables_are_named() -> None:
    empty = SOURCE.copy()
    empty[:, 2] = np.nan
    for work, source, word in (
        (WORK[:5], SOURCE, "one row per model"),
        (-WORK, SOURCE, ">= 0"),
        (WORK, empty, "without any measured model"),
        (WORK, SOURCE[:, :0], "at least one platform"),
        (WORK, np.where(SOURCE[0, 0] == SOURCE, -np.inf, SOURCE), "measure it again"),
    ):
        with pytest.raises(ValueError, match=word):
            learn(work, source)


def test_sums_of_work_are_completed() -> None:
    work = amounts()
    truth = latencies(work, PRICES)
    holes = truth.copy()
    holes[np.random.default_rng(1).random(truth.shape) < 0.5] = np.nan
    assert np.abs(complete(work, holes) / truth - 1).max() < 0.02


def test_what_two_platforms_see_is_kept_and_noise_is_not() -> None:
    random = np.random.default_rng(2)
    work = amounts()
    clean = latencies(work, PRICES[:3])
    hidden = np.exp(0.1 * random.standard_normal((len(work), 1)))  # the features do not say
    seen = complete(work, clean * hidden)
    assert np.median(np.abs(seen / (clean * hidden) - 1)) < 0.01
    noisy = clean * np.exp(0.1 * random.standard_normal(clean.shape))
    smooth = complete(work, noisy)
    error = np.abs(np.log(smooth / clean)).mean()
    assert error < 0.5 * np.abs(np.log(noisy / clean)).mean()


def test_chosen_models_tell_more_than_random_ones() -> None:
    """Few models contain the third operator, and only on the new platform is it dear."""
    random = np.random.default_rng(0)
    work = amounts()
    work[:, 2] *= random.random(len(work)) < 0.15
    prices = PRICES
    prior = learn(work, np.log(latencies(work, prices)))
    truth = latencies(work, NEW_PRICES * np.array([1, 1, 4, 1]))[:, 0]

    def error(rows: list[int]) -> float:
        found = adapt_prior(prior, {row: float(truth[row]) for row in rows})
        return float(np.abs(np.exp(found.log_ms) / truth - 1).mean())

    chosen = [error(choose_prior(prior, 8, seed)) for seed in range(5)]
    drawn = [error([int(r) for r in random.permutation(len(work))[:8]]) for _ in range(20)]
    assert np.mean(chosen) < 0.7 * np.mean(drawn)


def test_every_row_once_and_in_order() -> None:
    work = amounts(50)
    source = np.log(latencies(work, PRICES))
    prior = learn(work, source)
    rows = choose_prior(prior, 50)
    assert sorted(rows) == list(range(50))
    assert choose(work, source, 5) == rows[:5]


@pytest.mark.parametrize("count", [0, 51])
def test_an_impossible_count_is_refused(count: int) -> None:
    work = amounts(50)
    with pytest.raises(ValueError, match=r"1\.\.50"):
        choose(work, np.log(latencies(work, PRICES)), count)
