"""Noise of one layer alone; units; resuming."""

import numpy as np
import pytest
import torch

from modelmill import executor, ir, targets
from modelmill.quant.calibrate import Calibrate, activation_names, encode
from modelmill.quant.observe import observe
from modelmill.search.sensitivity import (
    REST,
    Probe,
    as_noise,
    in_db,
    key,
    layer_points,
    sensitivities,
    units,
)


@pytest.fixture
def plan(planner):
    return planner(frozenset()).plan


@pytest.fixture
def statistics(net, plan, batches):
    return observe(net, activation_names(net, plan), batches)


def all_of(net, plan, bits):
    return dict.fromkeys(units(net, list(targets.layer_bits(net, plan, "w8a8", 0))), bits)


def measured(net, plan, batches, statistics, wanted, known=(), note=lambda *a: None):
    probe = Probe(net, batches, 12)
    return sensitivities(probe, plan, statistics, wanted, Calibrate(), dict(known), note)


def test_noise_is_that_of_the_layer_alone(net, plan, batches, statistics):
    """Against a run by hand: the second convolution with 3-bit weights and 8-bit inputs."""
    wanted = all_of(net, plan, [(3, 8)])
    name = next(n.name for n in ir.nodes(net) if n.outputs[0].name == "c2")
    found = measured(net, plan, batches, statistics, wanted)[f"{name} w3a8"]
    narrowed = targets.with_bits(net, plan, {name: (3, 8)})
    encoded = encode(net, narrowed, statistics, Calibrate())
    alone = encoded.without({p for p in encoded if p.value not in ("r1", "w2", "b2", "c2")})
    real, noisy = executor.Module(net), executor.Module(net, alone)
    with torch.inference_mode():
        pairs = [(real(f)["y"].double(), noisy(f)["y"].double()) for f in batches]
    noise = sum(float((a - b).square().sum()) for a, b in pairs)
    assert found == pytest.approx(noise / sum(float(a.square().sum()) for a, _ in pairs))
    assert found > 0


def test_fewer_bits_are_noisier_and_nearly_add_up(net, plan, batches, statistics):
    wanted = all_of(net, plan, [(2, 8), (4, 8), (8, 8)])
    found = measured(net, plan, batches, statistics, wanted)
    for unit in wanted:
        two, four, eight = (found[key(unit, (w, 8))] for w in (2, 4, 8))
        assert two > four > eight >= 0
    for bits in ((4, 8), (8, 8)):  # four layers and five outputs: single errors may cancel or add
        narrowed = targets.with_bits(net, plan, {n: bits for unit in wanted for n in unit})
        whole = Probe(net, batches, 12).noise(encode(net, narrowed, statistics, Calibrate()))
        alone = found[REST] + sum(found[key(unit, bits)] for unit in wanted)
        assert abs(in_db(whole) - in_db(alone)) < 5


def test_every_point_belongs_to_a_layer_or_the_rest(net, plan):
    layers = list(targets.layer_bits(net, plan, "w8a8", 0))
    points = layer_points(net, plan, layers)
    owned = set().union(*points.values())
    assert owned <= set(plan) and all(points.values())
    assert {p.value for p in set(plan) - owned} <= {"r2", "p", "f", "r3", "s"}


def test_known_numbers_are_not_measured_again(net, plan, batches, statistics):
    wanted, seen = all_of(net, plan, [(4, 8)]), {}
    whole = measured(net, plan, batches, statistics, wanted, note=seen.__setitem__)
    assert seen == whole and len(seen) == len(wanted) + 1
    first = dict(list(seen.items())[:2])
    again: dict[str, float] = {}
    resumed = measured(net, plan, batches, statistics, wanted, first, again.__setitem__)
    assert resumed == whole and not again.keys() & first.keys()


def test_layers_with_one_weight_are_one_unit(graph_from_text):
    w = np.eye(3, dtype=np.float32)
    graph = graph_from_text(
        "g (float[2,3] x) => (float[2,3] y) {"
        "  a = MatMul(x, w)  b = MatMul(a, v)  y = MatMul(b, w) }",
        w=w,
        v=w,
    )
    first, second, third = (n.name for n in ir.nodes(graph))
    assert units(graph, [first, second, third]) == ((first, third), (second,))


def test_decibels_both_ways():
    assert in_db(as_noise(23.5)) == pytest.approx(23.5)
    assert in_db(0.0) == 200


def test_a_float_model_that_overflows_is_refused(net, batches):
    batches[0]["x"][:] = np.inf
    with pytest.raises(ValueError, match="NaN or infinity"):
        Probe(net, batches, 12)
