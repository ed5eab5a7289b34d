"""Which nodes stay float, and which of them matter."""

from dataclasses import replace

import numpy as np
import pytest

from modelmill import ir
from modelmill.line.check import check
from modelmill.targets.ort_cpu import PLUGIN as ORT


@pytest.mark.parametrize("target", ["ort_cpu", "openvino_cpu"])
def test_everything_runs_on_integers(tiny, target):
    found = check(tiny.model, target)
    assert found.accepted and found.heavy == () and found.unknown == ()
    fused = [v.op for v in found.verdicts if v.runs == "fused"]  # oneDNN takes Conv, Add, Relu
    assert fused == (["Relu", "Add", "Relu"] if target == "openvino_cpu" else ["Relu", "Relu"])
    assert found.counts == {"integer": 8 - len(fused), "fused": len(fused), "float": 0}


@pytest.mark.parametrize(
    ("flags", "narrowed"),
    [
        (("avx2",), True),
        (("avx2", "avx512_vnni"), False),
        (("avx2", "avx_vnni"), False),
        ((), True),
    ],
)
def test_the_guard(tiny, flags, narrowed, monkeypatch):
    """On x86 without VNNI the weights get 7 bits, and the user is told."""
    from modelmill.line import quantize
    from modelmill.records.machine import this_machine

    machine = replace(this_machine(), arch="x86_64")
    monkeypatch.setattr(quantize, "this_machine", lambda: machine)
    notes = check(tiny.model, "ort_cpu", flags=flags).notes
    assert bool(notes) is narrowed
    assert all("7 bits" in note for note in notes)


def test_a_node_kept_in_float_on_purpose_is_no_finding(tiny):
    (conv,) = [v.node for v in check(tiny.model, "ort_cpu").verdicts if v.op == "Conv"][:1]
    found = check(tiny.model, "ort_cpu", keep_float=[conv])
    assert found.accepted and found.counts["float"] >= 1


def test_a_conv_without_a_rule_is_one(tiny, tmp_path):
    chip = tmp_path / "chip.py"
    chip.write_text(
        "from dataclasses import replace\n"
        "from modelmill.targets.ort_cpu import PLUGIN as ORT\n"
        "PLUGIN = replace(ORT, rules=tuple(r for r in ORT.rules if r.op != 'Gemm'))\n"
    )
    found = check(tiny.model, str(chip))
    assert [v.op for v in found.heavy] == ["Gemm"] and not found.accepted
    assert "no rule for Gemm" in found.heavy[0].why


def test_a_product_of_two_activations_is_not_heavy(graph_from_text):
    """What has no weights may stay float: Det of it is nothing any target has a rule for."""
    graph = graph_from_text(
        """g (float[N,3,4,4] x) => (float[N,3,4,4] y) {
            s = Sin(x)
            y = MatMul(s, x)
        }"""
    )
    found = check(graph, "ort_cpu")
    assert found.heavy == () and found.counts["float"] >= 1


def test_an_operator_that_the_simulation_lacks(graph_from_text):
    graph = graph_from_text("g (float[N,3,4,4] x) => (float[N,3] y) { y = Det(x) }")
    found = check(graph, "ort_cpu")
    assert [op for _, op in found.unknown] == ["Det"] and not found.accepted


def test_what_falls_back_to_the_cpu(graph_from_text):
    """A DPU has no sigmoid and no float: what follows on it is left to the CPU as well."""
    graph = graph_from_text(
        "g (float[N,4,8,8] x) => (float[N,4,6,6] y) { c = Conv(x, w) s = Sigmoid(c) y = Relu(s) }",
        w=np.ones((4, 4, 3, 3), "f"),
    )
    found = check(graph, "vitis_dpu")
    assert found.host == "CPU" and found.fallback == {"Sigmoid": 1, "Relu": 1} and found.accepted
    assert "Ultra96" in next(v.why for v in found.verdicts if v.op == "Sigmoid")
    assert check(graph, "tensorrt").fallback == {}  # floats of its own
    wide = graph_from_text(
        "g (float[N,4096] x) => (float[N,8] y) { y = Gemm(x, w) }", w=np.ones((4096, 8), "f")
    )
    assert "4096" in check(wide, "vitis_dpu").heavy[0].why


def test_json_holds_what_follows(tiny):
    data = check(tiny.model, "ort_cpu").to_json()
    assert data["accepted"] is True and data["counts"]["integer"] == 6
    assert data["verdicts"][0].keys() == {"node", "op", "runs", "why"}


@pytest.mark.parametrize(
    ("target", "precision", "words"),
    [("no_chip", "w8a8", "ort_cpu"), ("ort_cpu", "w8a16", "Choices: w8a8")],
)
def test_unknown_names_list_the_choices(tiny, target, precision, words):
    with pytest.raises(ValueError, match=words):
        check(tiny.model, target, precision=precision)


def test_rules_are_read_not_changed(tiny):
    before = repr(ORT), ir.fingerprint(ir.load(tiny.model))
    graph = ir.load(tiny.model)
    check(graph, "ort_cpu")
    assert (repr(ORT), ir.fingerprint(graph)) == before


@pytest.mark.parametrize(
    ("precision", "said"),
    [("w4a8", "stored as INT4"), ("w2a4", "w2a4 is simulated: no engine here computes on 4-bit")],
)
def test_few_bits_are_explained(tiny, precision, said):
    found = check(tiny.model, "ort_cpu", precision=precision)
    assert found.accepted and said in " ".join(found.notes)
    assert found.runtime == ("onnxruntime" if precision == "w4a8" else "simulated")


def test_first_and_last_layers_like_the_others(tiny):
    """Of three layers one is in the middle; 0 takes the exception from the other two."""
    for first_last, few in ((8, 1), (0, 3)):
        found = check(tiny.model, "ort_cpu", precision="w4a8", first_last_bits=first_last)
        assert any(f"{few} of 3 layers" in note for note in found.notes)
    with pytest.raises(ValueError, match="first-last-bits"):
        check(tiny.model, "ort_cpu", precision="w4a8", first_last_bits=9)
