"""A worker that goes wrong costs one session: an adapter in `adapters/` goes wrong for real."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from modelmill.runtimes import (
    DeploymentError,
    EngineCrashed,
    EngineError,
    EngineMissing,
    EngineOutOfMemory,
    EngineTimeout,
    SessionOptions,
    open_session,
)
from modelmill.runtimes.worker import probe

ROGUE = str(Path(__file__).parent / "adapters" / "rogue.py")
ABSENT = str(Path(__file__).parent / "adapters" / "absent.py")
X = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture
def start(tmp_path):
    """start("abort run") opens the rogue engine on a model with these words."""
    sessions = []

    def opened(words, **options):
        model = tmp_path / "model.txt"
        model.write_text(words)
        sessions.append(open_session(ROGUE, model, SessionOptions(**options)))
        return sessions[-1]

    yield opened
    for session in sessions:
        session.close()


def gone(pid):
    """Whether the process ends within two seconds or is only waiting to be collected."""
    for _ in range(100):
        try:
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_arrays_come_back_as_they_were(start):
    session = start("echo")
    assert session.inputs == ("x",) and session.outputs == ("y", "z") and session.version == "1.0"
    cases = [
        np.arange(5, dtype=np.int8),
        np.array(3.5),
        np.zeros((0, 4), np.float32),
        np.array([True, False]),
        np.array([1 + 2j], np.complex64),
        np.arange(24, dtype=">i4").reshape(2, 3, 4),
        np.arange(24, dtype=np.uint8).reshape(4, 6)[::2, ::-3],
        np.array([np.nan, -0.0, np.inf], np.float16),
    ]
    for x in cases:
        y = session.run({"x": x})["y"]
        assert y.dtype == x.dtype and y.shape == x.shape and y.tobytes() == x.tobytes()


def test_only_the_named_outputs(start):
    session = start("echo")
    assert list(session.run(X, ["z"])) == ["z"]
    assert session.run(X, ["z"])["z"] == 15


def test_times_are_those_of_the_engine_call(start):
    spans = start("echo").time(X, warmup=1, n=5)
    assert len(spans) == 5 and min(spans) >= 1.0  # the adapter sleeps one millisecond


@pytest.mark.parametrize("when", ["open", "run"])
@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ("abort", EngineCrashed, "SIGABRT.*last words of the engine"),
        ("segv", EngineCrashed, "SIGSEGV"),
        ("kill", EngineCrashed, r"SIGKILL; out of memory\?"),
        ("exit", EngineCrashed, "exited with code 7"),
        ("raise", EngineError, "KeyError: 'the engine does not like this'"),
    ],
)
def test_an_engine_that_fails(start, how, when, error, says):
    with pytest.raises(error, match=f"(?s){says}") as caught:
        start(f"{how} {when}").run(X)
    assert isinstance(caught.value, DeploymentError)
    assert ("load" if when == "open" else "run") + " model.txt" in str(caught.value)


def test_a_session_whose_worker_is_gone_says_why(start):
    session = start("abort run")
    for _ in range(2):
        with pytest.raises(EngineCrashed, match="SIGABRT"):
            session.run(X)


def test_a_refusal_leaves_the_session_usable(start):
    session = start("raise run")
    for _ in range(2):
        with pytest.raises(EngineError, match="KeyError"):
            session.run(X)
    assert session.executed() == []


def test_a_worker_killed_from_outside(start):
    session = start("echo")
    os.kill(session._process._popen.pid, signal.SIGKILL)
    with pytest.raises(EngineCrashed, match="SIGKILL"):
        session.run({"x": np.zeros(10**7, np.uint8)})  # more than a pipe holds: fails in the middle


@pytest.mark.parametrize("when", ["open", "run"])
def test_an_engine_that_hangs_is_stopped(start, when):
    begin = time.monotonic()
    with pytest.raises(EngineTimeout, match=r"within 0\.7 s"):
        start(f"sleep {when}", timeout_s=0.7).run(X)
    assert time.monotonic() - begin < 5


def test_a_time_out_stops_the_processes_that_the_engine_started(start, tmp_path):
    with pytest.raises(EngineTimeout):
        start("child run", timeout_s=1.5).run(X)
    assert gone(int((tmp_path / "model.pid").read_text()))


@pytest.mark.parametrize("when", ["open", "run"])
def test_an_engine_that_eats_memory(start, when):
    with pytest.raises(EngineOutOfMemory, match="out of memory"):
        start(f"eat {when}", memory_limit_mib=300).run(X)


def test_a_batch_larger_than_the_limit(start):
    session = start("echo", memory_limit_mib=200)
    with pytest.raises(EngineOutOfMemory):
        session.run({"x": np.zeros(300 * 2**20, np.uint8)})


@pytest.mark.parametrize("how", ["print", "flood", "read"])
@pytest.mark.parametrize("when", ["open", "run"])
def test_what_the_engine_prints_or_reads_does_not_disturb(start, how, when):
    session = start(f"{how} {when}")
    for _ in range(3):
        np.testing.assert_array_equal(session.run(X)["y"], X["x"])
    assert os.fstat(session._process._errors.fileno()).st_size < 1 << 20


def test_an_output_that_is_not_made_of_numbers(start):
    with pytest.raises(EngineError, match=r"'y' holds object"):
        start("object run").run(X)


def test_wrong_names_and_types(start):
    session = start("echo")
    with pytest.raises(ValueError, match=r"takes the inputs x; it was given image"):
        session.run({"image": X["x"]})
    with pytest.raises(ValueError, match=r"no output logits; it has y, z"):
        session.run(X, ["logits"])
    with pytest.raises(ValueError, match="'x' holds <U4"):
        session.run({"x": np.array(["text"])})
    assert session.run(X)["z"] == 15


def test_missing_engine_gives_the_pip_line(tmp_path):
    (tmp_path / "m").touch()
    with pytest.raises(EngineMissing, match=r'pip install "no-such-engine>=1,<2"') as caught:
        open_session(ABSENT, tmp_path / "m")
    assert isinstance(caught.value, ValueError)
    with pytest.raises(EngineMissing, match="pip install"):
        probe(ABSENT)


def test_unknown_runtime_and_file(tmp_path):
    with pytest.raises(ValueError, match="no such model file"):
        open_session("onnxruntime", tmp_path / "absent.onnx")
    (tmp_path / "m").touch()
    with pytest.raises(ValueError, match=r"'onxruntime'.*onnxruntime"):
        open_session("onxruntime", tmp_path / "m")
    with pytest.raises(ValueError, match="does not exist"):
        open_session("./nowhere.py", tmp_path / "m")


def test_options_are_checked():
    for wrong in ({"threads": 0}, {"timeout_s": 0}, {"batch": 0}, {"memory_limit_mib": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SessionOptions(**wrong)


def test_close_ends_the_worker_and_leaves_nothing(start):
    session = start("echo")
    pid = session._process._popen.pid
    scratch = Path(f"/proc/{pid}/cwd").resolve()
    assert scratch.is_dir()
    session.close()
    session.close()
    assert gone(pid) and not scratch.exists()
    with pytest.raises(EngineError, match="closed"):
        session.run(X)


def test_a_forgotten_session_is_stopped(tmp_path):
    (tmp_path / "m").write_text("echo")
    session = open_session(ROGUE, tmp_path / "m")
    pid = session._process._popen.pid
    del session
    assert gone(pid)


PARENT = """
import signal, sys, os, time, threading, numpy as np
from modelmill.runtimes import open_session
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
session = open_session(sys.argv[1], sys.argv[2])
pid = session._process._popen.pid
print(pid, os.readlink(f"/proc/{pid}/cwd"), flush=True)
session.run({"x": np.zeros(1)})
print("answered", flush=True)
time.sleep(1000)
"""


def parent(tmp_path, words):
    (tmp_path / "m").write_text(words)
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, ROGUE, str(tmp_path / "m")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("words", ["echo", "sleep run", "child run"])
def test_the_worker_does_not_outlive_its_parent(tmp_path, words):
    with parent(tmp_path, words) as process:
        pid, scratch = process.stdout.readline().split()
        if words == "echo":
            process.stdout.readline()
        helper = tmp_path / "m.pid"
        while words == "child run" and not (helper.exists() and helper.read_text()):
            time.sleep(0.01)
        process.kill()
    assert gone(pid) and not Path(scratch).exists()
    assert words != "child run" or gone(helper.read_text())


@pytest.mark.parametrize("words", ["echo", "sleep run"])
def test_ctrl_c_shows_no_trace_of_the_worker(tmp_path, words):
    with parent(tmp_path, words) as process:
        pid, scratch = process.stdout.readline().split()
        if words == "echo":
            process.stdout.readline()
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert said.count("Traceback") == 1 and said.strip().endswith("KeyboardInterrupt")
    assert gone(pid) and not Path(scratch).exists()


def test_workers_cpu_affinity(start):
    cpu = min(os.sched_getaffinity(0))
    session = start("echo", cpus=(cpu,))
    assert os.sched_getaffinity(session._process._popen.pid) == {cpu}


def test_peak_memory_grows_with_what_the_worker_holds(start):
    session = start("echo")
    before = session.peak_memory_mib()
    assert 10 < before < 200
    session.run({"x": np.ones(40 * 2**20, np.uint8)})
    assert 40 < session.peak_memory_mib() - before < 100


def test_start_up_imports_no_engine_and_no_torch():
    code = (
        "import sys, modelmill.runtimes.serve, modelmill.runtimes as r;"
        "bad = {'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'openvino', 'sqlalchemy'};"
        "sys.exit(str(bad & set(sys.modules)) if bad & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
