"""Reconstruction: what each paper claims, on a problem built to show it; and what must not break
it.
"""

import numpy as np
import pytest
import torch

from modelmill import executor, ir
from modelmill.ir import Plan, Point
from modelmill.numerics import Encoding, QuantSpec
from modelmill.quant import learn
from modelmill.quant.adaround import AdaRound
from modelmill.quant.brecq import Brecq
from modelmill.quant.calibrate import Calibrate, weight_names
from modelmill.quant.learn import MANY, SOON
from modelmill.quant.qdrop import QDrop
from modelmill.quant.reconstruct import Workplace, fisher
from modelmill.quant.rounding import Rounding

ALL = (AdaRound, Brecq, QDrop)


def short(step, iterations, seed=0, **more):
    """The algorithm as in its paper: without the tuning of the whole network that follows it."""
    alone = {} if step is AdaRound else {"tune": 0}
    return step(iterations=iterations, seed=seed, **alone, **more)


RESIDUAL = """g (float[N,4,6,6] x) => (float[N,4,6,6] y) {
  a = Conv<pads=[1,1,1,1]>(x, w1)  r = Relu(a)  b = Conv<pads=[1,1,1,1]>(r, w2)
  s = Add(b, x)  y = Relu(s)
}"""


def planned(graph, batches, weights, activations=None, ranges="mse"):
    """Asymmetric codes: weights per output channel, what layers read per tensor."""
    spec = QuantSpec(weights, signed=False, symmetric=False, axis=0)
    asked = {Point(name): spec for name in weight_names(graph)}
    if activations is not None:
        layers = [n for n in ir.nodes(graph) if n.op_type in ("Conv", "Gemm", "MatMul")]
        read = QuantSpec(activations, signed=False, symmetric=False)
        asked |= {Point(n.inputs[0].name): read for n in layers}
    return Calibrate(ranges, ranges, ranges)(graph, Plan(asked), batches)[1]


def weights_only(graph, plan):
    """The part of a plan that holds for weights."""
    names = weight_names(graph)
    return Plan({p: e for p, e in plan.encodings().items() if p.value in names})


def output(graph, plan, feeds, names=None):
    with torch.no_grad():
        found = executor.Module(graph, plan)(feeds, names)
    return {name: y.numpy().astype(np.float64) for name, y in found.items()}


def error(reference, graph, plan, feeds, name="y"):
    """Squared error of a value relative to its energy."""
    exact = output(reference, Plan(), feeds, [name])[name]
    return float(((output(graph, plan, feeds, [name])[name] - exact) ** 2).sum() / (exact**2).sum())


def weight_error(reference, graph, plan):
    before, after, encodings = ir.constants(reference), ir.constants(graph), plan.encodings()
    names = [name for name in weight_names(reference) if Point(name) in plan]
    return sum(float(((encodings[Point(n)].fake(after[n]) - before[n]) ** 2).sum()) for n in names)


def bytes_of(made):
    return ir.to_bytes(made.graph), made.plan.fingerprint()


