"""Precisions below a target's own: who gets how many bits, and what an engine is left with."""

from dataclasses import replace

import numpy as np
import pytest

from modelmill import ir, targets
from modelmill.ir import Plan, Point
from modelmill.line.quantize import Where
from modelmill.numerics import QuantSpec
from modelmill.targets import at_precision, layer_bits, load_target, with_bits

W, ORT = (4, 4, 3, 3), load_target("ort_cpu")
CHAIN = """c = Conv<pads=[1,1,1,1]>(x, w, b)  r = Relu(c)
    d = Conv<pads=[1,1,1,1]>(r, w2, b)  a = Add(d, r)  s = Relu(a)
    e = Conv<pads=[1,1,1,1]>(s, w3, b)  t = Relu(e)
    p = GlobalAveragePool(t)  f = Flatten(p)  y = Gemm<transB=1>(f, u, b)"""
SHAPES = {"w": W, "w2": W, "w3": W, "b": (4,), "u": (4, 4)}


@pytest.fixture
def graph(graph_from_text):
    def make(text=CHAIN, out="float[N,4] y", inputs="float[N,4,8,8] x", opset=20, **shapes):
        rng = np.random.default_rng(0)
        arrays = {
            n: rng.normal(size=s).astype("f") if isinstance(s, tuple) else np.asarray(s)
            for n, s in (shapes or SHAPES).items()
        }
        return graph_from_text(f"g ({inputs}) => ({out}) {{ {text} }}", opset, **arrays)

    return make


def plan(graph, target=ORT, precision="w8a8", **where):
    return Where(precision, **where).plan(graph, at_precision(target, precision))


def bits(planned):
    """{value: bits} of what is not a bias."""
    found = {p.value: planned.plan.spec(p).bits for p in planned.plan}
    return {name: number for name, number in found.items() if number != 32}


# ------------------------------------------------------------ a target at a precision


def test_a_listed_precision_is_the_target_itself():
    assert at_precision(ORT, "w8a8") is ORT
    qnn = load_target("qnn")
    assert at_precision(qnn, "w8a16") is qnn


def test_narrow_weights_run_on_the_engine():
    made = at_precision(ORT, "w4a8")
    assert made == replace(ORT, schemes=(*ORT.schemes, replace(ORT.schemes[0], precision="w4a8")))
    assert made.runtime == "onnxruntime" and made.simulated == ""


def test_narrow_activations_are_simulated():
    made = at_precision(load_target("qnn_htp"), "w2a4")
    assert made.runtime is None and not made.emulated and made.guards == ()
    assert made.export == ("aimet",)
    assert made.simulated == (
        "w2a4 is simulated: no engine here computes on 4-bit activations: qnn quantizes them to 8 "
        "bits"
    )


def test_the_files_of_a_chip_that_is_not_here_know_no_narrow_weights():
    made = at_precision(load_target("rockchip"), "w4a8")
    assert made.export == ("aimet",) and "no 4-bit weights" in made.simulated


def test_wide_activations_keep_the_wide_formats():
    made = at_precision(load_target("qnn"), "w4a16")
    assert made.scheme("w4a16").activation.bits == 16


@pytest.mark.parametrize(
    ("name", "precision", "why"),
    [
        ("ort_cpu", "w4a16", "no precision 'w4a16'. Choices: w8a8"),
        ("ort_cpu", "w1a8", "weights have 2 to 8 bits"),
        ("ort_cpu", "w9a8", "weights have 2 to 8 bits"),
        ("ort_cpu", "w4a12", "activations 2 to 8 or 16"),
        ("ort_cpu", "4", "not of the form wXaY"),
        ("ppl_w8a16", "w4a4", "no precision 'w4a4'. Choices: w8a16"),
        ("nnie", "w4a8", "logarithmic"),
    ],
)
def test_what_cannot_be_is_refused(name, precision, why):
    with pytest.raises(ValueError, match=why):
        at_precision(load_target(name), precision)


