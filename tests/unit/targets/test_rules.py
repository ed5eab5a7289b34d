"""Limits of hardware, and rules that cannot be meant."""

from dataclasses import replace

import numpy as np
import pytest

from modelmill import ir, targets
from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets import Limit, OpRule, Scheme, Target
from modelmill.targets.limits import QUANTITIES, measure
from modelmill.targets.rules import covers, validate

CONV = ("activation", "weight", "bias")
FPGA = Target(
    name="fpga",
    runtime=None,
    schemes=(Scheme("w8a8", QuantSpec(8), QuantSpec(8), QuantSpec(32)),),
    rules=(
        OpRule(
            "Conv", CONV, anchor=True,
            attributes=(("group", (1,)),),
            limits=(Limit("kernel_shape", high=8, why="line buffer"),),
        ),
        OpRule("Conv", CONV, anchor=True, limits=(Limit("channels_per_group", high=1),)),
        OpRule("Gemm", CONV, anchor=True, limits=(Limit("input_channels", high=3072),)),
        OpRule("Relu", ("activation",), limits=(Limit("rank", 4, 4),)),
    ),
    fused=(),
    arithmetic=Arithmetic(),
    refuses=(("Sigmoid", "no table of functions"),),
    host="CPU",
    source="invented",
)  # fmt: skip


@pytest.fixture
def plan(graph_from_text):
    def make(text, shape="N,8,12,12", **shapes):
        arrays = {n: np.ones(s, "f") for n, s in shapes.items()}
        graph = graph_from_text(
            f"g (float[{shape}] x) => (float[A,B,C,D] y) {{ {text} }}", **arrays
        )
        return targets.plan(graph, FPGA, "w8a8", "x86_64", frozenset()).verdicts

    return make


@pytest.mark.parametrize(
    ("text", "shapes", "why"),
    [
        ("y = Conv(x, w, b)", {"w": (4, 8, 8, 8)}, None),
        (
            "y = Conv(x, w, b)",
            {"w": (4, 8, 3, 9)},
            "kernel_shape is [3, 9], the rule takes at",
        ),
        ("y = Conv<kernel_shape=[9,9]>(x, w, b)", {"w": (4, 8, 9, 9)}, "line buffer"),
        ("y = Conv<group=8>(x, w, b)", {"w": (8, 1, 9, 9)}, None),
        ("y = Conv<group=2>(x, w, b)", {"w": (4, 4, 3, 3)}, "channels_per_group is 4"),
    ],
)
def test_convolutions_of_an_fpga(plan, text, shapes, why):
    (verdict,) = plan(text, b=shapes["w"][:1], **shapes)
    assert verdict.runs == ("integer" if why is None else "float")
    assert why is None or why in verdict.why
    if why is not None:  # both rules say why
        assert "rule 1 refuses: " in verdict.why and "rule 2 refuses: " in verdict.why


def test_a_rule_that_holds_also_says_what_refused_before(plan):
    (verdict,) = plan("y = Conv<group=8>(x, w, b)", w=(8, 1, 3, 3), b=(8,))
    assert verdict.why.startswith("rule Conv(activation, weight, bias); rule 1 refuses: group is 8")


@pytest.mark.parametrize(("width", "runs"), [(3072, "integer"), (3073, "float")])
def test_wide_layers(plan, width, runs):
    (verdict,) = plan("y = Gemm(x, w, b)", f"N,{width}", w=(width, 5), b=(5,))
    assert verdict.runs == runs and ("3073" in verdict.why) == (runs == "float")


def test_what_the_chip_refuses_and_what_follows(plan):
    found = plan("c = Conv(x, w, b)  s = Sigmoid(c)  y = Relu(s)", w=(8, 8, 3, 3), b=(8,))
    assert [v.runs for v in found] == ["integer", "float", "float"]
    assert found[1].why == "fpga has no rule for Sigmoid: no table of functions"
    assert "'s' comes from Sigmoid" in found[2].why


