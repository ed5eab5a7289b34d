"""An adapter whose models are texts: "abort" crashes the worker when it is timed, "hang" never
comes back, "refuse" cannot be loaded; anything else, the reference among them, works for a while.
"""

import os
import time
from pathlib import Path


class Session:
    inputs = ("input",)
    outputs = ("y",)

    def __init__(self, path):
        self.text = Path(path).read_bytes()[:6]
        if self.text == b"refuse":
            raise RuntimeError("no such operator")

    def bind(self, feeds):
        if self.text == b"abort\n":
            os.abort()
        return self.hang if self.text == b"hang\n\n" else self.work

    def hang(self):
        time.sleep(1000)

    def work(self):
        end = time.perf_counter() + 0.0005
        while time.perf_counter() < end:
            pass  # work

    def close(self):
        pass


class Flaky:
    name, supported, pip, suffix = "flaky", ("1", "2"), "pip install flaky", ".onnx"

    def missing(self):
        return None

    def version(self):
        return "1"

    def open(self, path, options):
        return Session(path)


PLUGIN = Flaky()