# ------------------------------------------------------------ bits by layer


def test_first_and_last_layer_keep_eight_bits(graph):
    made = graph()
    found = layer_bits(made, plan(made).plan, "w2a4")
    conv1, conv2, conv3, gemm = (n.name for n in ir.nodes(made) if n.op_type in ("Conv", "Gemm"))
    assert found == {conv1: (8, 8), conv2: (2, 4), conv3: (2, 4), gemm: (8, 8)}
    assert set(layer_bits(made, plan(made).plan, "w2a4", 0).values()) == {(2, 4)}
    assert layer_bits(made, plan(made).plan, "w2a4", 3)[gemm] == (3, 4)
    with pytest.raises(ValueError, match="--first-last-bits is 2 to 8, or 0"):
        layer_bits(made, plan(made).plan, "w2a4", 9)


def test_values_that_no_layer_reads_stay(graph):
    """The Add's output feeds a convolution, the other operand of the Add does not."""
    found = bits(plan(graph(), precision="w2a4"))
    layers = {"x": 8, "w": 8, "r": 4, "w2": 2, "s": 4, "w3": 2, "f": 8, "u": 8}
    assert found == layers | dict.fromkeys(("d", "t", "p"), 8)


def test_ties_and_several_readers_have_the_largest(graph):
    """r is read by a layer of 2 bits and, through a pool, by one of 6: r and m are one tie."""
    text = """c = Conv<pads=[1,1,1,1]>(x, w, b)  r = Relu(c)
        d = Conv<pads=[1,1,1,1]>(r, w2, b)  m = MaxPool<kernel_shape=[1,1]>(r)
        e = Conv<pads=[1,1,1,1]>(m, w3, b)  y = Add(d, e)"""
    made = graph(text, out="float[N,4,8,8] y", w=W, w2=W, w3=W, b=(4,))
    one, two, three = (n.name for n in ir.nodes(made) if n.op_type == "Conv")
    layers = ((one, 8, 8), (two, 3, 2), (three, 4, 6))
    planned = plan(made, precision="w8a8", layers=layers)
    found = bits(planned)
    assert (found["r"], found["m"], found["w2"], found["w3"]) == (6, 6, 3, 4)
    alone = with_bits(made, plan(made).plan, {two: (3, 2)})  # the others want what the plan says
    assert alone.spec(Point("r")).bits == 8 and alone.spec(Point("w2")).bits == 3


def test_a_shortcut_makes_no_second_first_layer(graph):
    """Both convolutions read x with none between on one path; only one lies behind no other."""
    text = "c = Conv<pads=[1,1,1,1]>(x, w, b)  a = Add(c, x)  y = Conv<pads=[1,1,1,1]>(a, w2, b)"
    text += "  z = Add(y, a)"
    made = graph(text, out="float[N,4,8,8] z", w=W, w2=W, b=(4,))
    text = f"{text}  v = Conv(z, w3, b)  q = Add(v, v)"
    longer = graph(text, out="float[N,4,6,6] q", w=W, w2=W, w3=W, b=(4,))
    assert set(layer_bits(made, plan(made).plan, "w4a4").values()) == {(8, 8)}
    assert list(layer_bits(longer, plan(longer).plan, "w4a4").values()) == [(8, 8), (4, 4), (8, 8)]


def test_every_output_has_its_last_layer(graph):
    text = """c = Conv<pads=[1,1,1,1]>(x, w, b)  d = Conv<pads=[1,1,1,1]>(c, w2, b)
        y = Conv<pads=[1,1,1,1]>(d, w3, b)  z = Sigmoid(d)"""
    made = graph(text, out="float[N,4,8,8] y, float[N,4,8,8] z", w=W, w2=W, w3=W, b=(4,))
    assert list(layer_bits(made, plan(made).plan, "w4a4").values()) == [(8, 8)] * 3


