"""The zoo: every family draws networks that ONNX, ONNX Runtime and both targets accept."""

import numpy as np
import onnx
import pytest

from modelmill import ir, plugins
from modelmill.latency import zoo
from modelmill.latency.collect import random_feeds
from modelmill.targets import load_target, plan

FAMILIES = zoo.families()
DRAWS = 16


def test_the_families_of_the_paper_and_one_more():
    assert set(FAMILIES) == {
        *("alexnet", "efficientnet", "googlenet", "mnasnet", "mobilenetv2", "mobilenetv3"),
        *("nasbench201", "resnet", "squeezenet", "vgg", "vit"),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_agrees_with_every_shape(family):
    """Shapes are worked out by the builder; ONNX's own inference is the other opinion."""
    for number in range(3):
        name, graph = zoo.draw(family, number)
        proto = onnx.load_from_string(ir.to_bytes(graph))
        onnx.checker.check_model(proto, full_check=True)
        del proto.graph.value_info[:]
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
        ours = ir.values(graph)
        for info in [*inferred.graph.value_info, *inferred.graph.output]:
            dims = tuple(d.dim_value for d in info.type.tensor_type.shape.dim)
            assert ir.static_shape(ours[info.name]) == dims, (name, info.name)


@pytest.mark.parametrize("family", FAMILIES)
def test_onnxruntime_gives_finite_numbers(family):
    ort = pytest.importorskip("onnxruntime", reason="modelmill[onnxruntime]")
    for number in range(2):
        _, graph = zoo.draw(family, number)
        session = ort.InferenceSession(ir.to_bytes(graph), providers=["CPUExecutionProvider"])
        (y,) = session.run(None, random_feeds(graph))
        assert np.isfinite(y).all()
        assert y.std() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_of_the_builder_are_those_of_the_graph(family):
    random = np.random.default_rng(1)
    net, output = plugins.load("modelmill.latency.zoo", family)(random)
    counted = ir.statistics(net.graph("net", output, random))
    assert counted.macs == net.macs


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_quantize_them(family):
    _, graph = zoo.draw(family, 0)
    for name in ("ort_cpu", "openvino_cpu"):
        assert plan(graph, load_target(name), "w8a8", "x86_64", frozenset({"avx2"})).plan


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_differ_and_repeat(family):
    first, again = zoo.draw(family, 0)[1], zoo.draw(family, 0)[1]
    assert ir.to_bytes(first) == ir.to_bytes(again)
    structures = {ir.structure(zoo.draw(family, number)[1]) for number in range(1, DRAWS)}
    structures.add(ir.structure(first))
    assert len(structures) == DRAWS
    assert ir.structure(zoo.draw(family, 0, seed=1)[1]) not in structures


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_within_the_limits(family):
    for number in range(3):
        counted = ir.statistics(zoo.draw(family, number)[1])
        assert zoo.MACS[0] <= counted.macs <= zoo.MACS[1]


def test_an_unknown_family_names_the_others():
    with pytest.raises(ValueError, match=r"no_such.*resnet"):
        zoo.draw("no_such", 0)


def test_the_reference_never_changes():
    """Its time is compared across runs: its structure is part of what is stored."""
    assert ir.structure(zoo.reference()) == ir.structure(zoo.reference())
    assert ir.statistics(zoo.reference()).macs == 38_578_176
