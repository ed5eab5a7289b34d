"""What features say of graphs that are small enough to count by hand."""

import numpy as np
import pytest

from modelmill import ir
from modelmill.ir.assemble import Call, assemble
from modelmill.latency import zoo
from modelmill.latency.features import COLUMNS, KINDS, WHOLE, features, kind


def made(calls, constants, shape=(1, 8, 10, 10), outputs=("y",)):
    return assemble("g", {"x": shape}, calls, list(outputs), constants, 17)


def column(found, name):
    return found.x[:, COLUMNS.index(name)]


def conv(x, y, channels, size, weight, **attributes):
    return Call("Conv", (x, weight), {y: (1, channels, size, size)}, attributes)


W = np.ones((24, 8, 3, 3), np.float32)


def test_a_convolution_and_its_activation_by_hand():
    calls = [
        conv("x", "a", 24, 10, "w", pads=[1] * 4),
        Call("Relu", ("a",), {"y": (1, 24, 10, 10)}),
    ]
    found = features(made(calls, {"w": W}))
    assert found.labels == ("Conv", "Relu")
    assert found.kernels.tolist() == [0, 0]  # one kernel
    assert found.macs.tolist() == [24 * 100 * 8 * 9, 0]
    read, written = 8 * 100, 24 * 100
    assert found.traffic.tolist() == [4 * (read + written + W.size), 4 * 2 * written]
    assert found.weights == W.size
    assert found.edges.tolist() == [[0], [1]]
    assert column(found, "fused").tolist() == [0, 1]
    assert 2 ** column(found, "cout")[0] - 1 == pytest.approx(24)
    assert 2 ** column(found, "cout_pad16")[0] == pytest.approx(32 / 24)  # rounded up to 32
    assert 2 ** column(found, "cout_pad8")[0] == pytest.approx(1)
    assert column(found, "first").tolist() == [1, 0]


def test_a_gate_is_no_activation_of_a_map():
    calls = [
        Call("Sigmoid", ("x",), {"a": (1, 8, 10, 10)}),
        Call("GlobalAveragePool", ("a",), {"b": (1, 8, 1, 1)}),
        Call("Sigmoid", ("b",), {"c": (1, 8, 1, 1)}),
        Call("Relu", ("c",), {"y": (1, 8, 1, 1)}),
    ]
    found = features(made(calls, {}))
    assert found.labels == ("Sigmoid", "GlobalAveragePool", "Sigmoid of one place", "Relu")
    assert [kind(label) for label in found.labels] == ["elementwise", "pool", *["elementwise"] * 2]


def test_forms_of_a_convolution():
    depthwise, grouped = np.ones((8, 1, 3, 3), np.float32), np.ones((8, 4, 3, 3), np.float32)
    calls = [
        conv("x", "a", 8, 10, "d", group=8, pads=[1] * 4),
        conv("a", "b", 8, 10, "g", group=2, pads=[1] * 4),
        conv("b", "y", 4, 10, "p"),
    ]
    constants = {"d": depthwise, "g": grouped, "p": np.ones((4, 8, 1, 1), np.float32)}
    found = features(made(calls, constants))
    assert found.labels == ("Conv depthwise", "Conv grouped", "Conv pointwise")
    assert found.macs.tolist() == [800 * 9, 800 * 4 * 9, 400 * 8]
    assert [kind(label) for label in found.labels] == ["depthwise", "conv", "pointwise"]


def test_a_residual_sum_and_a_swish_belong_to_the_kernel_and_a_gate_does_not():
    weights = {"w": np.ones((8, 8, 3, 3), np.float32)}
    shape, pad = (1, 8, 10, 10), {"pads": [1] * 4}
    residual = [conv("x", "a", 8, 10, "w", **pad), conv("a", "b", 8, 10, "w", **pad)]
    residual.append(Call("Add", ("b", "a"), {"y": shape}))
    assert features(made(residual, weights)).kernels.tolist() == [0, 1, 1]
    swish = [conv("x", "a", 8, 10, "w", **pad), Call("Sigmoid", ("a",), {"s": shape})]
    swish.append(Call("Mul", ("a", "s"), {"y": shape}))
    assert features(made(swish, weights)).kernels.tolist() == [0, 0, 0]
    gate = [conv("x", "a", 8, 10, "w", **pad)]
    gate.append(Call("GlobalAveragePool", ("a",), {"m": (1, 8, 1, 1)}))
    gate.append(Call("Mul", ("a", "m"), {"y": shape}))
    found = features(made(gate, weights))
    assert found.kernels.tolist() == [0, 1, 2]
    assert column(found, "broadcast").tolist() == [0, 0, 1]


def test_what_engines_fold_away_has_no_row():
    numbers = np.ones(24, np.float32)
    calls = [
        Call("Identity", ("x",), {"i": (1, 8, 10, 10)}),
        conv("i", "a", 24, 10, "w", pads=[1] * 4),
        Call("BatchNormalization", ("a", "n", "n", "n", "n"), {"b": (1, 24, 10, 10)}),
        Call("Relu", ("b",), {"y": (1, 24, 10, 10)}),
    ]
    found = features(made(calls, {"w": W, "n": numbers}))
    assert found.labels == ("Conv", "Relu")
    assert found.edges.tolist() == [[0], [1]]  # through the normalization
    alone = [Call("BatchNormalization", ("x", "n", "n", "n", "n"), {"y": (1, 8, 10, 10)})]
    assert features(made(alone, {"n": numbers[:8]})).labels == ("BatchNormalization",)


def test_matrix_products_with_weights_and_of_activations():
    calls = [
        Call("MatMul", ("x", "w"), {"a": (1, 6, 5)}),
        Call("Transpose", ("a",), {"t": (1, 5, 6)}, {"perm": [0, 2, 1]}),
        Call("MatMul", ("a", "t"), {"y": (1, 6, 6)}),
    ]
    found = features(made(calls, {"w": np.ones((4, 5), np.float32)}, (1, 6, 4)))
    assert found.labels == ("MatMul", "Transpose", "MatMul of activations")
    assert found.macs.tolist() == [6 * 4 * 5, 0, 6 * 6 * 5]


@pytest.mark.parametrize("family", ["resnet", "squeezenet", "nasbench201"])
def test_the_same_multiplications_as_the_statistics_of_the_graph(family):
    graph = zoo.draw(family, 0)[1]
    found = features(graph)
    assert found.total_macs == ir.statistics(graph).macs
    assert len(found.labels) == len(found.x) == len(found.kernels)
    assert found.x.shape[1] == len(COLUMNS)
    assert found.whole.shape == (len(WHOLE),)
    assert np.isfinite(found.x).all()
    assert np.isfinite(found.whole).all()
    shares = [found.whole[WHOLE.index(f"macs of {k}")] for k in KINDS]
    assert sum(shares) == pytest.approx(1, abs=1e-5)


def test_an_open_dimension_is_asked_for():
    graph = made([conv("x", "y", 24, 8, "w")], {"w": W})
    graph.graph.inputs[0].shape = type(graph.graph.inputs[0].shape)([1, 8, "height", 10])
    with pytest.raises(ValueError, match=r"'x' has the shape \(1, 8, height, 10\).*input_shape"):
        features(graph)
