"""Ranges and encodings of formats that CPUs do not have: powers of two, logarithms, 16 bits."""

import numpy as np
import pytest
import torch

from modelmill import ir
from modelmill.ir import Plan, Point
from modelmill.numerics import QuantSpec, choose_encoding
from modelmill.quant.bias_correction import BiasCorrection
from modelmill.quant.calibrate import Calibrate, weight_encoding
from modelmill.quant.observe import Observer
from modelmill.quant.ranges import METHODS, choose_range

POWER = QuantSpec(8, power_of_two=True)
LOG = QuantSpec(8, signed=False, symmetric=True, logarithmic=True)
U8 = QuantSpec(8, signed=False, symmetric=False)
U16 = QuantSpec(16, signed=False, symmetric=False)


def observed(x):
    observer = Observer()
    observer.update(torch.as_tensor(np.asarray(x, np.float32).reshape(-1, 100)))
    return observer.statistics()


def squared_error(spec, scale, x):
    codes = np.clip(np.rint(x / scale), spec.qmin, spec.qmax)
    return float(((codes * scale - x) ** 2).sum())


@pytest.mark.parametrize("method", METHODS)
def test_the_exponent_has_the_smallest_error_of_its_neighbours(method):
    """An outlier is worth a code range of twice the width only if that costs less; method mse
    counts clipping four times, so it may take the wider of two.
    """
    rng = np.random.default_rng(1)
    x = np.append(rng.normal(size=9999) * 0.4, 5.0).astype(np.float32)
    chosen = choose_encoding(POWER, *choose_range(method, observed(x), POWER))
    powers = 2.0 ** np.arange(-12, 2)
    best = powers[np.argmin([squared_error(POWER, s, x) for s in powers])]
    assert float(chosen.scale) in (best, 2 * best)


def test_weights_take_the_best_of_three_exponents():
    rng = np.random.default_rng(2)
    w = np.concatenate([rng.normal(size=5000) * 0.02, [0.9]]).astype(np.float32)
    found = weight_encoding(w, POWER, "mse")
    whole = weight_encoding(w, POWER, "minmax")
    assert whole.scale == 2.0**-7
    errors = [squared_error(POWER, float(whole.scale) * a, w) for a in (1, 0.5, 0.25)]
    assert found.scale == whole.scale * [1, 0.5, 0.25][int(np.argmin(errors))]


def test_an_asymmetric_weight_is_a_weight(net, batches):
    """Even where its format is the one of activations: it is chosen by its own error."""
    plan = Plan({Point("x"): U8, Point("w1"): U8})
    _, found = Calibrate("minmax", weights="mse")(net, plan, batches)
    w = ir.constants(net)["w1"]
    assert found[Point("w1")] == weight_encoding(w, U8, "mse")


@pytest.mark.parametrize("spec", [POWER, LOG, U16], ids=str)
def test_a_whole_net(net, batches, spec):
    values = [n for n in ir.values(net) if n not in ir.constants(net)]
    bias = QuantSpec(8, power_of_two=True)
    points = {Point(name): spec for name in values}
    for node in ir.nodes(net):
        if node.op_type == "Conv":
            points |= {Point(node.inputs[1].name): spec if spec != U16 else U8}
            points |= {Point(node.inputs[2].name): bias} if spec == POWER else {}
    graph, plan = Calibrate("mse")(net, Plan(points), batches)
    for point, encoding in plan.encodings().items():
        assert encoding.spec == points[point]
    corrected, after = BiasCorrection()(graph, plan, batches)
    for node in ir.nodes(corrected):
        if node.op_type == "Conv" and spec == POWER:
            name = node.inputs[2].name
            assert after[Point(name)] == weight_encoding(ir.constants(corrected)[name], bias, "mse")
