"""Whole networks against ONNX Runtime.

Two float32 engines add in different orders, so neither is the truth. The truth is the executor in
float64; its distance to ONNX Runtime sets the scale on which the executor in float32 is judged.
"""

import numpy as np
import pytest
import torch

from modelmill import ir
from modelmill.executor import Module, unsupported

ort = pytest.importorskip("onnxruntime")
MODELS = ["resnet20_cifar10", "resnet56_cifar10", "mobilenetv1_025_imagenet", "fastestdet_coco"]


@pytest.mark.parametrize("name", MODELS)
def test_model(data_dir, name):
    path = data_dir / "models" / f"{name}.onnx"
    graph = ir.load(path)
    assert unsupported(graph) == []
    (entry,) = ir.inputs(graph).values()
    shape = [dim if isinstance(dim, int) else 2 for dim in entry.shape]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    expected = ort.InferenceSession(path).run(None, {entry.name: x})
    module = Module(graph)
    got = module({entry.name: x})
    with torch.no_grad():
        overwriting = module({entry.name: x})
        truth = module.double()({entry.name: x.astype(np.float64)})
    for (key, exact), theirs in zip(truth.items(), expected, strict=True):
        distance = np.abs(theirs - exact.numpy()).max()
        # float32 carries 6e-8; some 50 layers of sums of 1,000 terms cost at most three digits
        assert distance <= 1e-4 * exact.abs().max().item()
        assert (got[key] - exact).abs().max().item() <= 4 * distance
        assert torch.equal(got[key], overwriting[key])
