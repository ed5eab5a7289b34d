"""Shared fixtures: the real data, small graphs written as text, and the demo's folder."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from modelmill import ir
from modelmill.runtimes import EngineStatus, doctor

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as modelmill.cli.main does, before torch loads
# The workers of xdist, which begin after this, are as many as there are cores: two threads of each
# would only wait for one another. What an engine gets is an option of its session.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Each worker begins with a part of the tests in one piece, so that what a module or a session
    shares is made once and not by all workers; who is done first takes from the others.
    """
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


@pytest.fixture(scope="session", autouse=True)
def own_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What commands keep goes into a database of this run, not into that of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELMILL_DB", str(tmp_path_factory.mktemp("database") / "records.db"))
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real models and images (MODELMILL_DATA or ../shared/data); skips without."""
    folder = Path(os.environ.get("MODELMILL_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent; set MODELMILL_DATA")
    return folder


@pytest.fixture(scope="session")
def proto_from_text() -> Callable[..., onnx.ModelProto]:
    """text of the graph, arrays by name, opset -> ModelProto with the arrays as initializers.

    The text is ONNX's own syntax: `g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }`.
    """

    def make(text: str, opset: int = 20, **arrays: np.ndarray) -> onnx.ModelProto:
        head = f'<ir_version: 10, opset_import: ["" : {opset}]>\n'
        proto = onnx.parser.parse_model(head + text)
        for name, array in arrays.items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        return proto

    return make


@pytest.fixture(scope="session")
def graph_from_text(proto_from_text: Callable[..., onnx.ModelProto]) -> Callable[..., ir.Graph]:
    """The same, loaded as a Graph."""

    def make(text: str, opset: int = 20, **arrays: np.ndarray) -> ir.Graph:
        return ir.from_bytes(proto_from_text(text, opset, **arrays).SerializeToString())

    return make


@pytest.fixture(scope="session")
def engines() -> list[EngineStatus]:
    """What the doctor says of every engine; it starts a process for each."""
    return doctor()


@pytest.fixture(scope="session")
def quick() -> Iterator[None]:
    """Latencies are measured with real engines but in a fraction of the usual time."""
    from modelmill.latency import Effort, measure
    from modelmill.line import bench, deploy
    from modelmill.search import cost

    least = Effort(blocks=3, block_ms=3.0, warmups=1, rounds=1)
    with pytest.MonkeyPatch.context() as patch:
        for module in (deploy, bench, cost):
            patch.setattr(module, "measure", lambda s, f, effort: measure(s, f, least))
        yield


@pytest.fixture(scope="session")
def demo_build(quick: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `demo-build`, made by one epoch of the demo."""
    from modelmill.line.demo import DemoOptions, demo

    out = tmp_path_factory.mktemp("demo") / "demo-build"
    demo(DemoOptions(out, epochs=1, simulate=20))
    return out
