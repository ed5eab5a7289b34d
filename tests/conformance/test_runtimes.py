"""What every engine adapter must do, tried on each one that is installed here."""

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from modelmill import ir, plugins
from modelmill.ir import Point
from modelmill.line.quantize import Recipe, Where, prepare_graph, quantize_all
from modelmill.runtimes import (
    EngineError,
    EngineMissing,
    SessionOptions,
    convert,
    find_platform,
    load_runtime,
)
from modelmill.targets import load_target

TARGETS = plugins.names("modelmill.targets")
RUNTIMES = plugins.names("modelmill.runtimes")
FAKE = ("torch_eager",)  # float arithmetic between codes, and it says so
DATA = Path(
    os.environ.get("MODELMILL_DATA", Path(__file__).parents[2].resolve().parent / "shared" / "data")
)


def graph(nodes, inputs, outputs, weights):
    value = helper.make_tensor_value_info
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [value(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [value(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
            [numpy_helper.from_array(a, n) for n, a in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=9,
    )


def convolution():
    random = np.random.default_rng(0)
    w = random.normal(size=(8, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["y"], "flat"),
    ]
    b = random.normal(size=8).astype(np.float32)
    return graph(nodes, {"x": ["n", 3, 8, 8]}, {"y": ["n", 8], "c": None}, {"w": w, "b": b})


def two_inputs():
    nodes = [
        helper.make_node("Mul", ["b", "a"], ["product"], "mul"),
        helper.make_node("Add", ["a", "b"], ["sum"], "add"),
        helper.make_node("Identity", ["sum"], ["same"], "copy"),
        helper.make_node("Identity", ["a"], ["through"], "through"),
    ]
    names = ("same", "product", "sum", "through")
    return graph(nodes, {"a": ["n", 4], "b": ["n", 4]}, {n: ["n", 4] for n in names}, {})


def quantized(runtime):
    """conv (int8 weights) -> relu in the formats of a target of this engine, as a QDQ model; and
    the step of its output, None where the engine hands floats on.
    """
    target = next(t for t in map(load_target, TARGETS) if t.runtime == runtime)
    random = np.random.default_rng(0)
    w, b = random.normal(size=(16, 16, 3, 3)) / 12, random.normal(size=16) / 4
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"], "relu"),
    ]
    shapes = {"x": [1, 16, 12, 12]}, {"y": [1, 16, 12, 12]}
    weights = {"w": w.astype(np.float32), "b": b.astype(np.float32)}
    clean = prepare_graph(ir.from_bytes(graph(nodes, *shapes, weights).SerializeToString()))
    batches = [{"x": random.random((4, 16, 12, 12)).astype(np.float32)}]
    recipe = Recipe(equalize=None, bias_correction=None, protect=None)
    where = Where(target.schemes[0].precision)
    made = quantize_all(clean, {"t": target}, where, batches, recipe)["t"]
    whole = made.plan.encodings().get(Point("y"))
    return onnx.load_from_string(ir.to_bytes(made.to_qdq())), whole and float(whole.scale)


@pytest.fixture(scope="module", params=RUNTIMES)
def engine(request, tmp_path_factory):
    """An engine that is installed, and the folder of what was converted for it."""
    try:
        find_platform(request.param)
    except EngineMissing as error:
        pytest.skip(str(error))
    return request.param, tmp_path_factory.mktemp(request.param)


@pytest.fixture
def start(engine, tmp_path, open_shared):
    """start(model proto or path, options) -> a session of one engine; the engine's own file of a
    model is made once for all tests, that of an ONNX file when it is opened.
    """
    runtime, folder = engine
    sessions = []

    def converted(model):
        data = model.SerializeToString()
        suffix = load_runtime(runtime).suffix
        path = folder / f"{hashlib.sha256(data).hexdigest()[:16]}{suffix}"
        if not path.exists():
            source = path if suffix == ".onnx" else tmp_path / "model.onnx"
            source.write_bytes(data)
            if source != path:
                convert(runtime, source, path)
        return path

    def opened(model, **options):
        path = converted(model) if isinstance(model, onnx.ModelProto) else model
        sessions.append(open_shared(runtime, path, SessionOptions(**options)))
        return sessions[-1]

    opened.runtime = runtime
    yield opened
    for session in sessions:
        session.close()


def test_float_scores_are_those_of_the_reference(start):
    model = convolution()
    session = start(model)
    assert session.inputs == ("x",) and session.outputs == ("y", "c")
    oracle = ReferenceEvaluator(model)
    for n in (1, 5, 2):  # a free batch dimension takes any
        x = np.random.default_rng(n).normal(size=(n, 3, 8, 8)).astype(np.float32)
        y, c = oracle.run(None, {"x": x})
        found = session.run({"x": x})
        np.testing.assert_allclose(found["y"], y, rtol=1e-5, atol=1e-5)
        # values up to 7, of which a Winograd transform leaves 1e-5 or so
        np.testing.assert_allclose(found["c"], c, rtol=1e-4, atol=4e-5)


def test_names_are_kept_with_several_inputs_outputs_and_aliases(start):
    session = start(two_inputs())
    assert session.inputs == ("a", "b") and session.outputs == ("same", "product", "sum", "through")
    a, b = np.arange(16, dtype=np.float32).reshape(2, 2, 4)
    found = session.run({"b": b, "a": a}, ["product", "same", "sum"])
    assert list(found) == ["product", "same", "sum"]
    np.testing.assert_array_equal(found["product"], a * b)
    np.testing.assert_array_equal(found["same"], a + b)
    np.testing.assert_array_equal(found["sum"], a + b)
    np.testing.assert_array_equal(session.run({"b": b, "a": a}, ["through"])["through"], a)


def test_an_empty_batch_gives_nothing_or_is_refused(start):
    session = start(convolution())
    session.run({"x": np.ones((2, 3, 8, 8), np.float32)})
    try:
        assert session.run({"x": np.zeros((0, 3, 8, 8), np.float32)})["y"].shape == (0, 8)
    except EngineError as error:
        assert "empty" in str(error)


def test_an_input_in_another_memory_order(start):
    session = start(convolution())
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32).transpose(0, 3, 1, 2)
    strided = session.run({"x": x})["y"]
    np.testing.assert_array_equal(strided, session.run({"x": np.ascontiguousarray(x)})["y"])


def test_results_do_not_change_after_the_next_run(start):
    session = start(two_inputs())
    one, two = np.ones((2, 4), np.float32), np.full((2, 4), 2, np.float32)
    first = session.run({"a": one, "b": one})
    session.run({"a": two, "b": two})
    np.testing.assert_array_equal(first["sum"], two)


def test_what_is_timed_is_the_model_on_these_inputs(start):
    session = start(two_inputs())
    feeds = {"a": np.ones((3, 4), np.float32), "b": np.ones((3, 4), np.float32)}
    spans = session.time(feeds, warmup=2, n=7)
    assert len(spans) == 7 and min(spans) > 0
    np.testing.assert_array_equal(session.run(feeds)["sum"], feeds["a"] * 2)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_fixed_batch_gives_the_same_scores(start, threads):
    model = convolution()
    x = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    fixed = start(model, batch=4, threads=threads).run({"x": x})
    np.testing.assert_allclose(
        fixed["y"], ReferenceEvaluator(model).run(["y"], {"x": x})[0], 1e-5, 1e-5
    )


def test_a_quantized_convolution_runs_as_an_integer_kernel(start, tmp_path):
    model, step = quantized(start.runtime)
    onnx.save(model, tmp_path / "quantized.onnx")
    session = start(tmp_path / "quantized.onnx")
    ops = session.executed()
    names = re.compile("conv|mmt4d|matmul", re.IGNORECASE)  # IREE: windows as rows of a matrix
    layers = [op.kind for op in ops if names.search(op.op) and op.kind != "conversion"]
    if start.runtime in FAKE:
        assert layers == ["float"]
    else:
        assert layers == ["integer"]
        assert not [op for op in ops if op.kind == "float"]
    assert {op.precision for op in ops if op.integer} <= {"uint8", "int8"}
    assert all(op.us is None or op.us >= 0 for op in ops)
    x = np.random.default_rng(1).random((1, 16, 12, 12)).astype(np.float32)
    found = session.run({"x": x})["y"]
    apart = np.abs(found - ReferenceEvaluator(model).run(None, {"x": x})[0])
    if step is None:  # floats from equal accumulators: a few roundings
        assert apart.max() <= 1e-5 * np.abs(found).max()
    else:  # a tie may round to the other side
        assert apart.max() <= 1.001 * step and np.mean(apart > step / 2) < 0.01


def test_a_float_model_runs_nothing_as_integer(start):
    session = start(convolution())
    session.run({"x": np.zeros((3, 3, 8, 8), np.float32)})
    kinds = [op.kind for op in session.executed()]
    assert "float" in kinds and "integer" not in kinds


@pytest.mark.parametrize("content", [b"", b"this is not a model", b"\x08\x08garbage" * 50])
def test_a_file_that_is_no_model_is_refused(start, tmp_path, content):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"could not load broken\.onnx"):
        start(path)


def test_an_unknown_operator_is_refused_by_name(start):
    nodes = [helper.make_node("Frobnicate", ["x"], ["y"], "f")]
    with pytest.raises(EngineError, match="Frobnicate"):
        start(graph(nodes, {"x": [1]}, {"y": [1]}, {}))


def test_a_batch_of_another_shape_or_type_is_refused_and_the_session_goes_on(start):
    session = start(convolution())
    wrong = [np.zeros((1, 4, 8, 8), np.float32), np.zeros((3, 8, 8), np.float32)]
    wrong += [np.zeros((1, 3, 8, 8), np.float64), np.zeros((1, 3, 8, 8), np.uint8)]
    for x in wrong:
        with pytest.raises(EngineError, match="could not run"):
            session.run({"x": x})
        with pytest.raises(EngineError, match="could not time"):
            session.time({"x": x}, 0, 1)
    assert session.run({"x": np.zeros((1, 3, 8, 8), np.float32)})["y"].shape == (1, 8)


def test_doctor_knows_every_engine(engines):
    assert [status.name for status in engines] == RUNTIMES
    for status in engines:
        assert status.works or status.pip.startswith("pip install")
        assert bool(status.version) <= status.installed


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["resnet20_cifar10", "fastestdet_coco"])
def test_a_worker_gives_the_very_bits_of_plain_use(start, name, threads):
    path = DATA / "models" / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is not there; set MODELMILL_DATA to the folder of the real data")
    if start.runtime not in PLAIN:
        pytest.skip(f"no plain use of {start.runtime} is written here")
    session = start(path, threads=threads)
    size = 32 if "cifar" in name else 352
    x = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
    x = x[: 2 if "cifar" in name else 1]
    found = session.run({session.inputs[0]: x})
    for output, plain in zip(found.values(), PLAIN[session.runtime](path, x, threads), strict=True):
        np.testing.assert_array_equal(output.view(np.uint32), plain.view(np.uint32))


def plain_onnxruntime(path, x, threads):
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})


def plain_openvino(path, x, threads):
    ov = pytest.importorskip("openvino")
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(path, "CPU", config)
    return list(compiled([x]).values())


PLAIN = {"onnxruntime": plain_onnxruntime, "openvino": plain_openvino}
