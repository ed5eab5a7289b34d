"""The front is that of all combinations."""

import itertools

import numpy as np
import pytest

from modelmill.search.allocate import Option, cheapest, front


def items(seed, n, options, whole=False):
    rng = np.random.default_rng(seed)
    draw = (lambda: float(rng.integers(-3, 6))) if whole else (lambda: float(rng.normal()))
    return [[Option(draw(), abs(draw())) for _ in range(options)] for _ in range(n)]


def every(given):
    """(cost, noise) of all combinations."""
    return [
        (sum(o.cost for o in chosen), sum(o.noise for o in chosen))
        for chosen in itertools.product(*given)
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("whole", [False, True], ids=["reals", "ties"])
def test_the_front_is_that_of_all_combinations(seed, whole):
    given = items(seed, 6, 4, whole)
    found = front(given)
    points = every(given)
    best = sorted(
        {
            (c, n)
            for c, n in points
            if not any((a <= c and b < n) or (a < c and b <= n) for a, b in points)
        }
    )
    np.testing.assert_allclose([(a.cost, a.noise) for a in found], best, atol=1e-12)
    for a in found:
        chosen = [options[pick] for options, pick in zip(given, a.picks, strict=True)]
        assert a.cost == pytest.approx(sum(o.cost for o in chosen))
        assert a.noise == pytest.approx(sum(o.noise for o in chosen))


@pytest.mark.parametrize("seed", range(3))
def test_the_cheapest_within_a_limit(seed):
    given = items(seed, 5, 4)
    points, found = every(given), front(given)
    for limit in np.quantile([n for _, n in points], (0.1, 0.5, 0.9)):
        want = min(c for c, n in points if n <= limit)
        assert cheapest(found, limit).cost == pytest.approx(want)
    assert cheapest(found, -1.0) is None


def test_few_states_lose_little_and_stay_true():
    """60 items: what is thinned costs at most a slot per item more than the exact front."""
    given = items(0, 60, 5)
    exact, thin = front(given, 10**5), front(given, 500)
    assert len(thin) <= 502 < len(exact)
    reach = exact[-1].cost - exact[0].cost
    for limit in (exact[len(exact) // 4].noise, exact[len(exact) // 2].noise):
        best, near = cheapest(exact, limit), cheapest(thin, limit)
        assert best.cost <= near.cost <= best.cost + 60 * reach / 500
        assert sum(given[i][p].noise for i, p in enumerate(near.picks)) <= limit


def test_what_is_wrong_is_refused():
    assert front([])[0].picks == ()
    with pytest.raises(ValueError, match="options"):
        front([[]])
    with pytest.raises(ValueError, match="finite"):
        front([[Option(float("nan"), 0.0)]])