def images(seed, count=64, channels=4, size=6):
    """Neighbouring pixels and channels alike, as in photographs and features."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0.5, 1, (count, 1, size, size))
    return (common + 0.4 * rng.normal(size=(count, channels, size, size))).astype(np.float32)


@pytest.fixture
def residual(graph_from_text):
    rng = np.random.default_rng(0)
    graph = graph_from_text(
        RESIDUAL,
        w1=rng.normal(0, 0.2, (4, 4, 3, 3)).astype("f"),
        w2=rng.normal(0, 0.2, (4, 4, 3, 3)).astype("f"),
    )
    return graph, [{"x": images(1)}], {"x": images(2, 128)}


# ------------------------------------------------------------------------ what the papers claim


def test_adaround_moves_weights_away_and_outputs_nearer(graph_from_text):
    """AdaRound, section 3: rounding to the nearest is best for weights, not for what they do. Here
    inputs rise and fall together, so that the sum of a row's errors counts, not their squares.
    """
    rng = np.random.default_rng(0)
    graph = graph_from_text(
        "g (float[N,16] x) => (float[N,8] y) { y = Gemm<transB=1>(x, w) }",
        w=rng.normal(size=(8, 16)).astype("f"),
    )
    x = (rng.normal(size=(256, 1)) + 0.1 * rng.normal(size=(256, 16))).astype("f")
    batches, fresh = [{"x": x[:128]}], {"x": x[128:]}
    plan = planned(graph, batches, 3)
    made, learned = AdaRound(iterations=200)(graph, plan, batches)
    assert weight_error(graph, made, learned) > weight_error(graph, graph, plan)
    assert error(graph, made, learned, fresh) < 0.5 * error(graph, graph, plan, fresh)
    assert learned.encodings() == plan.encodings()  # steps stay


def test_brecq_lets_errors_cancel_inside_a_block(graph_from_text):
    """Two layers whose outputs are added: layer by layer, neither can answer for the other."""
    rng = np.random.default_rng(0)
    graph = graph_from_text(
        """g (float[N,4,6,6] x) => (float[N,4,6,6] y) {
          a = Conv<pads=[1,1,1,1]>(x, w1)  b = Conv<pads=[1,1,1,1]>(x, w2)  y = Add(a, b)
        }""",
        w1=rng.normal(0, 0.2, (4, 4, 3, 3)).astype("f"),
        w2=rng.normal(0, 0.2, (4, 4, 3, 3)).astype("f"),
    )  # fmt: skip
    batches, fresh = [{"x": images(1)}], {"x": images(2, 128)}
    plan = planned(graph, batches, 2)
    by_layer = AdaRound(iterations=300).run(graph, plan, batches)
    together = short(Brecq, 300).run(graph, plan, batches)
    assert (len(by_layer.units), len(together.units)) == (2, 1)

    def errors(made):
        return [error(graph, made.graph, made.plan, fresh, name) for name in ("a", "b", "y")]

    layered, joined = errors(by_layer), errors(together)
    assert joined[2] < 0.8 * layered[2]
    assert max(joined[:2]) > min(layered[:2])  # a branch is worse, their sum better


def test_qdrop_is_flatter_than_brecq_where_activations_are_noisy(residual):
    """QDrop, section 3: how much of what a block learned do perturbed activations cost?"""
    graph, batches, fresh = residual
    plan = planned(graph, batches, 3, activations=2)

    def under_noise(step, seed):
        """Errors of the learned weights on exact activations and on quantized ones."""
        made, learned = short(step, 400, seed)(graph, plan, batches)
        bare = weights_only(graph, learned)
        steps = {p: e for p, e in plan.encodings().items() if p not in bare}
        noisy = Plan({**bare.encodings(), **steps})
        return error(graph, made, bare, fresh), error(graph, made, noisy, fresh)

    exact = {s: np.array([under_noise(s, seed) for seed in range(3)]).mean(0) for s in ALL[1:]}
    (sharp, sharp_noisy), (flat, flat_noisy) = exact[Brecq], exact[QDrop]
    assert flat_noisy - flat < sharp_noisy - sharp
    assert flat_noisy < sharp_noisy


def test_fisher_weighs_what_the_outputs_hear(graph_from_text):
    """Of two channels only one reaches the output: the other's error costs nothing."""
    graph = graph_from_text(
        """g (float[N,2,4,4] x) => (float[N,1,4,4] y) { a = Conv(x, w1)  y = Conv(a, w2) }""",
        w1=np.eye(2, dtype="f").reshape(2, 2, 1, 1),
        w2=np.array([3, 0], "f").reshape(1, 2, 1, 1),
    )
    feeds = {"x": torch.from_numpy(images(0, 8, 2, 4))}
    (weights,) = fisher(executor.Module(graph), feeds, ["a"], 0).values()
    np.testing.assert_allclose(weights.flatten(), [2, 0], atol=1e-6)  # mean 1
    batches = [{"x": images(1, 64, 2, 4)}]
    made = short(Brecq, 20, fisher=True).run(graph, planned(graph, batches, 4), batches)
    assert all(np.isfinite(unit.loss_after) for unit in made.units)


