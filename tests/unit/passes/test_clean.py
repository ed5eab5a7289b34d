"""All passes together, on real models and on what exporters write."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modelmill import ir
from modelmill.passes import clean


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("resnet20_cifar10", {"Slice": 2}),
        ("mobilenetv1_025_imagenet", {"ReduceMean": 1}),
        ("fastestdet_coco", {"Pad": 1}),
    ],
)
def test_real_models(name: str, gone: dict, data_dir: Path, check: Callable) -> None:
    graph = ir.load(data_dir / "models" / f"{name}.onnx")
    if not ir.is_batch_dynamic(graph):
        graph = ir.with_batch(graph, 1)
    before = [node.op_type for node in ir.nodes(graph)]
    # A mean in another order moves the logits in the last place; everything else keeps every bit.
    after = check(clean, graph, ulps=2 * 49 if "ReduceMean" in gone else 0)
    for op in set(before):
        assert before.count(op) - after.count(op) == gone.get(op, 0), op


def test_a_chain_needs_more_than_one_round(graph_from_text: Callable, check: Callable) -> None:
    """The batch norm folds only after the Identity and the Dropout are gone."""
    rng = np.random.default_rng(0)
    graph = graph_from_text(
        "g (float[N,3,8,8] x) => (float[N,5] y) {"
        " p = Pad(x, e)  i = Identity(p)  c = Conv(i, w)  d = Dropout(c)"
        " n = BatchNormalization(d, gamma, beta, mean, var)  r = Relu(n)"
        " a = GlobalAveragePool(r)  s = Shape(a)  k = Gather<axis=0>(s, zero)"
        " u = Unsqueeze(k, axes)  t = Concat<axis=0>(u, m)  f = Reshape(a, t)"
        " v = Transpose<perm=[1,0]>(q)  l = MatMul(f, v)  y = Add(l, b) }",
        e=np.array([0, 0, 1, 1, 0, 0, 1, 1]), w=rng.normal(0, 1, (4, 3, 3, 3)).astype("f"),
        gamma=np.full(4, 2, "f"), beta=np.ones(4, "f"), mean=np.ones(4, "f"), var=np.ones(4, "f"),
        zero=np.int64(0), axes=np.array([0]), m=np.array([-1]),
        q=rng.normal(0, 1, (5, 4)).astype("f"), b=np.ones(5, "f"),
    )  # fmt: skip
    ops = check(clean, graph, ulps=500)
    assert ops == ["Conv", "Relu", "GlobalAveragePool", "Reshape", "Gemm"]
