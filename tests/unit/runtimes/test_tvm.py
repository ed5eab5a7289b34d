"""What TVM's adapter takes beyond its own kernels, against ONNX Runtime, and what it refuses."""

import json

import numpy as np
import pytest

from modelmill import ir
from modelmill.runtimes.protocol import SessionOptions
from modelmill.runtimes.tvm import PLUGIN

GRAPHS = {
    # imported by TVM's front end between kernels of our own; convolutions of other ranks
    "mixed": """g (float[1,4,5,6] x) => (float[1,3,11,13] y, float[1,5,3,3] z) {
        t = ConvTranspose<strides=[2,2]>(x, w1)
        y = HardSwish(t)
        c = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w2)
        p = GlobalAveragePool(c)
        s = Sigmoid(p)
        z = Mul(c, s)
    }""",
    "pools": """g (float[1,3,8,8] x) => (float[1,6,4,4] y, float[1,3,8,8] z) {
        a = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)
        b = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)
        y = Concat<axis=1>(a, b)
        z = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=0>(x)
    }""",
    "residuals": """g (float[1,4,6,6] x) => (float[1,4,12,6] y, float[1,4,6,6] c) {
        c = Conv(x, w3)
        d = Conv(x, w4)
        e = Add(c, d)
        f = Add(e, e)
        low = Clip(f, , high)
        y = Concat<axis=2>(low, c)
    }""",
    "attention": """g (float[1,5,8] x) => (float[1,5,8] y) {
        q = MatMul(x, w5)
        k = Transpose<perm=[0,2,1]>(x)
        a = MatMul(q, k)
        s = Softmax<axis=-1>(a)
        y = MatMul(s, x)
    }""",
}
SHAPES = {"w1": (4, 3, 3, 3), "w2": (5, 4, 3, 3), "w3": (4, 4, 1, 1), "w4": (4, 4, 1, 1),
          "w5": (8, 8), "high": ()}  # fmt: skip


@pytest.fixture(params=GRAPHS)
def converted(request, proto_from_text, tmp_path):
    if line := PLUGIN.missing():
        pytest.skip(line)
    text, random = GRAPHS[request.param], np.random.default_rng(3)
    arrays = {n: random.normal(size=s).astype(np.float32) for n, s in SHAPES.items() if n in text}
    proto = proto_from_text(text, **arrays)
    ir.save(ir.from_bytes(proto.SerializeToString()), tmp_path / "model.onnx")
    library = tmp_path / f"{request.param}.so"
    PLUGIN.convert(str(tmp_path / "model.onnx"), str(library), SessionOptions())
    return proto, library


def test_scores_are_those_of_onnx_runtime(converted):
    runtime = pytest.importorskip("onnxruntime")
    proto, library = converted
    session = PLUGIN.open(str(library), SessionOptions())
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    reference = runtime.InferenceSession(proto.SerializeToString())
    found = session.run({"x": x})
    assert tuple(found) == session.outputs == tuple(o.name for o in proto.graph.output)
    for made, oracle in zip(found.values(), reference.run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(made, oracle, rtol=1e-4, atol=1e-5)
    assert {op.kind for op in session.executed()} <= {"float", "conversion", "other"}


@pytest.mark.parametrize("converted", ["attention"], indirect=True)
def test_a_library_of_another_cpu_or_without_its_names_is_refused(converted):
    _, library = converted
    beside = library.with_suffix(".json")
    facts = json.loads(beside.read_text())
    beside.write_text(json.dumps({**facts, "features": [*facts["features"], "avx1024"]}))
    with pytest.raises(RuntimeError, match="compiled for a CPU with avx1024"):
        PLUGIN.open(str(library), SessionOptions())
    beside.unlink()
    with pytest.raises(ValueError, match=r"attention\.json, .* is missing"):
        PLUGIN.open(str(library), SessionOptions())


def test_a_shape_known_only_at_run_time_is_refused_by_name(proto_from_text, tmp_path):
    if line := PLUGIN.missing():
        pytest.skip(line)
    text = "g (float[1,4] x) => (int64[2,n] y) { y = NonZero(x) }"
    ir.save(ir.from_bytes(proto_from_text(text).SerializeToString()), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="NonZero"):
        PLUGIN.convert(str(tmp_path / "m.onnx"), str(tmp_path / "m.so"), SessionOptions())
