"""What the pages tell a reader to run, run in a folder that `modelmill demo` has filled."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def quick() -> Iterator[None]:
    """Latencies are measured with real engines but in a fraction of the usual time."""
    from modelmill.latency import Effort, measure
    from modelmill.line import bench, deploy

    least = Effort(blocks=3, block_ms=3.0, warmups=1, rounds=1)
    with pytest.MonkeyPatch.context() as patch:
        for module in (deploy, bench):
            patch.setattr(module, "measure", lambda s, f, effort: measure(s, f, least))
        yield


@pytest.fixture(scope="session")
def demo(quick: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with demo-build in it, after one epoch of training."""
    from modelmill.line.demo import DemoOptions
    from modelmill.line.demo import demo as run_demo

    folder = tmp_path_factory.mktemp("docs")
    run_demo(DemoOptions(folder / "demo-build", epochs=1, simulate=20))
    return folder


@pytest.fixture
def after_demo(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the working directory."""
    shutil.copytree(demo / "demo-build", tmp_path / "demo-build")
    monkeypatch.chdir(tmp_path)
    return tmp_path
