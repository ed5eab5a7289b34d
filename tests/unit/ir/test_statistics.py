"""Parameters and multiply-accumulates, against torch and counts by hand."""

import numpy as np
import pytest
import torch

from modelmill import ir


def stats(graph_from_text, text, x="2,3,9,9", out="2,A,B,C", **shapes):
    arrays = {n: np.ones(s, np.float32) for n, s in shapes.items()}
    graph = graph_from_text(f"g (float[{x}] x) => (float[{out}] y) {{ {text} }}", **arrays)
    return ir.statistics(ir.infer_shapes(graph))


CASES = [
    # output 2 x 8 x 9 x 9, each of 3 * 3 * 3 products
    ("y = Conv<pads=[1,1,1,1]>(x, w, b)", {"w": (8, 3, 3, 3), "b": (8,)}, 2 * 8 * 81 * 27, 224),
    ("y = Conv<strides=[2,2]>(x, w)", {"w": (8, 3, 3, 3)}, 2 * 8 * 16 * 27, 216),
    ("y = Conv<group=3>(x, w)", {"w": (6, 1, 3, 3)}, 2 * 6 * 49 * 9, 54),
    # every input element meets each of its 5 * 2 * 2 weights
    ("y = ConvTranspose<strides=[2,2]>(x, w)", {"w": (3, 5, 2, 2)}, 2 * 3 * 81 * 20, 60),
    ("y = Relu(x)", {}, 0, 0),
]


@pytest.mark.parametrize(("text", "shapes", "macs", "params"), CASES)
def test_by_hand(graph_from_text, text, shapes, macs, params):
    found = stats(graph_from_text, text, **shapes)
    assert (found.macs, found.params) == (macs, params)


def test_matrices(graph_from_text):
    found = stats(
        graph_from_text, "g = Gemm<transB=1>(x, w, b)  y = MatMul(g, v)",
        x="4,10", out="4,C", w=(7, 10), b=(7,), v=(7, 5),
    )  # fmt: skip
    assert found.macs == 4 * 7 * 10 + 4 * 7 * 5
    assert found.ops == {"Gemm": 1, "MatMul": 1} and found.params == 70 + 7 + 35


def test_as_torch_counts(graph_from_text):
    """torch's own flop counter: two operations a multiply-accumulate."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.conv2d(torch.ones(2, 4, 9, 9), torch.ones(8, 2, 3, 3), groups=2)
    found = stats(graph_from_text, "y = Conv<group=2>(x, w)", x="2,4,9,9", w=(8, 2, 3, 3))
    assert 2 * found.macs == counter.get_total_flops()


def test_an_unknown_shape_makes_the_total_unknown(graph_from_text):
    found = stats(graph_from_text, "y = Conv(x, w)", x="N,3,H,W", out="N,A,B,C", w=(8, 3, 3, 3))
    assert found.macs is None and found.nodes[0].macs is None and found.params == 216


@pytest.mark.parametrize(
    ("name", "params"), [("resnet20_cifar10", 268_346), ("resnet56_cifar10", 851_500)]
)
def test_real_models_have_about_the_published_sizes(data_dir, name, params):
    """He et al. 2015, table 6: 0.27 M and 0.85 M parameters; 41 M and 126 M products."""
    graph = ir.load(data_dir / "models" / f"{name}.onnx")
    found = ir.statistics(ir.with_batch(graph, 1) if ir.is_batch_dynamic(graph) else graph)
    assert found.params == pytest.approx(params, rel=0.02)
    assert found.macs == pytest.approx({20: 41e6, 56: 126e6}[int(name[6:8])], rel=0.03)