# ------------------------------------------------------------------------ what must hold always


@pytest.mark.parametrize("step", ALL)
def test_sixteen_bits_reproduce_float(step, residual):
    """On the images that the ranges were taken from: others may lie outside."""
    graph, batches, _ = residual
    made, plan = short(step, 20)(graph, planned(graph, batches, 16, 16, "minmax"), batches)
    assert error(graph, made, plan, batches[0]) < 1e-7


def _zeros(make, rng):
    zero = np.zeros((4, 4, 3, 3), "f")
    return make(RESIDUAL, w1=zero, w2=zero), images(1)


def _dead_channel(make, rng):
    w1, w2 = rng.normal(0, 0.2, (2, 4, 4, 3, 3)).astype("f")
    w1[2] = 0
    return make(RESIDUAL, w1=w1, w2=w2), images(1)


def _one_image(make, rng):
    w1, w2 = rng.normal(0, 0.2, (2, 4, 4, 3, 3)).astype("f")
    return make(RESIDUAL, w1=w1, w2=w2), images(1, 1)


def _constant_map(make, rng):
    w1, w2 = rng.normal(0, 0.2, (2, 4, 4, 3, 3)).astype("f")
    return make(RESIDUAL, w1=w1, w2=w2), np.full((32, 4, 6, 6), 0.7, "f")


def _black_images(make, rng):
    w1, w2 = rng.normal(0, 0.2, (2, 4, 4, 3, 3)).astype("f")
    return make(RESIDUAL, w1=w1, w2=w2), np.zeros((32, 4, 6, 6), "f")


def _odd_sizes(make, rng):
    text = """g (float[N,3,7,5] x) => (float[N,5] y) {
      a = Conv<strides=[2,2]>(x, w1)  r = Relu(a)  p = GlobalAveragePool(r)  f = Flatten(p)
      y = Gemm<transB=1>(f, w2)
    }"""
    w1, w2 = (rng.normal(0, 0.3, shape).astype("f") for shape in ((7, 3, 3, 1), (5, 7)))
    return make(text, w1=w1, w2=w2), rng.normal(size=(33, 3, 7, 5)).astype("f")


def _batch_of_one(make, rng):
    w1, w2 = rng.normal(0, 0.2, (2, 4, 4, 3, 3)).astype("f")
    return make(RESIDUAL.replace("[N,", "[1,"), w1=w1, w2=w2), images(1, 24)


CASES = (
    _zeros, _dead_channel, _one_image, _constant_map, _black_images, _odd_sizes, _batch_of_one
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.strip("_"))
@pytest.mark.parametrize("step", ALL)
def test_no_unit_gets_worse_and_no_loss_is_nan(step, case, graph_from_text):
    graph, x = case(graph_from_text, np.random.default_rng(0))
    size = 1 if not ir.is_batch_dynamic(graph) else 16
    batches = [{"x": x[i : i + size]} for i in range(0, len(x), size)]
    made = short(step, 30).run(graph, planned(graph, batches, 2, 4), batches)
    for unit in made.units:
        assert 0 <= unit.loss_after <= unit.loss_before
    found = output(made.graph, made.plan, batches[0])
    assert all(np.isfinite(y).all() for y in found.values())


@pytest.mark.parametrize("step", ALL)
def test_a_block_of_two_inputs(step, graph_from_text):
    rng = np.random.default_rng(0)
    graph = graph_from_text(
        """g (float[N,4,6,6] x, float[N,4,6,6] z) => (float[N,4,6,6] y) {
          a = Conv<pads=[1,1,1,1]>(x, w1)  b = Conv<pads=[1,1,1,1]>(z, w2)
          s = Add(a, b)  y = Relu(s)
        }""",
        w1=rng.normal(size=(4, 4, 3, 3)).astype("f"), w2=rng.normal(size=(4, 4, 3, 3)).astype("f"),
    )  # fmt: skip
    batches = [{"x": images(1), "z": images(3)}]
    plan = planned(graph, batches, 2, 8)
    made, learned = short(step, 200)(graph, plan, batches)
    assert error(graph, made, learned, batches[0]) < error(graph, graph, plan, batches[0])


