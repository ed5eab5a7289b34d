"""Parts of a model: every point belongs to one layer, the whole is what the executor computes."""

import numpy as np
import pytest
import torch

from modelmill import executor, ir, plugins, targets
from modelmill.ir import Point
from modelmill.line.quantize import prepare_graph
from modelmill.quant.ablate import (
    Ablation,
    Part,
    alone,
    alone_parts,
    find_layers,
    measure,
    part_of,
    without,
    without_parts,
)
from modelmill.quant.calibrate import Calibrate

TEXT = """g (float[N,3,8,8] x) => (float[N,5] y) {
  [c1] v1 = Conv<pads=[1,1,1,1]>(x, w1, b1)  [r1] v2 = Relu(v1)
  [c2] v3 = Conv<pads=[1,1,1,1], group=8>(v2, w2, b2)  [s] v4 = Sigmoid(v3)
  [c3] v5 = Conv(v4, w3, b3)  [a] v6 = Add(v5, v2)  [r2] v7 = Relu(v6)
  [p] v8 = GlobalAveragePool(v7)  [f] v9 = Flatten(v8)  [g] y = Gemm<transB=1>(v9, w4, b4)
}"""


@pytest.fixture(params=["ort_cpu", "openvino_cpu"])
def given(request, graph_from_text):
    """Graph, plan with encodings, batches, ablation."""
    rng = np.random.default_rng(0)
    shapes = {
        "w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "b2": (8,), "w3": (8, 8, 1, 1),
        "b3": (8,), "w4": (5, 8), "b4": (5,),
    }  # fmt: skip
    arrays = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    graph = prepare_graph(graph_from_text(TEXT, **arrays))
    batches = [{"x": rng.normal(size=(4, 3, 8, 8)).astype(np.float32)} for _ in range(2)]
    target = plugins.load("modelmill.targets", request.param)
    plan = targets.plan(graph, target, "w8a8", "x86_64", frozenset()).plan
    graph, plan = Calibrate()(graph, plan, batches)
    return graph, plan, batches, Ablation(graph, graph, plan)


def test_every_point_belongs_to_one_layer(given):
    graph, plan, _, ablation = given
    layers = find_layers(graph, plan)
    assert layers == ablation.layers
    owned = [name for x in layers for name in (*x.constants, *x.activations)]
    assert sorted(owned) == sorted({point.value for point in plan})
    named = {x.node: x for x in layers}
    assert named["x"].op == "input" and named["x"].activations == ("x",)
    assert named["c1"].constants[0] == "w1" and "v2" in named["c1"].activations  # its Relu's value
    assert not {"r1", "f"} & set(named)  # fused, or the same codes elsewhere


def test_everything_is_the_fake_quantized_model(given):
    graph, plan, batches, ablation = given
    with torch.inference_mode():
        wanted = executor.Module(graph, plan)(batches[0])["y"]
        real = executor.Module(graph)(batches[0])["y"]
    torch.testing.assert_close(
        ablation.run(batches[0], ablation.everything)["y"], wanted, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(ablation.run(batches[0], Part())["y"], real)


def test_one_layer_is_a_plan_with_its_points(given):
    graph, plan, batches, ablation = given
    layer = next(x for x in ablation.layers if x.node == "c2")
    mine = {*layer.constants, *layer.activations}
    few = plan.without({point for point in plan if point.value not in mine})
    with torch.inference_mode():
        wanted = executor.Module(graph, few)(batches[0])["y"]
    found = ablation.run(batches[0], part_of([layer]))["y"]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.equal(found, ablation.run(batches[0], Part())["y"])


def test_noise_by_hand_and_in_sum(given):
    """Energies over all batches; those of the layers alone add up to about that of all."""
    _, _, batches, ablation = given
    parts = {"all": ablation.everything, "none": Part(), **alone_parts(ablation.layers)}
    parts |= without_parts(ablation.layers, ablation.layers[:2])
    told = []
    found = measure(ablation, parts, batches, told.append)
    assert told == list(range(1, 2 * len(parts) + 1))
    pairs = [
        (ablation.run(b, Part())["y"].double(), ablation.run(b, ablation.everything)["y"].double())
        for b in batches
    ]
    signal = sum(float(y.square().sum()) for y, _ in pairs)
    noise = sum(float((y - z).square().sum()) for y, z in pairs)
    assert found["all"].db == pytest.approx(10 * np.log10(signal / noise))
    assert found["none"].noise == 0
    total = sum(found[alone(x.node)].noise for x in ablation.layers)
    assert total == pytest.approx(noise, rel=0.7)
    for x in ablation.layers[:2]:
        assert found[without(x.node)].noise > 0


def test_a_coded_twin_gives_weights_and_biases(given):
    """Codes that were not rounded to nearest, and a corrected bias, are taken as they are."""
    graph, plan, batches, _ = given
    coded = ir.clone(graph)
    node = next(n for n in ir.nodes(coded) if n.name == "g")
    encoding = plan.at("w4", "g", 1)
    up = encoding.dequantize(np.minimum(encoding.quantize(ir.constant(node.inputs[1])) + 1, 127))
    ir.set_constant(coded, node, 1, up)
    ir.set_constant(coded, node, 2, ir.constant(node.inputs[2]) + 1)
    assert [v.name for v in node.inputs] == ["v9", "w4", "b4"]
    whole = Ablation(graph, coded, plan)
    first = Ablation(graph, graph, plan)
    y, z = (a.run(batches[0], a.everything)["y"] for a in (whole, first))
    assert float((y - z).mean()) > 0.5
    only = {x.node: x for x in whole.layers}["g"]
    alone_y = whole.run(batches[0], part_of([only]))["y"] - first.run(batches[0], Part())["y"]
    assert abs(float(alone_y.mean())) < 0.5  # the corrected bias is not for one layer alone
    assert Point("w4") in plan
