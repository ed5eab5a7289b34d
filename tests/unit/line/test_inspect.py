"""What inspect says of a model, against counting by hand."""

import subprocess
import sys

import onnx
import pytest

from modelmill import ir
from modelmill.line.inspect import inspect, label


def test_counts_by_hand(tiny):
    found = inspect(tiny.model)
    assert found.name == "tiny" and found.opset == 17
    assert [(t.name, t.shape, t.dtype) for t in found.inputs] == [("x", ("N", 1, 8, 8), "float32")]
    assert [(t.name, t.shape) for t in found.outputs] == [("y", ("N", 4))]
    assert found.params == 8 * 9 + 8 + 8 * 8 * 9 + 8 + 4 * 8 + 4
    assert found.macs == 16 * 8 * 9 + 16 * 8 * 8 * 9 + 4 * 8
    assert found.ops == {
        "Conv": 2, "Relu": 2, "Add": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1,
    }  # fmt: skip
    assert found.quantized == 0
    assert sum(node.macs for node in found.nodes) == found.macs


def test_an_artifact_is_seen_to_be_quantized(demo_build):
    assert inspect(demo_build / "artifacts" / "ort_cpu.onnx").quantized > 5


def test_a_graph_and_its_file_are_the_same(tiny):
    graph, file = inspect(ir.load(tiny.model)), inspect(tiny.model)
    assert (graph.fingerprint, graph.ops, graph.nodes) == (file.fingerprint, file.ops, file.nodes)


def test_a_fixed_batch_is_kept(tiny, tmp_path):
    proto = onnx.load(tiny.model)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(proto, tmp_path / "three.onnx")
    found = inspect(tmp_path / "three.onnx")
    assert found.inputs[0].shape[0] == 3 and found.macs == 3 * inspect(tiny.model).macs


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("a/b/resnet.onnx", "resnet"),
        ("pkg.models:tiny@weights/w.safetensors", "pkg.models.tiny"),
        ("pkg.models:tiny", "pkg.models.tiny"),
        ("net.pt2", "net"),
    ],
)
def test_labels(model, name):
    assert label(model) == name


def test_an_onnx_file_is_inspected_without_torch(tiny):
    code = (
        f"import sys, modelmill; modelmill.inspect({tiny.model!r}); "
        "assert 'torch' not in sys.modules and 'openvino' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_pytorch_network_needs_a_card(tmp_path):
    with pytest.raises(ValueError, match="card"):
        inspect("torchvision.models:resnet18")
