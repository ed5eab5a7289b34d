"""Engines that compile for seconds run their main checks in `make test`, the others in `pytest`.
What they, and any that brings torch, import for seconds too is imported once, in a worker that
their sessions share.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from modelmill.runtimes import RemoteSession, SessionOptions, Worker, open_session

Open = Callable[..., RemoteSession]
DEFAULT = SessionOptions()
COMPILES = {"executorch", "iree", "torch_inductor", "tvm"}
SHARED = COMPILES | {"torch_eager"}
MAIN = {
    "test_float_scores_are_those_of_the_reference",
    "test_a_quantized_convolution_runs_as_an_integer_kernel",
    "test_a_file_that_is_no_model_is_refused",
}


def pytest_collection_modifyitems(items):
    for item in items:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        side = given.get("engine") in COMPILES and item.originalname not in MAIN
        if item.originalname == "test_what_is_planned_as_integer_runs_as_integer":
            side = given["target"] in COMPILES and given["name"] != "residual"
        if side:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def open_shared() -> Iterator[Open]:
    """As `open_session`, but for sessions of one `SHARED` engine that follow on one another."""
    with ExitStack() as last:
        workers: dict[str, Worker] = {}

        def start(runtime: str, path: object, options: SessionOptions = DEFAULT) -> RemoteSession:
            if runtime not in SHARED:
                return open_session(runtime, path, options)
            if runtime not in workers:
                last.close()  # one engine at a time: they are large
                workers.clear()
                workers[runtime] = last.enter_context(closing(Worker(runtime)))
            return workers[runtime].open(path, options)

        yield start
