"""What a latency depends on, and nothing else, is in the structure; a skeleton keeps it."""

import random
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill import ir

TEXT = """g (float[N,3,8,8] x) => (float[N,4] y, float[N,8,16,16] u) {
    c = Conv<pads=[1,1,1,1], group=1>(x, w, b)
    n = BatchNormalization(c, s, b, m, v)
    r = Clip(n, low, high)
    q = Pow(r, e)
    u = Resize<mode="nearest">(q, , scales)
    p = GlobalAveragePool(q)
    f = Reshape(p, to)
    y = Gemm<transB=1>(f, h)
}"""
CHANCE = np.random.default_rng(0)
WEIGHTS = {
    "w": CHANCE.normal(size=(8, 3, 3, 3)).astype("f"),
    **{name: CHANCE.uniform(0.5, 1.5, 8).astype("f") for name in "bsmv"},
    "h": CHANCE.normal(size=(4, 8)).astype("f"),
    "low": np.float32(0), "high": np.float32(6), "e": np.float32(2),
    "scales": np.array([1, 1, 2, 2], "f"), "to": np.array([-1, 8], "i8"),
}  # fmt: skip


def of(proto: onnx.ModelProto) -> str:
    return ir.structure(ir.from_bytes(proto.SerializeToString()))


@pytest.fixture(scope="module")
def make(proto_from_text: Callable) -> Callable[..., onnx.ModelProto]:
    def build(text: str = TEXT, opset: int = 20, **changed: np.ndarray) -> onnx.ModelProto:
        return proto_from_text(text, opset, **{**WEIGHTS, **changed})

    return build


