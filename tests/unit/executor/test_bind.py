"""The signature is the schema: operators against the ONNX standard, and what binds to them."""

import inspect

import numpy as np
import onnx.defs
import pytest
import torch

from modelmill import ir
from modelmill.executor import Module, operators, unsupported
from modelmill.executor.bind import FILLED_IN

OLDEST = 11
# Attributes that the executor leaves out, and why.
LEFT_OUT = {
    ("Constant", "sparse_value"): "sparse tensors",
    ("Constant", "value_string"): "strings",
    ("Constant", "value_strings"): "strings",
}
# A default that changed with the operator set is None here and worked out from `opset`.
CHANGED_DEFAULTS = {("Softmax", "axis"), ("LogSoftmax", "axis")}


def schemas(op):
    """The versions of an operator since the oldest supported operator set."""
    found = [
        s
        for s in onnx.defs.get_all_schemas_with_history()
        if s.name == op and s.domain == "" and not s.deprecated
    ]
    first = max((s.since_version for s in found if s.since_version <= OLDEST), default=0)
    return [s for s in found if s.since_version >= first]


@pytest.mark.parametrize("op", sorted(operators()))
def test_inputs_then_attributes(op):
    parameters = inspect.signature(operators()[op]).parameters.values()
    inputs = [p.name for p in parameters if p.kind != p.KEYWORD_ONLY]
    attributes = [p for p in parameters if p.kind == p.KEYWORD_ONLY and p.name not in FILLED_IN]
    known = schemas(op)
    newest = max(known, key=lambda s: s.since_version)
    assert inputs == [i.name for i in newest.inputs]
    names = {name for schema in known for name in schema.attributes}
    expected = {n for n in names if (op, n) not in LEFT_OUT and n not in inputs}
    assert {p.name for p in attributes} == expected


@pytest.mark.parametrize("op", sorted(operators()))
def test_defaults(op):
    newest = max(schemas(op), key=lambda s: s.since_version)
    for name, parameter in inspect.signature(operators()[op]).parameters.items():
        attribute = newest.attributes.get(name)
        if attribute is None or (op, name) in CHANGED_DEFAULTS:
            continue
        if attribute.required:
            assert parameter.default is parameter.empty
            continue
        default = onnx.helper.get_attribute_value(attribute.default_value)
        default = default.decode() if isinstance(default, bytes) else default
        if attribute.default_value.type == onnx.AttributeProto.UNDEFINED:
            default = None
        assert parameter.default == (
            pytest.approx(default, rel=1e-6) if isinstance(default, float) else default
        )


def test_attribute_that_became_an_input(graph_from_text):
    old = graph_from_text(
        "g (float[2,1,3,1] x) => (float[2,3,1] y) { y = Squeeze<axes=[1]>(x) }", 11
    )
    new = graph_from_text(
        "g (float[2,1,3,1] x) => (float[2,3,1] y) { y = Squeeze(x, axes) }", 13, axes=np.array([1])
    )
    for graph in (old, new):
        assert Module(graph)({"x": torch.ones(2, 1, 3, 1)})["y"].shape == (2, 3, 1)


@pytest.mark.parametrize(("opset", "text"), [(11, "Softmax(x)"), (13, "Softmax<axis=-1>(x)")])
def test_softmax_by_operator_set(graph_from_text, opset, text):
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    graph = graph_from_text(f"g (float[2,3,4] x) => (float[2,3,4] y) {{ y = {text} }}", opset)
    y = Module(graph)({"x": x})["y"]
    if opset < 13:  # over all axes from 1 on
        torch.testing.assert_close(y.flatten(1), torch.softmax(x.flatten(1), -1))
    else:
        torch.testing.assert_close(y, torch.softmax(x, -1))


def test_unsupported_names_node_and_operator(graph_from_text):
    graph = graph_from_text(
        "g (float[2,3] x, bool c) => (float[2,3] y, float[2,3] z)"
        "{ y = Hardmax(x)  z = If(c)<then_branch = t () => (float[2,3] a) { a = Identity(x) },"
        " else_branch = e () => (float[2,3] b) { b = Relu(x) }> }"
    )
    found = unsupported(graph)
    assert [op for _, op in found] == ["Hardmax", "If"]
    with pytest.raises(ValueError, match=r"no operator Hardmax, If; the first is node .*Hardmax"):
        Module(graph)


def test_other_domain_is_unsupported(graph_from_text):
    graph = graph_from_text("g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }")
    graph.graph.node(0).domain = "com.example"
    assert [op for _, op in unsupported(graph)] == ["com.example::Relu"]


def test_attribute_that_the_operator_lacks(graph_from_text):
    graph = graph_from_text("g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }")
    ir.set_attribute(graph.graph.node(0), "alpha", 1.0)
    with pytest.raises(ValueError, match=r"does not fit operator Relu.*alpha"):
        Module(graph)
