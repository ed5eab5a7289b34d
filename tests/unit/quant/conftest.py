"""One thread, and small float networks with data."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for tiny_vit.py


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def net(graph_from_text):
    """Conv - Relu - depthwise Conv - Relu - Conv - Add - pool - Gemm, every weight random."""
    rng = np.random.default_rng(0)

    def normal(*shape, scale=1.0):
        wide = np.exp(rng.normal(0, 1, (shape[0], *[1] * (len(shape) - 1))))
        return (rng.normal(size=shape) * wide * scale).astype(np.float32)

    text = """g (float[N,3,8,8] x) => (float[N,5] y) {
      c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
      r1 = Relu(c1)
      c2 = Conv<pads=[1,1,1,1], group=8>(r1, w2, b2)
      r2 = LeakyRelu<alpha=0.1>(c2)
      c3 = Conv(r2, w3, b3)
      c4 = Conv<strides=[1,1]>(c3, w4, b4)
      s = Add(c3, c4)
      p = GlobalAveragePool(s)
      f = Flatten(p)
      g1 = Gemm<transB=1>(f, w5, b5)
      g2 = Relu(g1)
      y = Gemm(g2, w6, b6)
    }"""
    return graph_from_text(
        text,
        w1=normal(8, 3, 3, 3, scale=0.3), b1=normal(8), w2=normal(8, 1, 3, 3, scale=0.4),
        b2=normal(8), w3=normal(6, 8, 1, 1, scale=0.3), b3=normal(6),
        w4=normal(6, 6, 1, 1, scale=0.4), b4=normal(6), w5=normal(9, 6, scale=0.4), b5=normal(9),
        w6=normal(9, 5, scale=0.4), b6=normal(5),
    )  # fmt: skip


@pytest.fixture
def batches():
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(0.2, 1, (8, 3, 8, 8)).astype(np.float32)} for _ in range(3)]


@pytest.fixture
def run():
    """graph, feeds, (value names) -> arrays by ONNX Runtime, without optimisations."""
    ort = pytest.importorskip("onnxruntime")
    from modelmill import ir

    def compute(graph, feeds, names=None):
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        opened = graph if names is None else ir.expose(graph, names)
        session = ort.InferenceSession(ir.to_bytes(opened), options, ["CPUExecutionProvider"])
        outputs = [o.name for o in session.get_outputs()] if names is None else list(names)
        return dict(zip(outputs, session.run(outputs, feeds), strict=True))

    return compute
