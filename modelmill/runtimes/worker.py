"""A session in a process of its own, seen from outside.

`open_session` starts a worker, which loads the engine and the model; the `RemoteSession` sends it
batches. Whatever becomes of the worker is one `DeploymentError` here: the signal that ended it with
its last words, a time-out (the whole process group is stopped), or the exception that the engine
raised. The worker gets this package by its path and nothing else from this environment, so its
interpreter may be that of another one: see `platforms`.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn, Self

import numpy as np

from modelmill.runtimes.platforms import Platform, find_platform
from modelmill.runtimes.protocol import (
    Arrays,
    DeploymentError,
    EngineCrashed,
    EngineError,
    EngineMissing,
    EngineOutOfMemory,
    EngineTimeout,
    ExecutedOp,
    SessionOptions,
)
from modelmill.runtimes.wire import Channel, ProtocolError

# -P keeps the working directory off the path; the package is found by its folder alone.
_BOOTSTRAP = """
import importlib.util, sys
root, parent = sys.argv[1:]
spec = importlib.util.spec_from_file_location(
    "modelmill", root + "/__init__.py", submodule_search_locations=[root])
sys.modules["modelmill"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from modelmill.runtimes.serve import main
main(int(parent))
"""
_PACKAGE = Path(__file__).resolve().parent.parent
_CLOSE_S = 2.0
_TAIL_BYTES = 2000
_NOISE_BYTES = 1 << 20
_MEMORY_WORDS = ("MemoryError", "bad_alloc", "annot allocate memory", "ailed to allocate memory")
_DEFAULT = SessionOptions()

Answer = tuple[dict[str, Any], dict[str, np.ndarray]]


def open_session(
    runtime: str,
    path: str | os.PathLike[str],
    options: SessionOptions = _DEFAULT,
) -> "RemoteSession":
    """Load the model at `path` with the engine `runtime`: a platform (`ncnn`,
    `onnxruntime@1.24.4`), or the path of an adapter file. An ONNX file is first converted where the
    engine has a format of its own.

    Raises:
        ValueError: no such file or runtime, or two environments claim the platform.
        EngineMissing: the engine is not installed.
        DeploymentError: it crashed, hung, ran out of memory, or refused the model.
    """
    path, platform = _existing(path, runtime), find_platform(runtime)
    process = _Process(platform, options.timeout_s)
    try:
        return _open_in(process, 0, runtime, path, options)
    except BaseException:
        process.stop()
        raise


class Worker:
    """One process in which sessions of an engine come and go: to start one for each costs more than
    to time a small model. What crashes it costs all of them.
    """

    def __init__(self, runtime: str, timeout_s: float = _DEFAULT.timeout_s) -> None:
        """Start it.

        Raises:
            ValueError: no such runtime, or two environments claim the platform.
            DeploymentError: no process can be started.
        """
        self.runtime = runtime
        self._process = _Process(find_platform(runtime), timeout_s)
        self._opened = 0

    def open(
        self, path: str | os.PathLike[str], options: SessionOptions = _DEFAULT
    ) -> "RemoteSession":
        """As `open_session`; closing the session leaves the worker. The processors and the memory
        limit of the options hold for the whole worker, and its time limit is its own.
        """
        self._opened += 1
        path = _existing(path, self.runtime)
        return _open_in(self._process, self._opened, self.runtime, path, options)

    def turns(self, series: Sequence[tuple["RemoteSession", int, int]]) -> list["Series"]:
        """Time sessions of this worker one after the other, without a word between the series.

        Args:
            series: (session, unmeasured inferences, inferences); each session was timed before,
                and goes on with the feeds of that.

        Raises:
            DeploymentError: see `modelmill.runtimes.protocol`; the time limit covers all of it.
        """
        asked = {"turns": [(session.slot, warmup, n) for session, warmup, n in series]}
        _, found = self._process.ask("turns", "time in turns", asked, {})
        ends = np.cumsum([n for _, _, n in series])[:-1]
        sides = (np.split(found[side] / 1e6, ends) for side in ("ns", "cpu_ns", "probe_ns"))
        return [Series(*series) for series in zip(*sides, strict=True)]

    def close(self) -> None:
        """End it with all its sessions. A second call does nothing."""
        self._process.stop()


@dataclass(frozen=True, eq=False)
class Series:
    """Inferences one after the other, one entry each, in milliseconds.

    wall   by the clock
    cpu    how long the worker had a processor, added up over its threads: of one thread, less than
           `wall` means that it was interrupted
    probe  how long a fixed piece of work took right after it: more than at other times means that
           somebody else uses the same processor core or its caches
    """

    wall: np.ndarray
    cpu: np.ndarray
    probe: np.ndarray


def _open_in(
    process: "_Process", slot: int, runtime: str, path: Path, options: SessionOptions
) -> "RemoteSession":
    """Session `slot` of a process; 0 is the one whose end is its own."""
    asked = {"path": str(path.resolve()), "options": asdict(options), "slot": slot}
    head, _ = process.ask("open", f"load {path.name}", asked, {})
    return RemoteSession(process, runtime, path, options, head, slot)


def convert(
    runtime: str,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: SessionOptions = _DEFAULT,
) -> None:
    """Write the engine's own file `out`, and what belongs to it, for the ONNX file `source`.

    Raises:
        ValueError: no such file or runtime.
        EngineMissing: the engine is not installed.
        DeploymentError: it crashed, hung, ran out of memory, or refused the model.
    """
    source = _existing(source, runtime)
    process = _Process(find_platform(runtime), options.timeout_s)
    asked = {
        "path": str(source.resolve()),
        "out": str(Path(out).resolve()),
        "options": asdict(options),
    }
    try:
        process.ask("convert", f"convert {source.name}", asked, {})
    finally:
        process.stop()


def _existing(path: str | os.PathLike[str], runtime: str) -> Path:
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such model file; give the path of one that {runtime} loads")
    return path


def probe(runtime: str, timeout_s: float = 60.0) -> str:
    """Version of the engine, which is loaded in a worker to see that it can be.

    Raises:
        ValueError: no such runtime, or two environments claim the platform.
        EngineMissing: the engine is not installed.
        DeploymentError: it cannot be loaded.
    """
    process = _Process(find_platform(runtime), timeout_s)
    try:
        head, _ = process.ask("probe", "load the engine", {}, {})
    finally:
        process.stop()
    return str(head["version"])


class RemoteSession:
    """A `Session` whose engine lives in a worker process. For one thread at a time."""

    def __init__(
        self,
        process: "_Process",
        runtime: str,
        path: Path,
        options: SessionOptions,
        head: dict[str, Any],
        slot: int = 0,
    ) -> None:
        self._process = process
        self.slot = slot
        self._alone = slot == 0
        self._closed = False
        self.runtime = runtime
        self.path = path
        self.options = options
        self.version: str = head["version"]
        self.inputs: tuple[str, ...] = tuple(head["inputs"])
        self.outputs: tuple[str, ...] = tuple(head["outputs"])

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The named outputs (None: all) for one batch {input name: array}.

        Raises:
            ValueError: wrong names, or an array that is not made of plain numbers.
            DeploymentError: see `modelmill.runtimes.protocol`.
        """
        self._check_feeds(feeds)
        unknown = sorted(set(outputs or ()) - set(self.outputs))
        if unknown:
            raise ValueError(
                f"{self.path.name} has no output {', '.join(unknown)};"
                f" it has {', '.join(self.outputs)}"
            )
        asked = {"outputs": None if outputs is None else list(outputs)}
        _, results = self._ask("run", f"run {self.path.name}", asked, feeds)
        return results

    def time(self, feeds: Arrays, warmup: int, n: int) -> list[float]:
        """Milliseconds of `n` inferences after `warmup` others; the engine's call alone is timed.

        Raises:
            ValueError: wrong names, or an array that is not made of plain numbers.
            DeploymentError: see `modelmill.runtimes.protocol`; the time limit covers the series.
        """
        self._check_feeds(feeds)
        asked = {"warmup": warmup, "n": n}
        _, results = self._ask("time", f"time {self.path.name}", asked, feeds)
        spans: list[float] = (results["ns"] / 1e6).tolist()
        return spans

    def executed(self) -> list[ExecutedOp]:
        """The kernels that the engine runs after its own fusions, in order, each with its time.

        They are asked for on the input shapes of the last batch, or with 1 for a free dimension.

        Raises:
            DeploymentError: see `modelmill.runtimes.protocol`.
        """
        head, _ = self._ask("executed", f"profile {self.path.name}", {}, {})
        return [ExecutedOp(**op) for op in head["ops"]]

    def peak_memory_mib(self) -> float:
        """Largest resident memory of the worker so far: Python, engine, model and batches."""
        return self._process.peak_kib / 1024

    def close(self) -> None:
        """End the worker, or only the session where others share it. A second call does nothing."""
        if self._alone:
            self._process.stop()
        elif not self._closed:
            self._closed = True
            with contextlib.suppress(DeploymentError):  # a worker that is gone holds no session
                self._ask("drop", f"close {self.path.name}", {}, {})

    def _ask(self, what: str, doing: str, facts: dict[str, Any], arrays: Arrays) -> Answer:
        return self._process.ask(what, doing, {"slot": self.slot, **facts}, arrays)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_feeds(self, feeds: Arrays) -> None:
        if set(feeds) != set(self.inputs):
            raise ValueError(
                f"{self.path.name} takes the inputs {', '.join(self.inputs)};"
                f" it was given {', '.join(feeds) or 'none'}"
            )


class _Process:
    """A worker process, which is started at once, and the connection to it."""

    def __init__(self, platform: Platform, timeout_s: float) -> None:
        self.peak_kib = 0
        self._runtime = platform.name
        self._adapter = _resolved(platform.runtime)
        self._timeout_s = timeout_s
        self._ended: DeploymentError | None = None
        self._errors = tempfile.TemporaryFile("a+b")  # noqa: SIM115 (closed by `_release`)
        scratch = tempfile.mkdtemp(prefix="modelmill-worker-")
        try:
            self._popen = subprocess.Popen(
                [platform.python, "-P", "-c", _BOOTSTRAP, str(_PACKAGE), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                cwd=scratch,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            self._errors.close()
            shutil.rmtree(scratch, ignore_errors=True)
            raise DeploymentError(
                f"cannot start a worker with {platform.python}: {error}"
            ) from error
        self._release = weakref.finalize(self, _release, self._popen, self._errors, scratch)
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._channel = Channel(self._popen.stdout.fileno(), self._popen.stdin.fileno())

    def ask(self, what: str, doing: str, facts: dict[str, Any], arrays: Arrays) -> Answer:
        """Send one request and wait for its answer, within the time limit."""
        if self._ended is not None:
            raise EngineCrashed(f"the session has ended: {self._ended}") from self._ended
        if not self._release.alive:
            raise EngineError(f"the {self._runtime} session is closed; open another one")
        deadline = time.monotonic() + self._timeout_s
        try:
            request = {"what": what, "runtime": self._adapter, **facts}
            request["timeout_s"] = self._timeout_s
            self._channel.send(request, arrays, deadline)
            head, results = self._channel.receive(deadline)
        except TypeError as error:
            raise ValueError(f"cannot {doing}: input {error}") from error
        except TimeoutError:
            self._fail(self._too_late(doing))
        except (EOFError, OSError, ProtocolError) as error:
            self._fail(self._why_gone(doing, error))
        except BaseException:
            # Ctrl-C: what is left of this answer would be taken for the next one.
            self._release()
            raise
        self.peak_kib = head["peak_kib"]
        self._forget_noise()
        if "refused" in head:
            self._refuse(head["refused"], head["words"], doing)
        return head, results

    def stop(self) -> None:
        """End the worker: ask, wait a little, then stop its process group."""
        if self._release.alive:
            with contextlib.suppress(OSError, TimeoutError, subprocess.TimeoutExpired):
                self._channel.send({"what": "close"}, {}, time.monotonic() + _CLOSE_S)
                self._popen.wait(_CLOSE_S)
            self._release()

    def _refuse(self, kind: str, words: str, doing: str) -> NoReturn:
        if kind == "user":
            raise ValueError(words)
        if kind == "missing":
            raise EngineMissing(f"{self._runtime} is not installed; run: {words}")
        text = f"{self._runtime} could not {doing}: {words}"
        if any(w in words for w in _MEMORY_WORDS):
            raise EngineOutOfMemory(f"out of memory: {text}")
        raise EngineError(text)

    def _fail(self, error: DeploymentError) -> NoReturn:
        self._ended = error
        self._release()
        raise error

    def _too_late(self, doing: str) -> DeploymentError:
        return EngineTimeout(
            f"{self._runtime} did not {doing} within {self._timeout_s:g} s and was stopped;"
            f" allow more time (--timeout) if it only needs longer{self._last_words()}"
        )

    def _why_gone(self, doing: str, error: Exception) -> DeploymentError:
        try:
            code = self._popen.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            return EngineCrashed(f"{self._runtime} broke the connection: {error}")
        said = self._last_words()
        if code == -signal.SIGKILL:
            what = "was killed (SIGKILL; out of memory?)"
        elif code < 0:
            what = f"crashed ({_signal_name(-code)})"
        else:
            what = f"exited with code {code}"
        text = f"{self._runtime} {what} when it was to {doing}{said}"
        if any(w in said for w in _MEMORY_WORDS):
            return EngineOutOfMemory(f"out of memory: {text}")
        return EngineCrashed(text)

    def _last_words(self) -> str:
        size = os.fstat(self._errors.fileno()).st_size
        self._errors.seek(max(0, size - _TAIL_BYTES))
        tail = self._errors.read().decode(errors="replace").strip()
        return f"; its last words: {tail}" if tail else ""

    def _forget_noise(self) -> None:
        """An engine that prints at each run must not fill the disk; it goes on at the new end."""
        if os.fstat(self._errors.fileno()).st_size > _NOISE_BYTES:
            self._errors.truncate(0)


def _release(popen: "subprocess.Popen[bytes]", errors: IO[bytes], scratch: str) -> None:
    """Stop the worker with everything it has started, and remove what it left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(popen.pid, signal.SIGKILL)
    popen.wait()
    for stream in (popen.stdin, popen.stdout, errors):
        if stream is not None:
            stream.close()
    shutil.rmtree(scratch, ignore_errors=True)


def _resolved(runtime: str) -> str:
    """The worker has another working directory than whoever wrote the path of an adapter."""
    return str(Path(runtime).resolve()) if runtime.endswith(".py") else runtime


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