def test_quantities(graph_from_text):
    graph = graph_from_text(
        """g (float[N,6,9,9] x, float[N,6] v) => (float[N,8,4,4] y, float[N,5] z, float[N,7] m) {
            y = Conv<group=2, strides=[2,2]>(x, w)  z = Gemm<transB=1>(v, u)  m = MatMul(v, t) }""",
        w=np.ones((8, 3, 3, 1), "f"), u=np.ones((5, 6), "f"), t=np.ones((6, 7), "f"),
    )  # fmt: skip
    conv, gemm, matmul = ir.nodes(graph)
    found = {name: [f(n) for n in (conv, gemm, matmul)] for name, f in QUANTITIES.items()}
    want = {
        "input_channels": [6, 6, 6], "output_channels": [8, 5, 7],
        "channels_per_group": [3, 6, 6], "weights_per_output": [9, 6, 6], "rank": [4, 2, 2],
    }  # fmt: skip
    assert {name: found[name] for name in want} == want
    assert measure(conv, "strides") == (2, 2) and measure(conv, "dilations") == (1,)
    assert measure(conv, "kernel_shape") == (3, 1) and measure(gemm, "alpha") == ()


# ------------------------------------------------------------ what is an error at load


def rules(*found):
    return replace(FPGA, rules=found)


MAXPOOL = OpRule("MaxPool", ("activation",), output="same")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (rules(OpRule("Convolution", CONV)), "rule 1 .Convolution.: ONNX has no operator .*Conv"),
        (rules(replace(MAXPOOL, attributes=(("kernel", (3,)),))), "attribute 'kernel'.*kernel_sh"),
        (rules(replace(MAXPOOL, limits=(Limit("width", high=3),))), "no attribute 'width'.*rank"),
        (rules(MAXPOOL, MAXPOOL), "rule 2 .MaxPool. is shadowed by rule 1"),
        (rules(MAXPOOL, replace(MAXPOOL, attributes=(("ceil_mode", (0,)),))), "special rule first"),
        (rules(MAXPOOL, replace(MAXPOOL, limits=(Limit("kernel_shape", high=3),))), "shadowed"),
        (replace(FPGA, fused=(("Conv", "ReLU"),)), "fpga: ONNX has no .*nearest: .*Relu"),
        (replace(FPGA, refuses=(("Silu", "no"),)), "no operator 'Silu'"),
    ],
    ids=range(8),
)  # fmt: skip
def test_a_target_that_cannot_be_meant(target, message):
    with pytest.raises(ValueError, match=message):
        validate(target)


def test_special_rules_first_are_fine():
    validate(FPGA)
    few, many = (replace(MAXPOOL, limits=(Limit("kernel_shape", high=h),)) for h in (3, 9))
    validate(rules(few, many, MAXPOOL))
    assert covers(many, few) and not covers(few, many)
    of_two = OpRule("MatMul", ("activation", "activation"))
    of_weight = OpRule("MatMul", ("activation", "weight"))
    validate(rules(of_weight, of_two))
    with pytest.raises(ValueError, match="shadowed"):
        validate(rules(of_two, of_weight))
    either = replace(MAXPOOL, attributes=(("ceil_mode", (0, 1)),))
    one = replace(MAXPOOL, attributes=(("ceil_mode", (1,)),))
    assert covers(either, one) and not covers(one, either)


def test_a_file_is_checked_when_it_is_loaded(tmp_path):
    file = tmp_path / "mychip.py"
    file.write_text(
        "from dataclasses import replace\n"
        "from modelmill import plugins\n"
        "from modelmill.targets import OpRule\n"
        "ORT = plugins.load('modelmill.targets', 'ort_cpu')\n"
        "PLUGIN = replace(ORT, name='mychip', rules=(OpRule('Cnov', ('activation',)),))\n"
    )
    with pytest.raises(ValueError, match=r"mychip, rule 1 \(Cnov\): ONNX has no operator 'Cnov'"):
        targets.load_target(str(file))
