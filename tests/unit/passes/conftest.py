"""What every pass promises, as one check."""

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest

from modelmill import ir

Pass = Callable[[ir.Graph], ir.Graph]


def run(graph: ir.Graph, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs by ONNX Runtime with its own optimizer off, so that ours is what is tested."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        ir.to_bytes(graph), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


def feeds_for(graph: ir.Graph, seed: int, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feeds = {}
    for name, info in ir.inputs(graph).items():
        shape = [dim if isinstance(dim, int) else batch for dim in info.shape]
        feeds[name] = rng.standard_normal(shape).astype(info.dtype)
    return feeds


@pytest.fixture(scope="session")
def check() -> Callable[..., list[str]]:
    """(pass, graph, ulps) -> op types after it.

    Checks that the input is untouched, a second run changes nothing, inputs and outputs are called
    and shaped as before, and the numbers agree: every bit, or to `ulps` times float32's epsilon
    relative to the largest output.
    """

    def do(rewrite: Pass, graph: ir.Graph, ulps: float = 0) -> list[str]:
        before = ir.to_bytes(graph)
        after = rewrite(graph)
        assert ir.to_bytes(graph) == before, "the input was edited"
        assert ir.fingerprint(rewrite(after)) == ir.fingerprint(after), "not idempotent"
        assert ir.inputs(after) == ir.inputs(graph) and ir.outputs(after) == ir.outputs(graph)
        ir.from_bytes(ir.to_bytes(after))  # still valid
        for batch in (1, 3):
            feeds = feeds_for(graph, batch, batch)
            for old, new in zip(run(graph, feeds), run(after, feeds), strict=True):
                assert old.dtype == new.dtype and old.shape == new.shape
                if ulps:
                    scale = max(float(np.abs(old).max()), 1e-30)
                    bound = ulps * np.finfo(np.float32).eps * scale
                    np.testing.assert_allclose(new, old, rtol=0, atol=bound)
                else:
                    np.testing.assert_array_equal(new, old)
        return [node.op_type for node in ir.nodes(after)]

    return do