def shuffled(proto: onnx.ModelProto, chance: random.Random) -> onnx.ModelProto:
    """Other names, other order of nodes, weights and attributes."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    names: dict[str, str] = {"": ""}
    for node in copy.graph.node:
        node.name = f"n{chance.random()}"
        node.input[:] = [names.setdefault(n, f"v{chance.random()}") for n in node.input]
        node.output[:] = [names.setdefault(n, f"v{chance.random()}") for n in node.output]
    for entry in (*copy.graph.input, *copy.graph.output, *copy.graph.initializer):
        entry.name = names[entry.name]
    for field in (copy.graph.node, copy.graph.initializer):
        entries = [type(e).FromString(e.SerializeToString()) for e in field]
        chance.shuffle(entries)
        del field[:]
        field.extend(entries)
    return copy


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_names_and_order_do_not_matter(make: Callable, seed: int) -> None:
    assert of(shuffled(make(), random.Random(seed))) == of(make())


@pytest.mark.parametrize("name", ["w", "b", "s", "m", "v", "h"])
def test_numbers_in_weights_do_not_matter(make: Callable, name: str) -> None:
    assert of(make(**{name: WEIGHTS[name] * 3 + 1})) == of(make())


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("high", np.float32(1)),
        ("low", np.float32(-1)),
        ("e", np.float32(0.5)),
        ("scales", np.array([1, 1, 2, 1.5], "f")),
        ("to", np.array([1, 8], "i8")),
        ("w", CHANCE.normal(size=(8, 3, 1, 1)).astype("f")),
    ],
)
def test_what_decides_how_much_is_computed_does(make: Callable, name: str, other) -> None:
    text = TEXT.replace("pads=[1,1,1,1]", "pads=[0,0,0,0]") if name == "w" else TEXT
    text = text.replace("float[N,8,16,16] u", "float[N,8,H,W] u")
    assert of(make(text, **{name: other})) != of(make(text.replace("[0,0,0,0]", "[1,1,1,1]")))


CHANGES = {
    "attribute": ("pads=[1,1,1,1]", "pads=[2,2,0,0]"),
    "text attribute": ('mode="nearest"', 'mode="linear"'),
    "operator": ("GlobalAveragePool", "GlobalMaxPool"),
    "edge": ("GlobalAveragePool(q)", "GlobalAveragePool(r)"),
    "size": ("N,3,8,8", "N,3,8,10"),
    "element type": ("float[N,3,8,8] x", "float16[N,3,8,8] x0"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_the_computation_does(make: Callable, change: str) -> None:
    old, new = CHANGES[change]
    text = TEXT.replace("float[N,8,16,16] u", "float[N,8,H,W] u")
    other = text.replace(old, new)
    if change == "element type":
        other = other.replace("c = Conv", "x = Cast<to=1>(x0)\n    c = Conv")
    assert of(make(other)) != of(make(text))


def test_what_says_nothing_new_does_not_matter(make: Callable) -> None:
    assert of(make(TEXT.replace(", group=1", ""))) == of(make())  # the default
    assert of(make(TEXT.replace(" transB=1", " transB=1, alpha=1.0"))) == of(make())
    relu = "g (float[1,2] x) => (float[1,2] y) { y = Relu(x) }"
    assert of(make(relu, 20)) == of(make(relu, 21)) == of(make(relu, 14))
    assert of(make(relu, 13)) != of(make(relu, 14))  # of 14 is another Relu


def test_an_open_batch_is_one(make: Callable) -> None:
    fixed = TEXT.replace("[N,", "[1,")
    assert of(make(fixed)) == of(make()) != of(make(TEXT.replace("[N,", "[2,")))
    graph = ir.from_bytes(make().SerializeToString())
    assert ir.structure(ir.with_batch(graph, 1)) == ir.structure(graph)
    assert ir.structure(ir.with_batch(graph, 4)) != ir.structure(graph)


def test_other_open_sizes_are_numbered() -> None:
    def text(a: str, b: str) -> bytes:
        head = '<ir_version: 10, opset_import: ["" : 20]>\n'
        model = f"g (float[1,{a},{b}] x) => (float[1,{a},{b}] y) {{ y = Relu(x) }}"
        return onnx.parser.parse_model(head + model).SerializeToString()

    first, same, other = (
        ir.structure(ir.from_bytes(text(*names))) for names in (("H", "W"), ("A", "B"), ("H", "H"))
    )
    assert first == same != other


def test_quantized_with_the_same_points(make: Callable) -> None:
    """Codes, scales and zero points are numbers in weights; that they are there is not."""
    text = """g (float[1,4] x) => (float[1,2] y) {
        a = QuantizeLinear(x, s, z)
        d = DequantizeLinear(a, s, z)
        o = DequantizeLinear(codes, t, k)
        n = DequantizeLinear(bias, t, i)
        y = Gemm(d, o, n)
    }"""
    one = {
        "s": np.float32(0.1), "z": np.uint8(3), "t": np.float32(0.2), "k": np.int8(0),
        "i": np.int32(0), "codes": np.arange(8, dtype="i1").reshape(4, 2),
        "bias": np.array([5, 7], "i4"),
    }  # fmt: skip
    two = {name: (array + 1).astype(array.dtype) for name, array in one.items()}
    assert of(make(text, **one)) == of(make(text, **{**two, "k": one["k"], "i": one["i"]}))
    assert of(make(text, **one)) != of(make(text, **{**one, "z": np.int8(3)}))


def test_subgraphs(make: Callable) -> None:
    text = """g (float[2] x, bool t) => (float[2] y) {{
        a = Mul(x, c)
        y = If(t) <then_branch = p () => (float[2] k) {{ k = {}(a) }},
                   else_branch = q () => (float[2] k2) {{ k2 = Relu(x) }}>
    }}"""
    one, same, other = (
        of(make(text.format(op), c=np.array([n, 1], "f")))
        for op, n in (("Abs", 1), ("Abs", 2), ("Exp", 1))
    )
    assert one == same != other


# ---------------------------------------------------------------- skeletons


def test_a_skeleton_is_small_and_has_the_same_structure(make: Callable) -> None:
    wide = np.random.default_rng(0).normal(size=(512, 512, 3, 3)).astype("f")
    text = """g (float[N,512,8,8] x) => (float[N,512,8,8] y) {
        y = Conv<pads=[1,1,1,1]>(x, w)
    }"""
    graph = ir.from_bytes(make(text, w=wide).SerializeToString())
    data = ir.skeleton(graph)
    assert len(data) < 3000
    again = ir.from_skeleton(data)
    assert ir.structure(again) == ir.structure(graph)
    assert ir.skeleton(again) == data
    drawn = ir.constants(again)["w"]
    assert drawn.shape == wide.shape and drawn.dtype == np.float32
    assert drawn.std() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)  # He's
    assert np.array_equal(drawn, ir.constants(ir.from_skeleton(data))["w"])
    bare = ir.values(ir.outline(data))
    assert {n: ir.static_shape(v) for n, v in ir.values(again).items()} == {
        n: ir.static_shape(v) for n, v in bare.items()
    }
    assert bare["w"].is_initializer() and ir.dtype(bare["w"]) == np.float32


def test_a_skeleton_runs(make: Callable) -> None:
    graph = ir.from_bytes(make().SerializeToString())
    again = ir.from_skeleton(ir.skeleton(graph))
    assert ir.static_shape(next(iter(again.graph.inputs))) == (1, 3, 8, 8)
    for name in ("high", "e", "scales", "to"):  # what decides how much is computed is as it was
        assert np.array_equal(ir.constants(again)[name], WEIGHTS[name])
    session = ort.InferenceSession(ir.to_bytes(again), providers=["CPUExecutionProvider"])
    y, u = session.run(None, {"x": np.ones((1, 3, 8, 8), "f")})
    assert y.shape == (1, 4) and u.shape == (1, 8, 16, 16)
    assert np.isfinite(y).all() and np.isfinite(u).all()


@pytest.mark.parametrize(
    "name", ["resnet20_cifar10", "mobilenetv1_025_imagenet", "fastestdet_coco"]
)
def test_skeletons_of_real_models(data_dir, name: str) -> None:
    graph = ir.load(data_dir / "models" / f"{name}.onnx")
    data = ir.skeleton(graph)
    again = ir.from_skeleton(data)
    assert len(data) < 8000 and ir.structure(again) == ir.structure(graph)
    assert ir.statistics(again).macs == ir.statistics(ir.with_batch(graph, 1)
        if ir.is_batch_dynamic(graph) else graph).macs  # fmt: skip
    session = ort.InferenceSession(ir.to_bytes(again), providers=["CPUExecutionProvider"])
    ((feed, info),) = ir.inputs(again).items()
    outputs = session.run(None, {feed: np.ones([d or 1 for d in info.shape], "f")})
    assert all(np.isfinite(o).all() for o in outputs)


def test_the_skeleton_of_a_quantized_model(demo_build) -> None:
    graph = ir.load(demo_build / "artifacts/ort_cpu.onnx")
    again = ir.from_skeleton(ir.skeleton(graph))
    assert ir.structure(again) == ir.structure(graph)
    for name, array in ir.constants(again).items():
        assert array.dtype == ir.constants(graph)[name].dtype, name
    session = ort.InferenceSession(ir.to_bytes(again), providers=["CPUExecutionProvider"])
    ((feed, info),) = ir.inputs(again).items()
    outputs = session.run(None, {feed: np.ones([d or 1 for d in info.shape], "f")})
    assert all(np.isfinite(o).all() for o in outputs)


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"modelmill skeleton 1\n", b"modelmill skeleton 9\nx"]
)
def test_what_is_no_skeleton(data: bytes) -> None:
    with pytest.raises(ir.ModelError, match="skeleton"):
        ir.from_skeleton(data)


def test_a_damaged_skeleton(make: Callable) -> None:
    data = ir.skeleton(ir.from_bytes(make().SerializeToString()))
    with pytest.raises(ir.ModelError, match="damaged"):
        ir.from_skeleton(data[:-20])
