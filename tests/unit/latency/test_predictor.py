"""The predictor in a world whose latencies are known: chains of layers, and what each costs."""

import dataclasses
from functools import cache

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("torch_geometric")

from modelmill.latency import gnn, predictor
from modelmill.latency.features import COLUMNS, features
from modelmill.latency.gnn_train import train
from modelmill.latency.kernels import fit_kernels
from modelmill.latency.predictor import Effort, UnknownOperatorError, fit, from_bytes
from modelmill.latency.profile import Shares
from modelmill.latency.regress import fit_line, fit_trees
from modelmill.latency.residuals import krige, space
from modelmill.latency.table import Table, errors, folds
from modelmill.latency.zoo.net import Net
from modelmill.records.measurement import Platform

PLATFORMS = [Platform("here", "1", "cpu", "avx2"), Platform("there", "1", "cpu", "avx2")]
NOISE = 0.02  # standard deviation of a logarithm


def chain(random, width=(8, 65), depth=(2, 7), pixels=(16, 32, 48)):
    """The features of a random chain of convolutions, poolings and a matrix product."""
    return features(chain_graph(random, width, depth, pixels))


def chain_graph(random, width=(8, 65), depth=(2, 7), pixels=(16, 32, 48), activation="relu"):
    net = Net(int(random.choice(pixels)))
    x = net.input
    for _ in range(random.integers(*depth)):
        kernel = int(random.choice([1, 3, 5]))
        x = net.conv(x, int(random.integers(*width)), kernel, int(random.integers(1, 3)))
        x = net.activation(x, activation)
        if x.size >= 8 and random.random() < 0.3:
            x = net.max_pool(x, 2, 2)
    return net.graph("chain", net.linear(net.flatten(net.global_pool(x)), 10), random)


def truth(found):
    """(2,) log ms: MACs rounded up to whole vectors of channels, plus bytes, plus a fixed cost per
    kernel and model; activations inside a kernel are free.
    """
    macs = found.macs * 2.0 ** found.x[:, COLUMNS.index("cout_pad16")]
    head = found.x[:, COLUMNS.index("fused")] == 0
    here = macs / 2e7 + found.traffic / 2e7 * head + 0.004 * head
    there = macs / 6e7 + found.traffic / 1e7 * head + 0.002 * head
    return np.log([here.sum() + 0.01, there.sum() + 0.02])


def world(random, count, **shape):
    graphs = tuple(chain(random, **shape) for _ in range(count))
    log_ms = np.array([truth(g) for g in graphs]) + NOISE * random.standard_normal((count, 2))
    names = tuple(f"chain-{i}" for i in range(count))
    families = tuple("abcd"[i % 4] for i in range(count))
    return Table(graphs, log_ms, tuple(p.name for p in PLATFORMS), names, families, names)


SMALL = Effort(folds=4, groups=0, settings=gnn.Settings(width=24, steps=250, models=32))


@cache
def fitted():
    return fit(world(np.random.default_rng(0), 160), PLATFORMS, SMALL)


def test_it_learns_the_world_on_both_platforms():
    random = np.random.default_rng(1)
    graphs = [chain(random) for _ in range(100)]
    found = fitted().log_ms_of(graphs)
    right = np.array([truth(g) for g in graphs])
    for column in range(2):
        off = errors(found[:, column], right[:, column])
        assert off.mape < 0.04
        assert off.within > 0.93
    assert all(e.mape < 0.05 for e in fitted().errors)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_an_engine_told_of_its_kernels_is_learned(seed):
    """Models that are all alike: their sums say nothing of who took how much."""
    few = world(np.random.default_rng(7), 8).at([0] * 8)
    graph = few.graphs[0]
    costs = np.bincount(graph.kernels, graph.macs / 2e7 + 0.004)
    costs *= np.random.default_rng(seed).uniform(0.5, 2.0, len(costs))
    told = Shares(graph.kernels, costs / costs.sum())
    few = dataclasses.replace(few, profiles=((told, None),) * 8)
    found = train(few, gnn.Settings(width=24, steps=300)).unit_ms(graph)
    here, there = (np.bincount(graph.kernels, ms) / ms.sum() for ms in found.T)
    np.testing.assert_allclose(here, told.parts, atol=0.02)
    assert np.abs(there - told.parts).max() > 0.05


