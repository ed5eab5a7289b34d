"""One thread, and a deployment of a small graph by one adapter, in this process."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from modelmill import ir
from modelmill.runtimes.protocol import SessionOptions

sys.path.insert(0, str(Path(__file__).parent))  # for small_graphs.py


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """The tensors are small: waiting for a second core costs more than it gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def deployed(tmp_path):
    """deployed(adapter, graph, plan, on_codes) -> a session of the QDQ model, which also gives the
    codes, and their names among its outputs by value; the files are `m.*` in tmp_path.
    """
    sessions = []

    def start(adapter, graph, plan, on_codes=()):
        if line := adapter.missing():
            pytest.skip(line)
        made = ir.to_qdq(graph, plan, on_codes)
        codes = ir.code_values(made)
        source, out = tmp_path / "m.onnx", tmp_path / f"m{adapter.suffix}"
        ir.save(ir.expose(made, codes.values()), source)
        if out != source:
            adapter.convert(str(source), str(out), SessionOptions())
        sessions.append(adapter.open(str(out), SessionOptions()))
        return sessions[-1], codes

    yield start
    for session in sessions:
        session.close()
