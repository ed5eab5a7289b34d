"""Loading: what comes in is complete and in order, and what is wrong is named."""

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill import ir

RELU = "g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }"
rng = np.random.default_rng(0)


def run(model: ir.Graph | onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    data = model.SerializeToString() if isinstance(model, onnx.ModelProto) else ir.to_bytes(model)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def test_real_models_load_with_every_shape(data_dir: Path) -> None:
    for path in sorted((data_dir / "models").glob("*.onnx")):
        graph = ir.load(path)
        names = [node.name for node in ir.nodes(graph)]
        assert all(names) and len(set(names)) == len(names)
        assert all(ir.shape(value) is not None for value in ir.values(graph).values())


def test_save_and_load_give_the_same_graph(tmp_path: Path, graph_from_text: Callable) -> None:
    graph = graph_from_text(RELU)
    ir.save(graph, tmp_path / "a.onnx")
    assert ir.fingerprint(ir.load(tmp_path / "a.onnx")) == ir.fingerprint(graph)
    assert (tmp_path / "a.onnx").read_bytes() == ir.to_bytes(graph)
    assert os.listdir(tmp_path) == ["a.onnx"]
    assert stat.S_IMODE((tmp_path / "a.onnx").stat().st_mode) & 0o444  # others may read it


def test_a_failed_save_leaves_the_old_file(
    tmp_path: Path, graph_from_text: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"old")

    def disk_full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(ir.ModelError, match=r"a\.onnx: No space left"):
        ir.save(graph_from_text(RELU), path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.onnx"]


def test_save_into_a_missing_folder(tmp_path: Path, graph_from_text: Callable) -> None:
    with pytest.raises(ir.ModelError, match="No such file or directory"):
        ir.save(graph_from_text(RELU), tmp_path / "nowhere" / "a.onnx")


# ---------------------------------------------------------------- what load completes


def test_order_names_constants(proto_from_text: Callable) -> None:
    proto = proto_from_text(
        "g (float[N,3] x) => (float[N,3] y) {"
        " y = Add(b, c)  b = Relu(a)  a = Neg(x)  c = Constant<value_float = 2.0>() }"
    )
    proto.graph.node[1].name = proto.graph.node[2].name = "twin"
    graph = ir.from_bytes(proto.SerializeToString())
    assert [node.op_type for node in ir.nodes(graph)] == ["Neg", "Relu", "Add"]
    names = [node.name for node in ir.nodes(graph)]
    assert names[0] == "twin" and names[1] != "twin" and len(set(names)) == 3 and all(names)
    assert ir.constants(graph)["c"] == 2.0
    assert ir.shape(ir.value(graph, "b")) == ("N", 3)
    again = ir.from_bytes(proto.SerializeToString())
    assert [node.name for node in ir.nodes(again)] == names
    x = rng.standard_normal((2, 3), np.float32)
    np.testing.assert_array_equal(run(graph, x=x)[0], np.maximum(-x, 0) + 2)


def test_weights_listed_as_inputs_are_weights(proto_from_text: Callable) -> None:
    proto = proto_from_text(
        "g (float[N,3] x, float[3] w) => (float[N,3] y) { y = Add(x, w) }", w=np.ones(3, "f")
    )
    assert list(ir.inputs(ir.from_bytes(proto.SerializeToString()))) == ["x"]


def test_functions_are_inlined(proto_from_text: Callable) -> None:
    proto = proto_from_text(
        "g (float[N,3] x) => (float[N,3] y) { a = local.twice(x)  y = local.twice(a) }\n"
        '<domain: "local", opset_import: ["" : 20]> twice (x) => (y) { y = Add(x, x) }'
    )
    proto.opset_import.append(onnx.helper.make_opsetid("local", 1))
    graph = ir.from_bytes(proto.SerializeToString())
    assert [node.op_type for node in ir.nodes(graph)] == ["Add", "Add"]
    x = rng.standard_normal((2, 3), np.float32)
    np.testing.assert_array_equal(run(graph, x=x)[0], 4 * x)


@pytest.mark.parametrize("opset", [8, 9, 10, 11, 13, 17, 21])
def test_opsets(opset: int, proto_from_text: Callable) -> None:
    proto = proto_from_text("g (float[N,3] x) => (float[N,3] y) { y = Softmax<axis=1>(x) }", opset)
    graph = ir.from_bytes(proto.SerializeToString())
    assert ir.opset(graph) == max(opset, 11)
    x = rng.standard_normal((2, 3), np.float32)
    np.testing.assert_array_equal(run(graph, x=x)[0], run(proto, x=x)[0])
    assert ir.opset(ir.at_opset(graph, 13)) == max(opset, 13)


def test_at_opset_keeps_names_and_outputs(data_dir: Path) -> None:
    graph = ir.load(data_dir / "models" / "fastestdet_coco.onnx")
    raised = ir.at_opset(graph, 21)
    assert ir.opset(graph) == 11 and ir.opset(raised) == 21
    assert [n.name for n in ir.nodes(raised)] == [n.name for n in ir.nodes(graph)]
    feeds = {"input.1": rng.random((1, 3, 352, 352), np.float32)}
    np.testing.assert_array_equal(run(graph, **feeds)[0], run(raised, **feeds)[0])


def external(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="model.data", size_threshold=0)
    return path


def test_external_data(tmp_path: Path, proto_from_text: Callable) -> None:
    w = rng.standard_normal((3, 4)).astype("f")
    text = "g (float[N,3] x) => (float[N,4] y) { y = MatMul(x, w) }"
    path = external(proto_from_text(text, w=w), tmp_path)
    graph = ir.load(path)
    data = tmp_path / "model.data"
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    with pytest.raises(ir.ModelError, match=r"'model.data' is truncated: tensor 'w'"):
        ir.load(path)
    data.unlink()
    with pytest.raises(ir.ModelError, match=r"'model.data' with tensor 'w' cannot be read"):
        ir.load(path)
    np.testing.assert_array_equal(ir.constants(graph)["w"], w)  # held in memory since


def test_external_data_outside_the_folder_is_refused(
    tmp_path: Path, proto_from_text: Callable
) -> None:
    text = "g (float[N,3] x) => (float[N,4] y) { y = MatMul(x, w) }"
    proto = onnx.load(
        external(proto_from_text(text, w=np.ones((3, 4), "f")), tmp_path), load_external_data=False
    )
    for location in ("../secret", "/etc/passwd"):
        proto.graph.initializer[0].external_data[0].value = location
        with pytest.raises(ir.ModelError, match="outside the model's folder"):
            ir.from_bytes(proto.SerializeToString(), tmp_path)


# ---------------------------------------------------------------- what load refuses


def refused(proto: onnx.ModelProto, match: str) -> None:
    with pytest.raises(ir.ModelError, match=match):
        ir.from_bytes(proto.SerializeToString())


def test_files_that_are_not_onnx(tmp_path: Path, data_dir: Path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(ir.ModelError, match=r"a\.onnx: no such file"):
        ir.load(path)
    with pytest.raises(ir.ModelError, match="cannot be read"):
        ir.load(tmp_path)
    for content, match in [
        (b"", "truncated"),
        (b"hello world", "truncated"),
        (b"PK\x03\x04....", "zip archive"),
        (b"\x80\x04....", "pickle"),
        (b"<!DOCTYPE html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ir.ModelError, match=match):
            ir.load(path)


def test_truncated_anywhere(proto_from_text: Callable) -> None:
    proto = proto_from_text(
        "g (float[N,3] x) => (float[N,4] y) { y = MatMul(x, w) }", w=np.ones((3, 4), "f")
    )
    data = proto.SerializeToString()
    for length in range(len(data)):
        with pytest.raises(ir.ModelError):
            ir.from_bytes(data[:length])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_never_crash(proto_from_text: Callable, data: st.DataObject) -> None:
    proto = proto_from_text(
        "g (float[N,3] x) => (float[N,4] y) { a = Relu(x)  y = MatMul(a, w) }",
        w=np.ones((3, 4), "f"),
    )
    content = bytearray(proto.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ir.ModelError):
        ir.from_bytes(bytes(content))


def test_opset_too_new(proto_from_text: Callable) -> None:
    proto = proto_from_text(RELU)
    proto.opset_import[0].version = 999
    refused(proto, "opset 999 is newer")


def test_opset_too_old(proto_from_text: Callable) -> None:
    # Scale was dropped from the standard after opset 1, so the converter has no way up.
    proto = proto_from_text("g (float[3] x) => (float[3] y) { y = Scale<scale=2.0>(x) }", 1)
    refused(proto, "opset 1 is too old and cannot be converted to 11")


def test_unknown_operators_are_named_with_their_place(proto_from_text: Callable) -> None:
    proto = proto_from_text("g (float[N,3] x) => (float[N,3] y) { a = Relu(x)  y = Frobnicate(a) }")
    refused(proto, r"1 unknown operator.*ai\.onnx\.Frobnicate \(node 1 of 2, Frobnicate -> y\)")
    proto.graph.node[1].domain, proto.graph.node[1].name = "acme", "special"
    refused(proto, r"acme\.Frobnicate \(node 1 of 2, 'special'\)")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_weights_are_counted(bad: float, proto_from_text: Callable) -> None:
    w = np.ones((3, 4), "f")
    w[1, 2] = w[0, 0] = bad
    proto = proto_from_text("g (float[N,3] x) => (float[N,4] y) { y = MatMul(x, w) }", w=w)
    refused(proto, rf"'w' of shape \[3, 4\] has {'2 NaN' if np.isnan(bad) else '0 NaN and 2 inf'}")


def test_bad_half_precision_weights(proto_from_text: Callable) -> None:
    w = np.array([[1, np.nan]], np.float16)
    proto = proto_from_text("g (float16[N,1] x) => (float16[N,2] y) { y = MatMul(x, w) }", w=w)
    refused(proto, "1 NaN")


def test_an_infinite_limit_is_no_weight(graph_from_text: Callable) -> None:
    graph_from_text("g (float[N,3] x) => (float[N,3] y) { y = Clip(x, , m) }", m=np.float32(np.inf))


def test_links(proto_from_text: Callable) -> None:
    text = "g (float[N,3] x) => (float[N,3] y) {{ {} }}"
    for body, match in [
        ("y = Relu(z)", r"input 0 of node 0, Relu -> y \(Relu\), is 'z', which nothing"),
        ("a = Relu(x)", "output 'y' is produced by nothing"),
        ("y = Relu(x)  y = Neg(x)", "'y' is written twice"),
        ("x = Relu(x)  y = Neg(x)", "'x' is written twice: by node Relu -> x and by a graph input"),
        ("a = Add(x, b)  b = Relu(a)  y = Neg(b)", "not acyclic: .*wait for each other"),
    ]:
        refused(proto_from_text(text.format(body)), match)


def test_interface(proto_from_text: Callable) -> None:
    refused(proto_from_text("g () => (float[3] y) { y = Relu(w) }", w=np.ones(3, "f")), "no inputs")
    proto = proto_from_text(RELU)
    del proto.graph.output[:]
    refused(proto, "no outputs")
    refused(
        proto_from_text(
            "g (seq(float[3]) x) => (float[3] y) { y = ConcatFromSequence<axis=0>(x) }"
        ),
        "'x' is not a tensor",
    )


def test_missing_attribute_is_reported(proto_from_text: Callable) -> None:
    refused(proto_from_text("g (float[N,3] x) => (float[N,3] y) { y = Concat(x) }"), "axis")


def test_damaged_weight(proto_from_text: Callable) -> None:
    proto = proto_from_text(
        "g (float[N,3] x) => (float[N,4] y) { y = MatMul(x, w) }", w=np.ones((3, 4), "f")
    )
    proto.graph.initializer[0].raw_data = b"1234567"
    refused(proto, "'w'")