def test_intervals_cover_nine_of_ten():
    random = np.random.default_rng(2)
    covered = []
    for _ in range(150):
        graph = chain(random)
        for platform, log_ms in zip(PLATFORMS, truth(graph), strict=True):
            answer = fitted().predict(graph, platform)
            ms = np.exp(log_ms + NOISE * random.standard_normal())
            covered.append(answer.low_ms <= ms <= answer.high_ms)
            assert answer.low_ms < answer.p50_ms < answer.high_ms
    # 300 answers, of which pairs are not independent: three standard deviations of 150 are 0.073;
    # the quantile itself was taken from 160 held-out models, which adds as much again.
    assert 0.80 <= np.mean(covered) <= 0.98


def test_far_from_all_that_was_measured_intervals_grow_and_trust_ends():
    random = np.random.default_rng(3)
    near = [fitted().predict(chain(random), PLATFORMS[0]) for _ in range(30)]
    far = [
        fitted().predict(chain(random, (300, 500), (12, 16), (128,)), PLATFORMS[0])
        for _ in range(10)
    ]
    widths = [np.median([p.high_ms / p.low_ms for p in group]) for group in (near, far)]
    assert widths[1] > widths[0]
    assert sum(p.trusted for p in near) >= 27
    assert not any(p.trusted for p in far)
    assert "unlike all measured models" in far[0].why
    assert near[0].nearest[0].distance <= near[0].nearest[-1].distance
    assert len(near[0].nearest) == 5


def test_an_operator_that_was_never_measured_is_refused_by_name():
    graph = chain_graph(np.random.default_rng(4), activation="hardswish")
    with pytest.raises(
        UnknownOperatorError, match=r"HardSwish: never measured on here float.*query"
    ):
        fitted().predict(graph, PLATFORMS[0])
    assert np.isnan(fitted().log_ms_of([features(graph)])).all()


def test_an_unknown_platform_lists_those_there_are():
    other = dataclasses.replace(PLATFORMS[0], precision="w8a8")
    with pytest.raises(ValueError, match=r"here w8a8.*learned: here float.*there float"):
        fitted().predict(chain(np.random.default_rng(5)), other)


def test_bytes_come_back_and_the_same_seed_gives_the_same():
    data = fitted().to_bytes()
    back = from_bytes(data)
    assert back.to_bytes() == data
    graph = chain(np.random.default_rng(6))
    assert back.predict(graph, PLATFORMS[1]) == fitted().predict(graph, PLATFORMS[1])
    quick = dataclasses.replace(SMALL, settings=gnn.Settings(width=8, steps=5, models=16))
    table = world(np.random.default_rng(7), 24)
    again = [fit(table, PLATFORMS, quick, seed).to_bytes() for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]


@pytest.mark.parametrize("damage", [lambda d: b"PK" + d, lambda d: d[:-40]])
def test_bytes_that_are_no_predictor(damage):
    with pytest.raises(ValueError, match=r"predictor.*modelmill latency fit"):
        from_bytes(damage(fitted().to_bytes()))


def test_too_little_to_learn_from():
    with pytest.raises(ValueError, match=r"here float: 11 measured models.*latency measure"):
        fit(world(np.random.default_rng(8), 11), PLATFORMS, SMALL)


