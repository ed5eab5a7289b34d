"""The paired tests against scipy, algebra and simulation; the whole on real engines."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from modelmill.line.compare import bootstrap, compare, mcnemar


def sides(both, lost, won, neither):
    """Who was right on which image, from the four cells of the table."""
    reference = [True] * both + [True] * lost + [False] * won + [False] * neither
    candidate = [True] * both + [False] * lost + [True] * won + [False] * neither
    return np.array(reference, bool), np.array(candidate, bool)


@given(st.integers(0, 400), st.integers(0, 60), st.integers(0, 60), st.integers(1, 100))
@settings(max_examples=60, deadline=None)
def test_p_is_that_of_the_binomial_test(both, lost, won, neither):
    found = mcnemar(*sides(both, lost, won, neither))
    expected = binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert found.p == pytest.approx(expected, rel=1e-9)
    n = both + lost + won + neither
    assert found.difference == (won - lost) / n
    assert (found.only_reference, found.only_candidate) == (lost, won)
    assert -1 <= found.low <= found.difference <= found.high <= 1
    mirrored = mcnemar(*reversed(sides(both, lost, won, neither)))
    assert (mirrored.low, mirrored.high) == (-found.high, -found.low)


def test_a_large_table_is_exact_and_quick():
    found = mcnemar(*sides(7000, 1400, 1600, 0))
    assert found.p == pytest.approx(binomtest(1400, 3000).pvalue, rel=1e-9)


@pytest.mark.parametrize(
    ("lost", "won", "verdict"),
    [
        (0, 0, "no significant difference"),
        (5, 0, "no significant difference"),  # 2 / 2^5 = 0.0625
        (6, 0, "worse"),  # 2 / 2^6 = 0.03125
        (0, 6, "better"),
        (40, 40, "no significant difference"),
    ],
)
def test_verdicts(lost, won, verdict):
    assert mcnemar(*sides(100, lost, won, 5)).verdict == verdict


@pytest.mark.parametrize("n", [60, 400])
def test_the_interval_covers_what_it_claims(n):
    """95 % nominal; 1,000 draws of a known table have a standard error of 0.7 points."""
    rng = np.random.default_rng(0)
    cells = rng.multinomial(n, [0.8, 0.08, 0.05, 0.07], 1000)
    hits = 0
    for both, lost, won, neither in cells:
        found = mcnemar(*sides(both, lost, won, neither))
        hits += found.low <= -0.03 <= found.high
    assert 0.93 <= hits / 1000 <= 0.985


def test_bootstrap_of_a_mean_is_its_standard_error():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, 400), rng.normal(0.05, 1, 400)
    found = bootstrap(lambda i: a[i].mean(), lambda i: b[i].mean(), 400, seed=0)
    error = (b - a).std() / np.sqrt(400)
    assert (found.high - found.low) / 2 / 1.96 == pytest.approx(error, rel=0.15)
    assert found.difference == pytest.approx((b - a).mean())
    assert found == bootstrap(lambda i: a[i].mean(), lambda i: b[i].mean(), 400, seed=0)


def test_bootstrap_is_paired():
    """The same noise on both sides falls out; unpaired it would hide the difference."""
    rng = np.random.default_rng(2)
    a = rng.normal(0, 10, 300)
    b = a + rng.normal(0.1, 0.1, 300)
    found = bootstrap(lambda i: a[i].mean(), lambda i: b[i].mean(), 300, seed=0)
    assert found.verdict == "better" and found.p < 1e-6


def test_bootstrap_of_equals():
    same = np.arange(50.0)
    found = bootstrap(lambda i: same[i].mean(), lambda i: same[i].mean(), 50, seed=0)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.verdict == "no significant difference"


def test_the_number_of_draws_bounds_the_time():
    calls = []
    bootstrap(lambda i: calls.append(len(i)) or 0.0, lambda i: 0.0, 10_000, seed=0)
    assert len(calls) == 51 and set(calls) == {10_000}


def test_on_an_engine(tiny, make_tiny, tmp_path):
    other = make_tiny(tmp_path, hair=True)
    found = compare(tiny.model, other.model, tiny.data, "ort_cpu", limit=50)
    assert found.metric == "top1" and found.reference.score.n == 50
    assert found.reference.score.value == 1.0 and found.paired.verdict == "worse"
    assert found.paired.only_candidate == 0 and not found.accepted
    data = json.loads(json.dumps(found.to_json()))
    assert data["verdict"] == "worse" and data["reference"]["value"] == 1.0


def test_another_metric_takes_the_bootstrap(tiny, make_tiny, tmp_path):
    """McNemar's test is of top-1 alone."""
    other = make_tiny(tmp_path, hair=True)
    card = json.loads(tiny.card.read_text())
    (tmp_path / "card.json").write_text(json.dumps({**card, "metric": "top5"}))
    found = compare(
        tiny.model, other.model, tiny.data, ["ort_cpu", "openvino_cpu"],
        card=tmp_path / "card.json", limit=20,
    )  # fmt: skip
    assert found.metric == "top5" and "bootstrap" in found.paired.test
    assert found.candidate.runtime == "openvino" and found.paired.difference == 0


def test_models_of_different_tasks(tiny, demo_build):
    with pytest.raises(ValueError, match="only models of one task"):
        compare(tiny.model, demo_build / "digits.onnx", tiny.data, "ort_cpu")


def test_cards_that_ask_for_different_metrics(tiny, make_tiny, tmp_path):
    other = make_tiny(tmp_path)
    card = json.loads(other.card.read_text())
    other.card.write_text(json.dumps({**card, "metric": "top5"}))
    with pytest.raises(ValueError, match="top1 and top5"):
        compare(tiny.model, other.model, tiny.data, "ort_cpu")


@pytest.mark.parametrize("targets", [(), ("ort_cpu", "openvino_cpu", "ort_cpu")])
def test_one_engine_or_two(tiny, targets):
    with pytest.raises(ValueError, match="name one engine"):
        compare(tiny.model, tiny.model, tiny.data, targets)