def test_a_product_of_two_activations_is_a_layer(graph):
    made = graph(
        "a = MatMul(x, w)  k = MatMul(a, w2)  t = Transpose<perm=[0,2,1]>(k)  s = MatMul(a, t)"
        "  m = Softmax(s)  y = MatMul(m, w3)",
        inputs="float[N,4,4] x", out="float[N,4,4] y", w=(4, 4), w2=(4, 4), w3=(4, 4),
    )  # fmt: skip
    academic = load_target("academic")
    found = bits(plan(made, academic, "w3a5"))
    assert found == {"x": 8, "w": 8, "a": 5, "w2": 3, "t": 5, "m": 8, "w3": 8}


def test_narrow_weights_use_their_lowest_code(graph):
    openvino = load_target("openvino_cpu")
    planned = plan(graph(), openvino, "w2a8", flags=("avx512_vnni",))
    assert planned.plan.spec(Point("w2")) == QuantSpec(2, axis=0)
    assert planned.plan.spec(Point("w")) == QuantSpec(8, axis=0, narrow=True)
    targets.check(graph(), at_precision(openvino, "w2a8"), "w2a8", planned.plan)


def test_a_guard_still_holds_for_the_wider_layers(graph):
    planned = plan(graph(), ORT, "w4a8", flags=("avx2",))
    assert planned.plan.spec(Point("w")).bits == 7 and planned.plan.spec(Point("w2")).bits == 4
    assert "7 bits because" in planned.notes[0]


def test_nothing_changes_at_eight_bits(graph):
    made = graph()
    bare = targets.plan(made, ORT, "w8a8", "x86_64", frozenset({"avx512_vnni"}))
    assert plan(made, flags=("avx512_vnni",)) == bare


def test_notes_say_what_is_packed_and_what_is_simulated(graph):
    (note,) = plan(graph(), precision="w4a8", flags=("avx512_vnni",)).notes
    assert "2 of 4 layers" in note and "2 of them stored as INT4" in note
    (note,) = plan(graph(), precision="w6a8", flags=("avx512_vnni",)).notes
    assert "2 of 4 layers" in note and "INT4" not in note
    (note,) = plan(graph(), precision="w4a4").notes
    assert note.startswith("ort_cpu: w4a4 is simulated")


def test_more_bits_than_the_format_has_and_unknown_layers(graph):
    made = graph()
    name = next(n.name for n in ir.nodes(made) if n.op_type == "Conv")
    with pytest.raises(ValueError, match="16 bits are asked for, the target has 8"):
        plan(made, layers=((name, 8, 16),))
    with pytest.raises(ValueError, match="no node 'nowhere'"):
        plan(made, layers=(("nowhere", 4, 4),))


# ------------------------------------------------------------ the checker


@pytest.mark.parametrize(
    ("value", "spec", "taken"),
    [
        ("r", QuantSpec(3, signed=False, symmetric=False), True),
        ("r", QuantSpec(3), False),
        ("r", QuantSpec(16, signed=False, symmetric=False), False),
        ("w", QuantSpec(3, axis=0), True),
        ("w", QuantSpec(3, axis=0, narrow=True), False),
        ("b", QuantSpec(8, axis=0), False),
    ],
)
def test_what_the_checker_takes(graph, value, spec, taken):
    made = graph("c = Conv(x, w, b)  r = Relu(c)  y = Conv(r, w2, b2)", out="float[N,4,4,4] y",
                 w=W, w2=W, b=(4,), b2=(4,))  # fmt: skip
    changed = plan(made).plan.replace({Point(value): spec})
    if taken:
        targets.check(made, ORT, "w8a8", changed)
        return
    with pytest.raises(ValueError, match="ort_cpu does not take"):
        targets.check(made, ORT, "w8a8", changed)


def test_ties_outside_the_plan_are_left(graph):
    made = graph()
    cut = plan(made).plan.without({Point("f")})
    assert isinstance(with_bits(made, cut, {}), Plan)
