"""Plans of hand-made graphs: who is quantized, by which rule, and why not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modelmill import ir, plugins, targets
from modelmill.ir import Plan, Point
from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.targets import OpRule, Scheme, Target

U8 = QuantSpec(8, signed=False, symmetric=False)
S8 = QuantSpec(8, axis=0)
BIAS = QuantSpec(32, axis=0)
CHIP = Target(
    name="chip",
    runtime="onnxruntime",
    schemes=(Scheme("w8a8", U8, S8, BIAS), Scheme("w4a8", U8, replace(S8, bits=4), BIAS)),
    rules=(
        OpRule("Conv", ("activation", "weight", "bias"), anchor=True, note="the kernel"),
        OpRule("Gemm", ("activation", "weight", "bias"), float_output=True, anchor=True),
        OpRule("MatMul", ("activation", "activation"), float_output=True),
        OpRule("Add", ("activation", "activation")),
        OpRule("Concat", ("activation",), variadic=True),
        OpRule("MaxPool", ("activation",), output="same"),
        OpRule("Reshape", ("activation",), output="same"),
        OpRule(
            "Pad", ("activation",), output="same",
            attributes=(("mode", ("constant",)),), constants=((2, 0.0),),
        ),
        OpRule("ArgMax", ("activation",), output="float"),
    ),
    fused=(("Conv", "Relu"), ("Conv", "Add", "Relu"), ("Conv", "Add"), ("Add", "Relu")),
    arithmetic=Arithmetic(),
    source="invented",
)  # fmt: skip


@pytest.fixture
def graph(graph_from_text):
    def make(text, shape="N,4,8,8", out="N,A,B,C", **weights):
        rng = np.random.default_rng(0)
        arrays = {
            n: rng.normal(size=w).astype("f") if isinstance(w, tuple) else np.asarray(w)
            for n, w in weights.items()
        }
        return graph_from_text(f"g (float[{shape}] x) => (float[{out}] y) {{ {text} }}", **arrays)

    return make


CONV = {"w": (4, 4, 3, 3), "b": (4,)}
SECOND = {"v": (4, 4, 3, 3), "d": (4,)}


def plan(graph, target=CHIP, precision="w8a8", keep=()):
    return targets.plan(graph, target, precision, "x86_64", frozenset(), frozenset(keep))


def runs(planned):
    return [(v.op, v.runs) for v in planned.verdicts]


def names(planned):
    return {str(p) for p in planned.plan}


def test_one_convolution(graph):
    planned = plan(graph("y = Conv(x, w, b)", **CONV))
    assert dict(planned.plan) == {
        Point("x"): U8, Point("w"): S8, Point("b"): BIAS, Point("y"): U8,
    }  # fmt: skip
    assert runs(planned) == [("Conv", "integer")] and planned.verdicts[0].why == "the kernel"
    assert planned.inner == frozenset() and planned.notes == () and planned.plan.ties == ()


def test_a_fused_chain_is_one_unit(graph):
    planned = plan(graph("c = Conv(x, w, b)  y = Relu(c)", **CONV))
    assert names(planned) == {"x", "w", "b", "y"} and planned.inner == {"c"}
    assert runs(planned) == [("Conv", "integer"), ("Relu", "fused")]
    assert "Conv" in planned.verdicts[1].why


def test_the_longest_chain_wins(graph):
    text = "c = Conv<pads=[1,1,1,1]>(x, w, b)  a = Add(c, x)  y = Relu(a)"
    planned = plan(graph(text, **CONV))
    assert planned.inner == {"c", "a"} and names(planned) == {"x", "w", "b", "y"}


def test_two_convolutions_and_one_add(graph):
    """The Add belongs to the convolution that is first; the other hands it codes."""
    text = "c = Conv(x, w, b)  d = Conv(x, v, b2)  a = Add(c, d)  y = Relu(a)"
    planned = plan(graph(text, **CONV, v=(4, 4, 3, 3), b2=(4,)))
    assert planned.inner == {"c", "a"}
    assert runs(planned) == [
        ("Conv", "integer"), ("Conv", "integer"), ("Add", "fused"), ("Relu", "fused"),
    ]  # fmt: skip
    assert {"x", "d", "y"} <= names(planned)


def test_a_value_read_twice_is_not_fused_away(graph):
    text = "c = Conv<pads=[1,1,1,1]>(x, w, b)  r = Relu(c)  y = Add(r, c)"
    planned = plan(graph(text, **CONV))
    assert "c" not in planned.inner and "c" in names(planned)


def test_a_graph_output_is_not_fused_away(graph_from_text):
    graph = graph_from_text(
        "g (float[N,4,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] c)"
        " { c = Conv(x, w)  y = Relu(c) }",
        w=np.ones((4, 4, 3, 3), "f"),
    )
    planned = plan(graph)
    assert planned.inner == frozenset() and "c" in names(planned)


def test_movement_is_tied_to_where_it_comes_from(graph):
    text = """c = Conv(x, w, b)  m = MaxPool<kernel_shape=[2,2]>(c)  r = Reshape(m, s)
        y = Gemm(r, v, d)"""
    planned = plan(graph(text, out="N,A", **CONV, s=[0, -1], v=(100, 3), d=(3,)))
    assert planned.plan.ties == ((Point("c"), Point("m"), Point("r")),)
    assert planned.plan[Point("v")] == replace(S8, axis=1)  # output channels of a plain Gemm
    assert Point("y") not in planned.plan  # only floats want it


def test_others_follow_codes_but_do_not_start_them(graph):
    planned = plan(graph("y = Add(x, x)", out="N,4,8,8"))
    assert len(planned.plan) == 0 and runs(planned) == [("Add", "float")]
    assert "its inputs are float" in planned.verdicts[0].why
    planned = plan(graph("c = Conv(x, w, b)  y = Add(c, c)", **CONV))
    assert runs(planned) == [("Conv", "integer"), ("Add", "integer")]
    planned = plan(graph("s = Sigmoid(x)  p = MaxPool<kernel_shape=[1,1]>(s)  y = Add(p, s)"))
    assert len(planned.plan) == 0


def test_an_anchor_turns_what_it_reads_into_codes(graph):
    planned = plan(graph("s = Sigmoid(x)  c = Conv(s, w, b)  y = Add(c, s)", **CONV))
    assert "s" in names(planned) and ("Add", "fused") in runs(planned)


def test_an_output_that_is_float(graph):
    text = "c = Conv(x, w, b)  y = Cast<to=1>(a)  a = ArgMax<axis=1>(c)"
    text = "c = Conv(x, w, b)  a = ArgMax<axis=1>(c)  y = Cast<to=1>(a)"
    planned = plan(graph(text, **CONV))
    assert runs(planned)[1] == ("ArgMax", "integer") and Point("a") not in planned.plan


def test_all_inputs_of_a_variadic_operator(graph):
    planned = plan(
        graph("c = Conv(x, w, b)  d = Relu(c)  e = Sigmoid(c)  y = Concat<axis=1>(d, c, d)", **CONV)
    )
    assert {"c"} <= names(planned)
    assert dict(runs(planned))["Concat"] == "float"  # d, a Relu of codes, is float on this chip
    planned = plan(graph("c = Conv(x, w, b)  y = Concat<axis=1>(c, c, c)", **CONV))
    assert dict(runs(planned))["Concat"] == "integer"


def test_a_weight_of_run_time_is_refused_with_its_name(graph_from_text):
    graph = graph_from_text(
        "g (float[N,4,8,8] x, float[4,4,3,3] w) => (float[N,4,6,6] y) { y = Conv(x, w) }"
    )
    planned = plan(graph)
    assert len(planned.plan) == 0 and planned.verdicts[0].runs == "float"
    assert "input 1 (w) is computed at run time" in planned.verdicts[0].why


def test_attributes_and_constants_of_a_rule(graph):
    base = "c = Conv(x, w, b)  y = Pad"
    good = plan(graph(f"{base}(c, p)", **CONV, p=[0, 0, 1, 1, 0, 0, 1, 1]))
    assert dict(runs(good))["Pad"] == "integer"
    for text, why in (
        (f"{base}(c, p, k)", "input 2 must be the constant 0"),
        (f'{base}<mode="reflect">(c, p)', "mode is 'reflect', the rule takes 'constant'"),
    ):
        weights = {"k": np.float32(1)} if "k" in text.split("Pad")[1] else {}
        bad = plan(graph(text, **CONV, p=[0, 0, 1, 1, 0, 0, 1, 1], **weights))
        assert bad.verdicts[1].runs == "float" and why in bad.verdicts[1].why


@pytest.mark.parametrize("name", ["ort_cpu", "openvino_cpu"])
@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ("alpha=0.5", "alpha is 0.5, the rule takes 1.0"),
        ("beta=2.0", "beta is 2.0, the rule takes 1.0"),
        ("transA=1", "transA is 1, the rule takes 0"),
        ("alpha=1.0, beta=1.0, transA=0", None),
        ("transB=1", None),
    ],
)
def test_only_a_gemm_without_factors_is_on_integers(graph, name, attributes, why):
    """The integer kernels have no alpha, no beta, and read activations as they lie."""
    target = plugins.load("modelmill.targets", name)
    made = graph(f"y = Gemm<{attributes}>(x, w, b)", "4,4", "4,4", w=(4, 4), b=(4,))
    (verdict,) = targets.plan(made, target, "w8a8", "x86_64", frozenset()).verdicts
    assert verdict.runs == ("integer" if why is None else "float")
    assert why is None or why in verdict.why


def test_no_rule_at_all(graph):
    planned = plan(graph("y = Sigmoid(x)", out="N,4,8,8"))
    assert planned.verdicts[0].why == "chip has no rule for Sigmoid"


def test_shared_weights_have_a_point_each(graph):
    planned = plan(graph("c = Conv(x, w, b)  y = Conv(c, w, d)", **CONV, d=(4,)))
    weights = [p for p in planned.plan if p.value == "w"]
    assert len(weights) == 2 and {p.index for p in weights} == {1}
    assert {p.node for p in weights} == {v.node for v in planned.verdicts}


def test_nodes_kept_in_float(graph):
    made = graph("c = Conv(x, w, b)  r = Relu(c)  y = Conv(r, v, d)", **CONV, **SECOND)
    second = ir.nodes(made)[2].name
    planned = plan(made, keep=[second])
    assert [v.runs for v in planned.verdicts] == ["integer", "fused", "float"]
    assert "kept in float" in planned.verdicts[2].why
    assert names(planned) == {"x", "w", "b", "r"}


def test_precisions(graph):
    made = graph("y = Conv(x, w, b)", **CONV)
    assert plan(made, precision="w4a8").plan[Point("w")].bits == 4
    with pytest.raises(ValueError, match=r"chip has no precision 'w2a2'\. Choices: w8a8, w4a8"):
        plan(made, precision="w2a2")


@pytest.mark.parametrize("name", ["ort_cpu", "openvino_cpu"])
@pytest.mark.parametrize(
    ("arch", "flags", "bits"),
    [
        ("x86_64", ("sse4_2", "avx2"), 7),
        ("x86_64", (), 7),
        ("AMD64", ("avx512f", "avx512bw"), 7),
        ("x86_64", ("avx2", "avx512_vnni"), 8),
        ("x86_64", ("avx2", "avx_vnni"), 8),
        ("aarch64", ("asimd", "asimddp"), 8),
        ("aarch64", (), 8),
        ("arm64", (), 8),
    ],
)
def test_the_instruction_set_guard(graph, name, arch, flags, bits):
    made = graph("y = Conv(x, w, b)", **CONV)
    target = plugins.load("modelmill.targets", name)
    planned = targets.plan(made, target, "w8a8", arch, frozenset(flags))
    assert planned.plan[Point("w")].bits == bits
    assert planned.plan[Point("x")].bits == 8
    told = [n for n in planned.notes if "7 bits" in n and "avx512_vnni, avx_vnni" in n]
    assert len(told) == (1 if bits == 7 else 0) == len(planned.notes)
    targets.check(made, target, "w8a8", planned.plan)


def test_seven_bits_cannot_saturate_sixteen():
    """A pair u8 * s8 in int16: 255 * 63 + 255 * 64 fits, 255 * 127 * 2 does not."""
    spec = QuantSpec(7, axis=0)
    assert 2 * 255 * max(spec.qmax, -spec.qmin) < 2**15 < 2 * 255 * 127


# ------------------------------------------------------------ check


def test_a_plan_of_its_own_is_accepted(graph):
    made = graph("c = Conv(x, w, b)  r = Relu(c)  y = Conv(r, v, d)", **CONV, **SECOND)
    targets.check(made, CHIP, "w8a8", plan(made).plan)


@pytest.mark.parametrize(
    ("point", "spec"),
    [
        ("x", QuantSpec(8)),
        ("x", QuantSpec(16, False, False)),
        ("w", QuantSpec(8, signed=False, symmetric=False, axis=0)),
        ("w", QuantSpec(16, axis=0)),
        ("b", QuantSpec(8, axis=0)),
    ],
)
def test_a_foreign_format_is_refused(graph, point, spec):
    made = graph("y = Conv(x, w, b)", **CONV)
    foreign = plan(made).plan.replace({Point(point): spec})
    with pytest.raises(ValueError, match=f"chip does not take .* at {point}"):
        targets.check(made, CHIP, "w8a8", foreign)


def test_fewer_bits_of_a_weight_are_taken(graph):
    made = graph("y = Conv(x, w, b)", **CONV)
    targets.check(made, CHIP, "w8a8", Plan({Point("w"): replace(S8, bits=5)}))


def test_a_quantized_index_is_refused(graph):
    made = graph("c = Conv(x, w, b)  y = Reshape(c, s)", **CONV, s=[0, -1], out="N,A")
    with pytest.raises(ValueError, match="rules say float"):
        targets.check(made, CHIP, "w8a8", Plan({Point("s"): U8}))


# ------------------------------------------------------------ the table itself


def test_a_target_outside_the_package(graph):
    path = str(Path(__file__).with_name("mychip.py"))
    target = plugins.load("modelmill.targets", path)
    assert target.name == "mychip"
    made = graph("c = Conv(x, w, b)  f = Flatten(c)  y = Gemm(f, v)", **CONV, v=(144, 3), out="N,3")
    planned = plan(made, target)
    assert runs(planned) == [("Conv", "float"), ("Flatten", "float"), ("Gemm", "integer")]
    assert dict(planned.plan) == {Point("f"): U8, Point("v"): replace(S8, axis=1)}