def test_whole_families_left_out_and_gaps_in_the_table():
    table = world(np.random.default_rng(9), 60)
    table.log_ms[::3, 1] = np.nan
    effort = Effort(folds=4, groups=2, settings=gnn.Settings(width=8, steps=30, models=16))
    found = fit(table, PLATFORMS, effort)
    assert [e.n for e in found.errors] == [60, 40]
    assert all(np.isfinite(q) for q in found.interval.quantiles)


def test_a_platform_of_few_measurements_leans_on_the_others(monkeypatch):
    """There is three times as fast as here, which the other method sees at once and twelve models
    do not teach the networks: their error is about halved.
    """
    whole = world(np.random.default_rng(10), 60)
    whole.log_ms[:, 1] = whole.log_ms[:, 0] - np.log(3)
    table = dataclasses.replace(whole, log_ms=whole.log_ms.copy())
    table.log_ms[12:, 1] = np.nan
    effort = Effort(folds=4, groups=0, settings=gnn.Settings(width=8, steps=60, models=16))
    off = []
    for few in (0, 50):
        monkeypatch.setattr(predictor, "FEW", few)
        found = fit(table, PLATFORMS, effort).log_ms_of(table.graphs[12:])[:, 1]
        off.append(errors(found, whole.log_ms[12:, 1]).mape)
    alone, leaning = off
    assert leaning < 0.75 * alone


def test_neighbours_are_those_of_torch_geometric():
    import torch
    from torch_geometric.nn import SAGEConv

    random = np.random.default_rng(10)
    h, edges = random.normal(size=(7, 4)).astype(np.float32), random.integers(0, 6, (2, 9))
    layer = SAGEConv(4, 4, bias=False, root_weight=False)
    with torch.no_grad():
        layer.lin_l.weight.copy_(torch.eye(4))
        both = torch.from_numpy(np.concatenate([edges, edges[::-1]], axis=1))
        expected = layer(torch.from_numpy(h), both).numpy()
    np.testing.assert_allclose(gnn._neighbours(h, edges), expected, rtol=1e-5, atol=1e-6)


def test_the_simple_ones_learn_it_less_well():
    table, test = world(np.random.default_rng(11), 160), world(np.random.default_rng(12), 60)
    mape = {
        "line": errors(fit_line(table).log_ms(test.graphs), test.log_ms).mape,
        "trees": errors(fit_trees(table).log_ms(test.graphs), test.log_ms).mape,
        "kernels": errors(fit_kernels(table).log_ms(test.graphs), test.log_ms).mape,
        "all the same": errors(np.full((60, 2), table.log_ms.mean(axis=0)), test.log_ms).mape,
    }
    assert max(mape["line"], mape["trees"], mape["kernels"]) < 0.5 * mape["all the same"]
    assert errors(fitted().log_ms_of(test.graphs), test.log_ms).mape < mape["line"]


def test_kriging_takes_back_what_similar_models_share():
    table = world(np.random.default_rng(13), 80)
    place = space(table.graphs)
    smooth = 0.2 * np.tanh(place.points[:, 0])
    correction, left = krige(place, smooth)
    assert np.abs(left).mean() < 0.5 * np.abs(smooth).mean()
    assert correction(np.full(80, 1e3)) == pytest.approx(0, abs=1e-6)
    brute = [
        krige(place, np.where(np.arange(80) == i, np.nan, smooth))[0](
            place.distances(place.points[i])
        )
        for i in (3, 40)
    ]
    np.testing.assert_allclose(smooth[[3, 40]] - brute, left[[3, 40]], atol=0.02)


def test_folds_hold_of_every_family():
    table = world(np.random.default_rng(15), 48)
    fold = folds(table, 4, 0)
    for k in range(4):
        assert sorted(np.array(table.families)[fold == k]) == sorted("abcd" * 3)


def test_errors_by_hand():
    found = errors(np.log([1.09, 2.4, np.nan]), np.log([1.0, 2.0, 3.0]))
    assert (found.mape, found.within, found.n) == (pytest.approx(0.145), 0.5, 2)
