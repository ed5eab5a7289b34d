"""Protection: a layer that spoils the whole stays float, and only that."""

import numpy as np
import pytest

from modelmill import executor, ir
from modelmill.ir import Plan, Point
from modelmill.numerics import QuantSpec
from modelmill.quant.calibrate import Calibrate
from modelmill.quant.observe import CEILING_DB
from modelmill.quant.protect import Protect, output_sqnr

U8 = QuantSpec(8, signed=False, symmetric=False)


def chain(graph_from_text, bad):
    """Four 1x1 convolutions; the weights of number `bad` get 2 bits, the others 8."""
    rng = np.random.default_rng(0)
    text = "  ".join(f"c{i} = Conv(c{i - 1}, w{i}, b{i})" for i in range(1, 5))
    graph = graph_from_text(
        f"g (float[N,6,5,5] c0) => (float[N,6,5,5] c4) {{ {text} }}",
        **{f"w{i}": rng.normal(size=(6, 6, 1, 1)).astype("f") for i in range(1, 5)},
        **{f"b{i}": rng.normal(size=6).astype("f") for i in range(1, 5)},
    )
    points = {Point(f"c{i}"): U8 for i in range(4)}
    points |= {Point(f"w{i}"): QuantSpec(2 if i == bad else 8, axis=0) for i in range(1, 5)}
    feeds = {"c0": rng.normal(size=(8, 6, 5, 5)).astype("f")}
    graph, plan = Calibrate("minmax")(graph, Plan(points), [feeds])
    return graph, plan, [n.name for n in ir.nodes(graph)], feeds


@pytest.mark.parametrize("bad", [1, 2, 4])
def test_the_planted_layer_is_kept(graph_from_text, bad):
    graph, plan, layers, feeds = chain(graph_from_text, bad)
    kept = Protect(threshold_db=20).choose(graph, plan, layers, feeds)
    assert [p.node for p in kept] == [layers[bad - 1]]
    assert kept[0].sqnr_db < 20


def test_a_good_model_keeps_nothing(graph_from_text):
    assert Protect(threshold_db=20).choose(*chain(graph_from_text, bad=0)) == ()


def test_no_more_than_the_share_of_the_work(graph_from_text):
    """All four layers cost the same: a quarter of the work is one of them, less is none."""
    graph, plan, layers, feeds = chain(graph_from_text, 2)
    assert Protect(20, max_share=0.2).choose(graph, plan, layers, feeds) == ()
    assert len(Protect(60, max_share=0.5).choose(graph, plan, layers, feeds)) == 2


def test_sqnr_is_what_it_says(graph_from_text):
    graph, plan, _, feeds = chain(graph_from_text, 2)
    want = executor.Module(graph)(feeds)
    got = executor.Module(graph, plan)(feeds)["c4"].detach().double().numpy()
    signal = want["c4"].detach().double().numpy()
    db = 10 * np.log10((signal**2).sum() / ((signal - got) ** 2).sum())
    assert output_sqnr(graph, plan, feeds, want) == pytest.approx(db, abs=1e-6)
    assert output_sqnr(graph, Plan(), feeds, want) == CEILING_DB
