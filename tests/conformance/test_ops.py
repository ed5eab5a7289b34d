"""The official ONNX node tests of every operator that the executor has.

A case is one node, or the body of a function operator written out in several nodes; it applies when
the executor has all of its operators.
"""

import fnmatch
import functools
import warnings

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx.backend.test import loader

from modelmill.executor import Module, operators, unsupported

COMPARISONS = ("less", "less_equal", "greater", "greater_equal")
UNSIGNED = "torch computes with no unsigned integers but 8-bit ones"
ROUNDING = "16-bit floats, rounded after other steps than in the expected values"

# Pattern of case names -> why they do not apply. Each pattern must match, and each case must fail:
# what works is not to be excluded.
EXCLUDED = {
    "test_*cast*FLOAT8*": "8-bit floats",
    "test_cast_e8m0*": "8-bit floats",
    "test_*quantizelinear_e[45]m*": "8-bit floats",
    "test_*cast*FLOAT4*": "4-bit floats",
    "test_*quantizelinear_float4*": "4-bit floats",
    "test_*cast*INT2*": "2-bit integers",
    "test_*cast*_to_*INT4*": "4-bit results",
    "test_*quantizelinear_*int2": "2-bit integers",
    "test_quantizelinear_*int4": "4-bit results",
    "test_equal_string*": "strings",
    "test_identity_sequence": "sequences",
    "test_identity_opt": "optionals",
    "test_batchnorm_*_training_mode": "training mode",
    "test_training_dropout": "training mode is random",
    "test_training_dropout_mask": "training mode is random",
    "test_training_dropout_default*": "training mode is random",
    "test_attention_4d_fp16": ROUNDING,
    "test_attention_4d_causal_*16*": ROUNDING,
    "test_attention_4d*_padded_kv_bf16*": ROUNDING,
    "test_attention_4d_attn_mask_causal_bf16*": ROUNDING,
    "test_attention_3d_causal_bf16*": ROUNDING,
    **{
        f"test_{name}_uint[136][624]*": UNSIGNED
        for name in ("add", "sub", "div", "mod", "max", "min", *COMPARISONS)
    },
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The tensors are small; waiting for a second core costs more than it gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def _cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy, while the cases compute their expected values
        cases = loader.load_model_tests(kind="node")
    return [c for c in cases if _applies(c.model)]


def _applies(model):
    names = {node.op_type for node in model.graph.node}
    return names <= operators().keys() and not unsupported(onnx_ir.from_proto(model))


def _reason(name):
    return next((why for p, why in EXCLUDED.items() if fnmatch.fnmatchcase(name, p)), None)


def _array(value):
    """Some cases come as protobuf, some as numpy."""
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    raise ValueError(f"{type(value)} is no tensor")


def _run(case):
    module = Module(onnx_ir.from_proto(case.model))
    names = [v.name for v in case.model.graph.input]
    wanted = [v.name for v in case.model.graph.output]
    for inputs, expected in case.data_sets:
        got = module(dict(zip(names, map(_array, inputs), strict=True)))
        for name, right in zip(wanted, map(_array, expected), strict=True):
            _compare(got[name], right, case)


def _compare(got, right, case):
    if got.dtype == torch.bfloat16:
        assert right.dtype.name == "bfloat16"
        got, right = got.to(torch.float32), right.astype(np.float32)
    assert got.numpy().dtype == right.dtype
    assert got.shape == right.shape
    np.testing.assert_allclose(got.numpy(), right, rtol=case.rtol, atol=case.atol)


@pytest.mark.parametrize("case", [c for c in _cases() if not _reason(c.name)], ids=lambda c: c.name)
def test_onnx_node_case(case):
    _run(case)


def test_exclusions_are_needed():
    excluded = [c for c in _cases() if _reason(c.name)]
    unused = [p for p in EXCLUDED if not any(fnmatch.fnmatchcase(c.name, p) for c in excluded)]
    assert not unused
    passing = []
    for case in excluded:
        try:
            _run(case)
        except (ValueError, AssertionError):
            continue
        passing.append(case.name)
    assert not passing


def test_every_operator_has_a_case():
    tested = {n.op_type for c in _cases() if not _reason(c.name) for n in c.model.graph.node}
    assert operators().keys() - tested == set()
