"""Counting differences: on real engines with a simulation that is right, and one that is not."""

from dataclasses import replace

import numpy as np
import pytest

from modelmill import ir
from modelmill.executor.integer import IntegerModule
from modelmill.line.agreement import Agreement, Count, exposed
from modelmill.line.quantize import Recipe, quantize
from modelmill.runtimes import DeploymentError, open_session


@pytest.fixture(scope="module")
def made(tiny):
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(0, 1.2, (16, 1, 8, 8)).astype(np.float32)} for _ in range(2)]
    return quantize(tiny.model, batches, "ort_cpu", recipe=Recipe(protect=None)), batches


def compared(made, arithmetic, tmp_path, artifact=None):
    quantized, batches = made
    artifact = artifact or quantized.to_qdq()
    opened, codes = exposed(artifact)
    path = tmp_path / "exposed.onnx"
    ir.save(opened, path)
    module = IntegerModule(quantized.graph, quantized.plan, arithmetic)
    with open_session("onnxruntime", path) as session:
        agreement = Agreement(module, session, codes)
        for feeds in batches:
            agreement.run(feeds)
    return agreement


def test_every_tensor_agrees(made, tmp_path):
    quantized, batches = made
    agreement = compared(made, quantized.target.arithmetic, tmp_path)
    images = sum(len(f["x"]) for f in batches)
    assert agreement.images == images
    sizes = {t.value: t.whole.elements // images for t in agreement.tensors.values()}
    assert sizes == {"x": 64, "r1": 128, "c2": 128, "r2": 128, "p": 8, "f": 8}
    assert agreement.whole == Count(sum(sizes.values()) * images, 0, 0)
    assert agreement.own == Count() and agreement.first_divergence is None
    assert agreement.output_difference < 1e-5


def test_a_wrong_simulation_is_found_where_it_starts(made, tmp_path):
    """Bias of the second convolution moved by two output steps: what lies before agrees."""
    quantized, _ = made
    plan, graph = quantized.plan, ir.clone(quantized.graph)
    second = [n for n in ir.nodes(graph) if n.op_type == "Conv"][1]
    bias = second.inputs[2].name
    step = plan[ir.Point("c2")].scale
    numbers = ir.constants(graph)[bias] + np.float32(2 * step)
    ir.set_constant(graph, second, 2, numbers)
    wrong = replace(quantized, graph=graph)
    assert second.inputs[2].name == bias  # the plan still speaks of it
    agreement = compared(
        (wrong, made[1]), quantized.target.arithmetic, tmp_path, quantized.to_qdq()
    )
    assert agreement.first_divergence == second.name
    tensors = agreement.tensors
    assert [n for n, t in tensors.items() if not t.whole.mismatched][:2] == ["x", "r1"]
    assert tensors["c2"].whole.mismatched > 0.9 * tensors["c2"].whole.elements
    assert tensors["c2"].whole.max_codes in (2, 3)
    # given the engine's own codes only that layer differs
    assert {n for n, t in tensors.items() if t.own.mismatched} == {"c2"}
    assert tensors["r2"].whole.mismatched > 0


def test_counts():
    count = Count()
    count.add(np.array([1, 2, 3, 250]), np.array([1, 2, 5, 255], np.uint8))
    assert count == Count(4, 2, 5)
    count.merge(Count(2, 1, 9))
    assert count == Count(6, 3, 9)


def test_the_artifact_itself_has_no_more_outputs(made):
    artifact = made[0].to_qdq()
    before = ir.to_bytes(artifact)
    opened, codes = exposed(artifact)
    assert ir.to_bytes(artifact) == before and list(ir.outputs(artifact)) == ["y"]
    assert set(ir.outputs(opened)) == {"y", *codes.values()}


def test_an_engine_that_gives_another_shape(made):
    """OpenVINO does so for a quantized strided 1x1 convolution with padding: one deployment
    fails, in words."""
    quantized, batches = made
    _, codes = exposed(quantized.to_qdq())

    class Shrinking:
        runtime = "shrinking"

        def run(self, feeds):
            return {
                codes["x"]: np.zeros((16, 1, 8, 8), np.uint8),
                codes["r1"]: np.zeros((16, 8, 3, 4)),
            }

    agreement = Agreement(quantized.simulate(), Shrinking(), codes)
    with pytest.raises(
        DeploymentError, match=r"shrinking gives 'r1' .*\(16, 8, 3, 4\).*keep-float"
    ):
        agreement.run(batches[0])
