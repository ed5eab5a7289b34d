"""The program inside a worker process: it owns engine sessions and answers requests about them.

Standard input and output become the connection to the parent before anything else is imported; what
the engine prints goes to standard error, which the parent keeps. The worker outlives neither its
parent (end of input, or another parent process), nor a request whose time is up, even if the engine
holds Python's global lock.
"""

import contextlib
import faulthandler
import gc
import json
import os
import re
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modelmill.runtimes.platforms import load_runtime
from modelmill.runtimes.protocol import Arrays, Runtime, Session, SessionOptions
from modelmill.runtimes.wire import Channel

_GRACE_S = 5.0  # the parent's clock decides; the worker's own is for a parent that is gone
Reply = tuple[dict[str, Any], dict[str, np.ndarray]]


@dataclass
class Held:
    """A session, and the call that was timed last, with its input."""

    session: Session
    call: Callable[[], object] | None = None


def main(parent: int) -> None:
    """Answer the process `parent` until it is gone or says "close"."""
    channel = _take_standard_streams()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError):
        _answer(channel)
    _leave()


def _take_standard_streams() -> Channel:
    connection = Channel(os.dup(0), os.dup(1))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return connection


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    _leave()


def _leave() -> None:
    """End at once, with every process that the engine has started.

    An engine may hang or crash while it is torn down, and there is nothing left to save. The
    working directory is the scratch folder that the parent made for this worker.
    """
    shutil.rmtree(os.getcwd(), ignore_errors=True)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


def _answer(channel: Channel) -> None:
    sessions: dict[int, Held] = {}
    while True:
        request, arrays = channel.receive()
        if request["what"] == "close":
            return
        faulthandler.dump_traceback_later(request["timeout_s"] + _GRACE_S, exit=True)
        head, results = _served(sessions, request, arrays)
        try:
            channel.send({**head, "peak_kib": _peak_kib()}, results)
        except TypeError as error:  # an output that cannot be sent
            channel.send({**_refused("error", str(error)), "peak_kib": _peak_kib()}, {})
        faulthandler.cancel_dump_traceback_later()
        del arrays, results  # a batch must not stay while the next one arrives


def _served(sessions: dict[int, Held], request: dict[str, Any], arrays: Arrays) -> Reply:
    """The answer to one request; the session that "open" makes is put into `sessions`, under the
    number that requests about it name.
    """
    try:
        if request["what"] == "probe":
            return {"version": _runtime(request["runtime"]).version()}, {}
        if request["what"] == "open":
            session, head = _open(request)
            if not sessions:
                gc.freeze()  # what the engine brought stays: a collection need not visit it again
            sessions[request["slot"]] = Held(session)
            return head, {}
        if request["what"] == "drop":
            sessions.pop(request["slot"]).session.close()
            return {}, {}
        if request["what"] == "convert":
            return _convert(request), {}
        if request["what"] == "turns":
            return _turns(sessions, request)
        return _REQUESTS[request["what"]](sessions[request["slot"]], request, arrays)
    except RefusalError as error:
        return _refused(error.kind, str(error)), {}
    except Exception as error:  # whatever an engine raises is its answer
        return _refused("error", f"{type(error).__name__}: {error}"), {}


def _refused(kind: str, words: str) -> dict[str, Any]:
    return {"refused": kind, "words": words}


class RefusalError(Exception):
    """A request that cannot be served for a reason that is not the engine's."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind


def _runtime(name: str) -> Runtime:
    try:
        runtime = load_runtime(name)
    except ValueError as error:
        raise RefusalError("user", str(error)) from error
    if line := runtime.missing():
        raise RefusalError("missing", line)
    return runtime


def _open(request: dict[str, Any]) -> tuple[Session, dict[str, Any]]:
    runtime, options = _prepare(request)
    path = request["path"]
    if path.endswith(".onnx") and runtime.suffix != ".onnx":
        source, path = path, str(Path.cwd() / f"converted{request['slot']}{runtime.suffix}")
        runtime.convert(source, path, options)
    session = runtime.open(path, options)
    return session, {
        "inputs": list(session.inputs),
        "outputs": list(session.outputs),
        "version": runtime.version(),
    }


def _convert(request: dict[str, Any]) -> dict[str, Any]:
    runtime, options = _prepare(request)
    runtime.convert(request["path"], request["out"], options)
    return {"version": runtime.version()}


def _prepare(request: dict[str, Any]) -> tuple[Runtime, SessionOptions]:
    """The engine asked for, with the limits of this process set as the options say."""
    facts = request["options"]
    options = SessionOptions(**{**facts, "cpus": tuple(facts["cpus"])})
    if options.cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, options.cpus)
    if options.memory_limit_mib is not None:
        limit = options.memory_limit_mib * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return _runtime(request["runtime"]), options


def _run(held: Held, request: dict[str, Any], feeds: Arrays) -> Reply:
    return {}, held.session.run(feeds, request["outputs"])


def _time(held: Held, request: dict[str, Any], feeds: Arrays) -> Reply:
    held.call = held.session.bind(feeds)
    return {}, {"ns": _time_ns(held.call, request["warmup"], request["n"])[0]}


def _turns(sessions: dict[int, Held], request: dict[str, Any]) -> Reply:
    """Series after series, each on the input that its session was timed with before."""
    found = []
    for slot, warmup, n in request["turns"]:
        call = sessions[slot].call
        assert call is not None, "time it once first"
        found.append(_time_ns(call, warmup, n, _probe_ns))
    wall, cpu, probe = (np.concatenate(side) for side in zip(*found, strict=True))
    return {}, {"ns": wall, "cpu_ns": cpu, "probe_ns": probe}


def _time_ns(
    call: Callable[[], object], warmup: int, n: int, probe: Callable[[], int] = lambda: 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nanoseconds of `n` calls after `warmup` others, for how many this process had a processor,
    and what the probe said after each.
    """
    spans, worked, probed = (np.zeros(n, np.int64) for _ in range(3))
    clock, work = time.perf_counter_ns, time.process_time_ns
    gc.collect()
    gc.disable()
    try:
        for _ in range(warmup):
            call()
        for i in range(n):
            begun = work()
            start = clock()
            call()
            spans[i] = clock() - start
            worked[i] = work() - begun
            probed[i] = probe()
    finally:
        gc.enable()
    return spans, worked, probed


_SAID = "one 123 of them said 456 that 78 is"
_PROBED = {"values": [1.5, 2, 3, {"none": None, "flags": [True, False]}], "text": _SAID}
_NUMBERED = re.compile(r"(\w+)\s(\d+)")


def _probe_ns() -> int:
    """How long a little of many things takes.

    Its code and data lie far apart, so it slows down as soon as somebody else is on the processor's
    other hardware thread or in its caches, which no counter of this system tells.
    """
    start = time.perf_counter_ns()
    for _ in range(3):
        json.loads(json.dumps(_PROBED))
        _NUMBERED.findall(_SAID)
        sorted(_SAID.upper().split(" "))
    return time.perf_counter_ns() - start


def _executed(held: Held, request: dict[str, Any], arrays: Arrays) -> Reply:
    return {"ops": [asdict(op) for op in held.session.executed()]}, {}


_REQUESTS: dict[str, Callable[[Held, dict[str, Any], Arrays], Reply]] = {
    "run": _run,
    "time": _time,
    "executed": _executed,
}


def _peak_kib() -> int:
    """Largest resident set so far. Not from getrusage: on Linux that starts at the parent's."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak // 1024 if sys.platform == "darwin" else peak
    return int(status.split("VmHWM:", 1)[1].split(None, 1)[0])
