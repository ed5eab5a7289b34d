"""Histograms that grow: no count is lost, memory stays."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelmill import ir
from modelmill.quant.observe import BINS, SAMPLES, Observer, merge, observe

numbers = st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=False)
tensors = hnp.arrays(np.float32, st.integers(1, 40), elements=numbers)


@given(st.lists(tensors, min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_every_element_is_counted_once(parts):
    observer = Observer()
    for part in parts:
        observer.update(torch.from_numpy(part))
    s, whole = observer.statistics(), np.concatenate(parts)
    assert (s.low, s.high) == (whole.min(), whole.max())
    assert s.edges[0] <= min(s.low, 0) and s.edges[1] >= max(s.high, 0)
    assert (s.counts >= 0).all()
    assert s.counts.sum() + s.zeros == whole.size
    assert s.zeros == (whole == 0).sum()


@given(st.lists(st.integers(-4000, 4000), min_size=1, max_size=200), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_counts_after_growth_are_those_of_the_final_edges(values, cuts):
    """The edges are multiples of 1/64, before and after growing; no element lies on one."""
    observer = Observer(bins=128)
    observer.update(torch.tensor([-1.0, 1.0]))
    observer.statistics()  # counts what waits, so that the next part finds these edges
    x = (2 * np.array(values, np.float32) + 1) / 128
    for part in np.array_split(x, cuts):
        observer.update(torch.from_numpy(part))
        observer.statistics()
    s = observer.statistics()
    want = np.histogram(x, 128, s.edges)[0] + np.histogram([-0.99, 0.99], 128, s.edges)[0]
    np.testing.assert_array_equal(s.counts, want)


def test_the_first_range_that_is_only_zeros():
    observer = Observer()
    observer.update(torch.zeros(7))
    assert observer.statistics().edges == (0, 0) and observer.statistics().zeros == 7
    observer.update(torch.tensor([0.0, 2.0, -1.0]))
    s = observer.statistics()
    assert (s.low, s.high, s.zeros, s.counts.sum()) == (-1, 2, 8, 2)


def test_zeros_weigh_what_other_elements_weigh():
    """A large tensor is sampled, whether or not all of it is zero."""
    observer = Observer()
    observer.update(torch.zeros(2, 10 * SAMPLES))
    observer.update(torch.ones(2, 10 * SAMPLES))
    s = observer.statistics()
    assert s.zeros == pytest.approx(s.counts.sum(), rel=1e-3)


def test_an_observer_that_saw_nothing():
    observer = Observer()
    observer.update(torch.zeros(0, 4))
    s = observer.statistics()
    assert (s.low, s.high, s.zeros, s.counts.sum()) == (0, 0, 0, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        Observer().update(torch.tensor([1.0, bad]))


def test_a_sample_has_the_shape_of_the_whole():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 8, 64, 64)).astype(np.float32) * np.arange(1, 9).reshape(8, 1, 1)
    observer = Observer()
    observer.update(torch.from_numpy(x))
    s = observer.statistics()
    assert (s.low, s.high) == (x.min(), x.max())  # ranges see every element
    assert SAMPLES / 2 <= s.counts.sum() <= x.size / 4
    std = np.sqrt((s.counts * s.centers**2).sum() / s.counts.sum())
    assert std == pytest.approx(x.std(), rel=0.05)


def test_memory_does_not_grow_with_the_images(net):
    rng = np.random.default_rng(0)

    def many(n):
        return [{"x": rng.normal(size=(4, 3, 8, 8)).astype(np.float32)} for _ in range(n)]

    def size(found):
        return sum(s.counts.nbytes for s in found.values())

    few, lots = observe(net, ["x", "r1"], many(1)), observe(net, ["x", "r1"], many(20))
    assert size(few) == size(lots) == 2 * BINS * 8


@given(st.lists(tensors, min_size=2, max_size=4))
@settings(max_examples=50, deadline=None)
def test_merged_statistics(parts):
    found = []
    for part in parts:
        observer = Observer()
        observer.update(torch.from_numpy(part))
        found.append(observer.statistics())
    s, whole = merge(found), np.concatenate(parts)
    assert (s.low, s.high, s.zeros) == (whole.min(), whole.max(), (whole == 0).sum())
    assert s.counts.sum() == (whole != 0).sum()
    if s.edges[1] > s.edges[0]:  # every element moved by less than a bin
        width = (s.edges[1] - s.edges[0]) / BINS
        cumulated = np.cumsum(s.counts)
        ends = s.edges[0] + np.arange(1, BINS + 1) * width
        live = whole[whole != 0].astype(float)
        below = (live[None] <= ends[:, None] - 2 * width).sum(1)
        above = (live[None] <= ends[:, None] + 2 * width).sum(1)
        assert (below <= cumulated).all() and (cumulated <= above).all()


# ------------------------------------------------------------ over a graph


def test_ranges_are_those_of_onnx_runtime(net, batches, run):
    names = ["x", "c1", "r2", "s", "y"]
    found = observe(net, names, batches)
    for name in names:
        seen = np.concatenate([run(net, feeds, [name])[name].ravel() for feeds in batches])
        assert found[name].low == pytest.approx(seen.min(), rel=1e-4, abs=1e-6)
        assert found[name].high == pytest.approx(seen.max(), rel=1e-4)
        assert found[name].counts.sum() + found[name].zeros == seen.size


def test_progress_counts_images(net, batches):
    told = []
    observe(net, ["x"], batches, told.append)
    assert told == [8, 16, 24]


def test_no_image_is_refused(net):
    with pytest.raises(ValueError, match="at least one image"):
        observe(net, ["x"], [])


def test_the_value_that_overflows_is_named(graph_from_text):
    graph = graph_from_text("g (float[N,2] x) => (float[N,2] y) { e = Exp(x)  y = Relu(e) }")
    with pytest.raises(ValueError, match=r"value 'e' holds NaN or infinity.*card"):
        observe(graph, ["x", "e"], [{"x": np.full((1, 2), 1000, np.float32)}])


def test_the_graph_is_untouched(net, batches):
    before = ir.to_bytes(net)
    observe(net, ["c1"], batches)
    assert ir.to_bytes(net) == before