@pytest.mark.parametrize("step", ALL)
def test_the_same_seed_gives_the_same_bytes_and_another_one_others(step, residual):
    graph, batches, _ = residual
    plan = planned(graph, batches, 2, 4)
    first, again, other = (
        bytes_of(short(step, 40, seed).run(graph, plan, batches)) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_killed_run_continues_to_the_same_bytes(net, batches, tmp_path):
    class KilledError(Exception):
        pass

    def kill(done, total):
        if done == 2:
            raise KilledError

    plan, step = planned(net, batches, 3, 4), AdaRound(iterations=20)
    whole = step.run(net, plan, batches)
    with pytest.raises(KilledError):
        step.run(net, plan, batches, Workplace(folder=tmp_path, show=kill))
    assert len(list(tmp_path.glob("unit-*.npz"))) == 2
    (tmp_path / "unit-001.npz").write_bytes(b"half")  # a damaged one is learned again
    first = (tmp_path / "unit-000.npz").read_bytes()
    resumed = step.run(net, plan, batches, Workplace(folder=tmp_path))
    assert bytes_of(resumed) == bytes_of(whole)
    assert (tmp_path / "unit-000.npz").read_bytes() == first
    assert [u.loss_after for u in resumed.units] == [u.loss_after for u in whole.units]


def test_little_memory_spills_to_disk_and_changes_nothing(residual, tmp_path):
    graph, batches, _ = residual
    plan, step = planned(graph, batches, 2, 4), short(QDrop, 20)
    roomy = step.run(graph, plan, batches)
    tight = step.run(graph, plan, batches, Workplace(memory=1, folder=tmp_path))
    assert roomy.spilled_mib == 0 < roomy.cache_mib
    assert tight.cache_mib == 0 < tight.spilled_mib
    assert bytes_of(tight) == bytes_of(roomy)
    assert not list(tmp_path.glob("cache-*"))  # nothing is left behind


@pytest.mark.parametrize("step", ALL)
def test_nan_in_a_weight_is_named(step, residual):
    graph, batches, _ = residual
    plan = planned(graph, batches, 4)
    broken = ir.clone(graph)
    w1 = ir.constants(graph)["w1"].copy()
    w1[0, 0, 0, 0] = np.nan
    ir.set_constant(broken, ir.nodes(broken)[0], 1, w1)
    with pytest.raises(ValueError, match="holds NaN or infinity on calibration data"):
        short(step, 5)(broken, plan, batches)


def test_no_images_is_an_error(residual):
    graph, batches, _ = residual
    with pytest.raises(ValueError, match="at least one image"):
        AdaRound()(graph, planned(graph, batches, 4), [])


@pytest.mark.parametrize("step", ALL)
def test_plain_rounding_stays_where_learning_is_worse(step, graph_from_text):
    """Learned from images whose two channels agree, judged by two, where they differ:
    0.49 x + 0.45 y is 0.94 on the one kind and 0.04 on the other, and codes are whole numbers.
    """
    graph = graph_from_text(
        "g (float[N,2,1,1] x) => (float[N,2,1,1] y) { y = Conv(x, w) }",
        w=np.array([[0.49, 0.45], [0.0, 3.0]], "f").reshape(2, 2, 1, 1),
    )
    spec = QuantSpec(4, signed=False, symmetric=False)
    x = np.ones((32, 2, 1, 1), "f")
    x[8::16, 1] = -1  # one in sixteen is held out, from the middle of each sixteen
    plan = Plan({Point("w"): Encoding(spec, np.float32(1), np.int32(4))})
    made = short(step, 200).run(graph, plan, [{"x": x}])
    (unit,) = made.units
    assert unit.kept and unit.flipped == 0 and unit.loss_after == unit.loss_before
    assert np.array_equal(ir.constants(made.graph)["w"], ir.constants(graph)["w"])
    assert made.plan.encodings() == plan.encodings()


def test_a_rounding_goes_on_where_it_stopped():
    """What `found` gave, resumed from the calibrated encoding: the same codes and steps."""
    rng = np.random.default_rng(3)
    weight = torch.tensor(rng.normal(size=(4, 9)), dtype=torch.float32)
    spec = QuantSpec(3, signed=False, symmetric=False, axis=0)
    calibrated = Encoding(spec, np.full(4, 0.4, np.float32), np.full(4, 4))
    learned = Rounding(weight, calibrated, True)
    with torch.no_grad():
        learned.v.copy_(torch.tensor(rng.random((4, 9))))
        learned.log_step.copy_(torch.tensor(rng.normal(0, 0.2, (4, 1))))
    again = Rounding(weight, calibrated, True)
    again.resume(*learned.found())
    assert torch.equal(again.codes(), learned.codes())
    np.testing.assert_allclose(again.step.detach(), learned.step.detach(), rtol=1e-6)


def test_one_image_at_a_time_is_learned_from_as_few_as_several(graph_from_text, monkeypatch):
    """A bound on the elements of a batch holds for a graph that insists on batch 1, too."""
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(0, 0.2, (4, 4, 3, 3)).astype("f") for n in ("w1", "w2")}
    graph = graph_from_text(RESIDUAL.replace("N", "1"), **weights)
    batches = [{"x": x[None]} for x in images(1, 48)]
    monkeypatch.setattr(learn, "MOST_ELEMENTS", 9 * 4 * 6 * 6)
    sizes = []

    def loss(work, rows, drop, quantizers, true=learn._Work.loss):
        if drop is not None:  # learning, not judging
            sizes.append(len(rows))
        return true(work, rows, drop, quantizers)

    monkeypatch.setattr(learn._Work, "loss", loss)
    short(Brecq, 3, batch=32).run(graph, planned(graph, batches, 4), batches)
    assert sizes == [1] * 9 * 3  # one block, 9 images an iteration


