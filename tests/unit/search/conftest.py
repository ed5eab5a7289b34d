"""A small float network with a shortcut, its data, and its plan for ONNX Runtime."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from modelmill.line.quantize import Where
from modelmill.passes import clean, explicit_bias
from modelmill.targets import load_target

NET = """g (float[N,3,8,8] x) => (float[N,5] y) {
  c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
  r1 = Relu(c1)
  c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)
  s = Add(c2, r1)
  r2 = Relu(s)
  c3 = Conv<pads=[1,1,1,1], group=8>(r2, w3, b3)
  r3 = LeakyRelu<alpha=0.1>(c3)
  p = GlobalAveragePool(r3)
  f = Flatten(p)
  y = Gemm<transB=1>(f, w4, b4)
}"""


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def net(graph_from_text):
    rng = np.random.default_rng(0)

    def normal(*shape, scale=1.0):
        return (rng.normal(size=shape) * scale).astype(np.float32)

    graph = graph_from_text(
        NET,
        w1=normal(8, 3, 3, 3, scale=0.3), b1=normal(8), w2=normal(8, 8, 3, 3, scale=0.1),
        b2=normal(8), w3=normal(8, 1, 3, 3, scale=0.3), b3=normal(8),
        w4=normal(5, 8, scale=0.4), b4=normal(5),
    )  # fmt: skip
    return explicit_bias(clean(graph))


@pytest.fixture
def batches():
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(0.2, 1, (4, 3, 8, 8)).astype(np.float32)} for _ in range(3)]


@pytest.fixture
def target():
    return load_target("ort_cpu")


@pytest.fixture
def planner(net, target):
    where = Where("w8a8")
    return lambda more: where.plan(net, target, more)
