"""Codes noted in a .mnn file, read back by MNN's own converter; broken files."""

import importlib
import json

import numpy as np
import pytest

from modelmill import ir
from modelmill.export.mnn_file import (
    SMALLEST_WEIGHT_SCALE,
    Layer,
    TensorCodes,
    compression_parameters,
    convolutions,
    describe,
    described,
    tensor_names,
)
from modelmill.numerics import Encoding, QuantSpec
from modelmill.runtimes.mnn import PLUGIN
from modelmill.runtimes.protocol import SessionOptions

READ, WRITTEN = TensorCodes(0.25, -3), TensorCodes(0.5, 7, -100, 90)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    if line := PLUGIN.missing():
        pytest.skip(line)
    monkeypatch.chdir(tmp_path)  # the converter leaves a file where it is called from
    return importlib.import_module("_tools").mnnconvert


@pytest.fixture
def model(tools, tmp_path):
    """A file with one layer on codes: x -> conv -> ReLU -> a -> Sigmoid -> y."""
    onnx = pytest.importorskip("onnx")
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    weight = np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [
            node("Conv", ["x", "w"], ["c"]),
            node("Relu", ["c"], ["a"]),
            node("Sigmoid", ["a"], ["y"]),
        ],
        "g",
        [value("x", 1, (1, 3, 5, 5))],
        [value("y", 1, (1, 4, 5, 5))],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)])
    ir.save(ir.from_bytes(proto.SerializeToString()), tmp_path / "f.onnx")
    layer = Layer("a", READ, WRITTEN, np.full(4, 0.01, np.float32))
    (tmp_path / "p.json").write_text(compression_parameters([layer]))
    asked = ["mnnconvert", "-f", "ONNX", "--modelFile", "f.onnx", "--MNNModel", "m.mnn"]
    assert tools([*asked, "--compressionParamsFile", "p.json"])
    return (tmp_path / "m.mnn").read_bytes()


def test_layers_and_tensors_are_found_by_name(model):
    names = tensor_names(model)
    assert {"x", "a", "y"} <= set(names)
    assert {name: names[number] for name, number in convolutions(model).items()} == {"c": "a"}
    assert "a" in {names[number] for number in described(model)}


def test_noted_codes_are_read_by_mnn_and_what_was_noted_stays(model, tools, tmp_path):
    names = tensor_names(model)
    more = TensorCodes(1 / 3, -128, -128, 100)
    made = describe(model, {names.index("y"): more, names.index("a"): TensorCodes(9.0, 9)})
    assert described(made) == described(model) | {names.index("y")}
    assert tensor_names(made) == names
    (tmp_path / "n.mnn").write_bytes(made)
    tools(["mnnconvert", "-f", "MNN", "--modelFile", "n.mnn", "--JsonFile", "n.json"])
    rows = json.loads((tmp_path / "n.json").read_text())["extraTensorDescribe"]
    noted = {names[row["index"]]: row["quantInfo"] for row in rows}
    kind = {"type": "DT_INT8"}
    assert noted["a"] == {"scale": 0.5, "zero": 7.0, "min": -100.0, "max": 90.0, **kind}
    assert noted["y"] == {"scale": 0.333333, "zero": -128.0, "min": -128.0, "max": 100.0, **kind}


def test_scales_reach_the_converter_as_they_are():
    scale = float(np.float32(1 / 3))
    layer = Layer("a", TensorCodes(scale, 0), WRITTEN, np.array([1e-9, 0.1], np.float32))
    rows = json.loads(compression_parameters([layer]))["algo"][0]["quant_params"]["layer"]
    assert rows[0]["input"][0]["scales"] == [scale]
    # a smaller scale of weights would be another one in the engine
    assert rows[0]["weight"][0]["scales"] == [float(SMALLEST_WEIGHT_SCALE), float(np.float32(0.1))]


def test_codes_of_encodings():
    asymmetric = Encoding(QuantSpec(8, True, False), np.float32(0.5), np.int32(3))
    assert TensorCodes.of(asymmetric) == TensorCodes(0.5, 3)
    unsigned = Encoding(QuantSpec(8, False, False), np.float32(0.5), np.int32(3))
    assert TensorCodes.of(unsigned) == TensorCodes(0.5, -125)
    narrow = Encoding(QuantSpec(8, True, True, narrow=True), np.float32(0.5), np.int32(0))
    assert TensorCodes.of(narrow) == TensorCodes(0.5, 0, -127, 127)
    per_channel = Encoding(QuantSpec(8, True, True, axis=0), np.ones(3), np.zeros(3))
    with pytest.raises(ValueError, match="one scale per tensor"):
        TensorCodes.of(per_channel)


@pytest.mark.parametrize("content", [b"", b"abc", b"no model at all " * 9, bytes(200)])
def test_a_file_that_is_no_model(content):
    with pytest.raises(ValueError, match=r"no MNN model|names no tensors"):
        tensor_names(content)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_file_is_refused(model, share, tmp_path):
    facts = {"inputs": ["x"], "outputs": {"y": "y"}, "codes": {}, "fences": []}
    (tmp_path / "t.json").write_text(json.dumps(facts))
    (tmp_path / "t.mnn").write_bytes(model)
    PLUGIN.open(str(tmp_path / "t.mnn"), SessionOptions()).close()
    (tmp_path / "t.mnn").write_bytes(model[: int(len(model) * share)])
    with pytest.raises(Exception, match=r"no MNN model|Invalid model"):
        PLUGIN.open(str(tmp_path / "t.mnn"), SessionOptions())


def test_a_file_without_layers_on_codes_takes_no_notes(tmp_path, tools):
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Sigmoid", ["x"], ["y"])],
        "g",
        [value("x", 1, (1, 3))],
        [value("y", 1, (1, 3))],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)])
    ir.save(ir.from_bytes(proto.SerializeToString()), tmp_path / "f.onnx")
    PLUGIN.convert(str(tmp_path / "f.onnx"), str(tmp_path / "m.mnn"), SessionOptions())
    with pytest.raises(ValueError, match="no layer with integer weights"):
        describe((tmp_path / "m.mnn").read_bytes(), {0: READ})
