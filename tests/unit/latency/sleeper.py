"""An adapter whose inference is a short sleep; `log` beside its model says when it is timed."""

import os
import time
from pathlib import Path


class Session:
    inputs = ("x",)
    outputs = ("y",)

    def __init__(self, path):
        self.path = Path(path)

    def bind(self, feeds):
        if self.path.read_text() == "abort":
            os.abort()
        with (self.path.parent / "log").open("a") as log:
            log.write(self.path.name + "\n")
        return lambda: time.sleep(0.0001)


class Sleeper:
    name, supported, pip, suffix = "sleeper", ("1", "2"), "pip install sleeper", ".onnx"

    def missing(self):
        return None

    def version(self):
        return "1"

    def open(self, path, options):
        return Session(path)


PLUGIN = Sleeper()
