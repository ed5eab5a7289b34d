"""Graph rewrites, against torch and against the exact function."""

import numpy as np
import pytest
import torch

from modelmill import executor, ir
from modelmill.audit import activation, pooling, upsample
from modelmill.audit.noise import LeftOut, Option
from modelmill.audit.pipeline import Pipeline

X = np.random.default_rng(0).normal(0, 3, (1, 3, 8, 8)).astype(np.float32)


def run(graph, x=X):
    with torch.inference_mode():
        return next(iter(executor.Module(graph)({"x": x}).values())).numpy()


def rewritten(noise, graph, held, subject):
    """name -> the output of the graph as the option leaves it."""
    offered = noise.PLUGIN.options(subject(held, graph=graph))
    found = {}
    for option in offered:
        if isinstance(option, Option):
            (step,) = option.change(Pipeline(held)).rewrites
            found[option.name] = run(step.run(graph))
    return found, {o.name: o.why for o in offered if isinstance(o, LeftOut)}


def test_ceil_mode_is_torchs(graph_from_text, card, subject):
    text = """g (float[1,3,8,8] x) => (float[1,3,1,1] y) {
        p = MaxPool<kernel_shape=[3,3], strides=[2,2]>(x)
        y = GlobalAveragePool(p)
    }"""
    found, left = rewritten(pooling, graph_from_text(text), card(), subject)
    pooled = torch.nn.functional.max_pool2d(torch.from_numpy(X), 3, 2, ceil_mode=True)
    assert pooled.shape[2:] == (4, 4)
    assert np.allclose(found["ceil"], pooled.mean((2, 3), keepdim=True), atol=1e-6)
    assert "no average pool" in left["padding-counts"]


def test_a_network_that_does_not_stand_it(graph_from_text, card, subject):
    text = """g (float[1,3,8,8] x) => (float[1,3,3,3] y) {
        y = MaxPool<kernel_shape=[3,3], strides=[2,2]>(x)
    }"""
    found, left = rewritten(pooling, graph_from_text(text), card(), subject)
    assert found == {} and "(1, 3, 4, 4), not (1, 3, 3, 3)" in left["ceil"]


def test_padding_counts(graph_from_text, card, subject):
    text = """g (float[1,3,8,8] x) => (float[1,3,8,8] y) {
        y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)
    }"""
    found, _ = rewritten(pooling, graph_from_text(text), card(), subject)
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(X), 3, 1, 1, count_include_pad=True)
    assert np.allclose(found["padding-counts"], expected, atol=1e-6)


def test_enlarging_is_torchs(graph_from_text, card, subject):
    text = """g (float[1,3,8,8] x) => (float[1,3,16,16] y) {
        y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",
                   nearest_mode="floor">(x, "", s)
    }"""
    graph = graph_from_text(text.replace('""', ""), s=np.array([1, 1, 2, 2], np.float32))
    found, _ = rewritten(upsample, graph, card(), subject)
    x = torch.from_numpy(X)
    for name, corners in (("bilinear", False), ("bilinear-align-corners", True)):
        expected = torch.nn.functional.interpolate(
            x, scale_factor=2, mode="bilinear", align_corners=corners
        )
        assert np.allclose(found[name], expected, atol=1e-5), name
    assert "nearest-floor" not in found  # its own
    nearest = torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    assert np.array_equal(found["nearest-half-pixel"], nearest)  # at twice the size the same


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_softmax(opset, graph_from_text, card, subject):
    text = "g (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Softmax<axis=3>(x) }"
    found, left = rewritten(activation, graph_from_text(text, opset), card(), subject)
    exact = torch.softmax(torch.from_numpy(X), 3).numpy()
    assert np.abs(found["softmax-i-bert"] - exact).max() < 4e-3  # the paper: 1.9e-3 for exp
    assert np.allclose(found["softmax-i-bert"].sum(3), 1, atol=1e-5)
    codes = found["softmax-8-bit"] * 256
    assert np.array_equal(codes, np.minimum(np.rint(exact * 256), 255))
    assert "no Sigmoid" in left["sigmoid-hard"]


def test_sigmoid(graph_from_text, card, subject):
    text = "g (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Sigmoid(x) }"
    found, _ = rewritten(activation, graph_from_text(text), card(), subject)
    exact = torch.sigmoid(torch.from_numpy(X)).numpy()
    assert np.abs(found["sigmoid-plan"] - exact).max() < 0.0190  # Amin et al.: 0.0189
    assert np.allclose(found["sigmoid-hard"], torch.nn.functional.hardsigmoid(torch.tensor(X)))
    assert np.array_equal(found["sigmoid-8-bit"] * 256, np.minimum(np.rint(exact * 256), 255))


def test_nothing_of_the_kind(graph_from_text, card, subject):
    graph = graph_from_text("g (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Relu(x) }")
    for noise in (pooling, upsample, activation):
        (only,) = noise.PLUGIN.options(subject(card(), graph=graph))
        assert only.name == "" and only.why.startswith("the network")
    assert ir.opset(graph) >= 11
