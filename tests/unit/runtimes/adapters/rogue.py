"""An adapter that does what its "model" says, so that a test sees an engine go wrong.

The model file holds one word: "echo", or a way to fail followed by "open" or "run".
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np


def fail(how, path):
    if how == "abort":
        print("last words of the engine", file=sys.stderr, flush=True)
        os.abort()
    elif how == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "exit":
        os._exit(7)
    elif how == "sleep":
        time.sleep(1000)
    elif how == "child":  # a helper process that outlives its parent, and then a hang
        pid = os.fork()
        if pid == 0:
            time.sleep(1000)
        Path(path).with_suffix(".pid").write_text(str(pid))
        time.sleep(1000)
    elif how == "eat":
        hoard = [np.ones(2**27, np.uint8) for _ in range(64)]
        del hoard
    elif how == "print":
        print("noise on standard output", flush=True)
        os.write(1, b"more noise\n" * 100)
        os.write(2, b"and on the other\n")
    elif how == "flood":
        os.write(1, b"x" * (3 << 20))
    elif how == "raise":
        raise KeyError("the engine does not like this")
    elif how == "object":
        return {"y": np.array(["text"], object)}
    elif how == "read":
        sys.stdin.read()
    else:
        raise AssertionError(how)
    return None


class Session:
    inputs = ("x",)
    outputs = ("y", "z")

    def __init__(self, path, options):
        self.path = path
        self.how, _, self.when = Path(path).read_text().partition(" ")
        if self.when == "open":
            fail(self.how, path)

    def run(self, feeds, outputs=None):
        if self.when == "run":
            odd = fail(self.how, self.path)
            if odd is not None:
                return odd
        full = {"y": feeds["x"], "z": np.asarray(feeds["x"]).sum(keepdims=True)}
        return {name: full[name] for name in outputs or self.outputs}

    def bind(self, feeds):
        return lambda: time.sleep(0.001)

    def executed(self):
        return []

    def close(self):
        pass


class Rogue:
    name = "rogue"
    supported = ("1", "2")
    pip = "pip install rogue"
    suffix = ".onnx"

    def missing(self):
        return None

    def version(self):
        return "1.0"

    def open(self, path, options):
        return Session(path, options)


PLUGIN = Rogue()