@pytest.mark.parametrize(("count", "iterations"), [(MANY // 2, SOON), (MANY * 2, SOON + 5)])
@pytest.mark.parametrize(("activations", "mixed"), [(8, False), (4, True)])
def test_images_and_bits_tell_how_long_and_from_what(
    residual, monkeypatch, count, iterations, activations, mixed
):
    """No more than SOON with few images; float values are mixed in where steps are learned."""
    graph, batches = residual[0], [{"x": images(5, count)}]
    seen = []

    def loss(work, rows, drop, quantizers, true=learn._Work.loss):
        if drop is not None:
            seen.append(0 < drop < 1)
        return true(work, rows, drop, quantizers)

    monkeypatch.setattr(learn._Work, "loss", loss)
    made = short(QDrop, SOON + 5).run(graph, planned(graph, batches, 3, activations), batches)
    assert seen == [mixed] * iterations * len(made.units)


@pytest.mark.parametrize("count", [MANY * 2, MANY // 2])
def test_the_whole_network_turns_roundings_where_images_are_many(residual, count):
    graph, batches = residual[0], [{"x": images(5, count)}]
    plan = planned(graph, batches, weights=2, activations=4)
    blocks, whole = (QDrop(iterations=10, tune=n).run(graph, plan, batches) for n in (0, 300))
    assert whole.tuned is not None and not whole.tuned.kept
    assert whole.tuned.loss_after < whole.tuned.loss_before
    turned = 0
    for name in weight_names(graph):
        codes = [
            made.plan.encodings()[Point(name)].quantize(ir.constants(made.graph)[name])
            for made in (blocks, whole)
        ]
        turned += int((codes[0] != codes[1]).sum())
    assert (turned > 0) == (count >= MANY)
