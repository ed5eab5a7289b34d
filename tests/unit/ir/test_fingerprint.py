"""The fingerprint sees what a graph computes and nothing else."""

import random
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill import ir
from modelmill.ir.fingerprint import fingerprint

TEXT = """g (float[N,3,8,8] x, float[N,4] z) => (float[N,4] y, float[N,4] u) {
    c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b)
    r = LeakyRelu<alpha=0.1>(c)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    q = Add(f, z)
    y = Gemm<transB=1>(q, v, b)
    u = Relu(f)
}"""
WEIGHTS = {
    "w": np.arange(108, dtype="f").reshape(4, 3, 3, 3),
    "b": np.array([1, 2, 3, 4], "f"),
    "v": np.eye(4, dtype="f"),
}


def of(proto: onnx.ModelProto) -> str:
    return fingerprint(ir.from_bytes(proto.SerializeToString()))


def renamed(proto: onnx.ModelProto, chance: random.Random) -> onnx.ModelProto:
    """Other names for everything, nodes and attributes and weights in another order."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    names: dict[str, str] = {"": ""}

    def new(old: str) -> str:
        return names.setdefault(old, f"v{chance.random()}")

    for node in graph.node:
        node.name = f"n{chance.random()}"
        node.doc_string = f"{chance.random()}"
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
        attributes = list(node.attribute)
        chance.shuffle(attributes)
        copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in attributes]
        del node.attribute[:]
        node.attribute.extend(copies)
    for entry in (*graph.input, *graph.output, *graph.initializer):
        entry.name = new(entry.name)
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "other"
    for field in (graph.node, graph.initializer):
        copies = [type(entry).FromString(entry.SerializeToString()) for entry in field]
        chance.shuffle(copies)
        del field[:]
        field.extend(copies)
    graph.name = copy.producer_name = f"{chance.random()}"
    return copy


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_names_and_order_do_not_matter(proto_from_text: Callable, seed: int) -> None:
    proto = proto_from_text(TEXT, **WEIGHTS)
    assert of(renamed(proto, random.Random(seed))) == of(proto)


def test_unused_nodes_and_shared_weights_do_not_matter(proto_from_text: Callable) -> None:
    proto = proto_from_text(TEXT, **WEIGHTS)
    twin = proto_from_text(TEXT.replace("v, b)", "v, b2)  dead = Neg(x)"), **WEIGHTS,
                           b2=WEIGHTS["b"])  # fmt: skip
    assert of(twin) == of(proto)


def test_constant_node_and_weight_are_the_same(proto_from_text: Callable) -> None:
    text = "g (float[N] x) => (float[N] y) {{ {} y = Add(x, c) }}"
    node = proto_from_text(text.format("c = Constant<value_float = 2.0>()"))
    assert of(node) == of(proto_from_text(text.format(""), c=np.float32(2)))


CHANGES = {
    "attribute": ("alpha=0.1", "alpha=0.2"),
    "list attribute": ("strides=[2,2]", "strides=[2,1]"),
    "operator": ("u = Relu(f)", "u = Neg(f)"),
    "edge": ("u = Relu(f)", "u = Relu(q)"),
    "order of inputs": ("Add(f, z)", "Add(z, f)"),
    "order of outputs": ("(float[N,4] y, float[N,4] u)", "(float[N,4] u, float[N,4] y)"),
    "fixed batch": ("N,3,8,8", "1,3,8,8"),
    "size": ("N,3,8,8", "N,3,8,9"),
    "independent symbols": ("float[N,4] z", "float[M,4] z"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_the_computation_matters(change: str, proto_from_text: Callable) -> None:
    proto = proto_from_text(TEXT, **WEIGHTS)
    assert of(proto_from_text(TEXT.replace(*CHANGES[change]), **WEIGHTS)) != of(proto)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(WEIGHTS)), st.data())
def test_one_bit_of_one_weight_matters(
    proto_from_text: Callable, name: str, data: st.DataObject
) -> None:
    array = WEIGHTS[name].copy()
    bits = array.reshape(-1).view(np.uint32)
    bits[data.draw(st.integers(0, bits.size - 1))] ^= 1 << data.draw(st.integers(0, 22))
    assert of(proto_from_text(TEXT, **{**WEIGHTS, name: array})) != of(
        proto_from_text(TEXT, **WEIGHTS)
    )


def test_shape_and_type_of_a_weight_matter(proto_from_text: Callable) -> None:
    text = "g (float[2,2] x) => (float[2,2] y) { y = Add(x, w) }"
    flat, column = np.zeros(1, "f"), np.zeros((1, 1), "f")
    assert of(proto_from_text(text, w=flat)) != of(proto_from_text(text, w=column))


def test_opset_matters(proto_from_text: Callable) -> None:
    text = "g (float[2,2] x) => (float[2,2] y) { y = Relu(x) }"
    assert of(proto_from_text(text, 20)) != of(proto_from_text(text, 21))


def test_subgraphs(proto_from_text: Callable) -> None:
    text = """g (float[2] x, bool t) => (float[2] y) {{
        a = Neg(x)
        y = If(t) <then_branch = p () => (float[2] k) {{ k = {}(a) }},
                   else_branch = q () => (float[2] k2) {{ k2 = Relu(x) }}>
    }}"""
    one, same, other = (of(proto_from_text(text.format(op))) for op in ("Abs", "Abs", "Exp"))
    assert one == same != other
