"""What an engine adapter must offer, and what can go wrong with one: types only.

An adapter is a file `runtimes/NAME.py` whose `PLUGIN` is a `Runtime`. It is written as if it were
alone in its process, because it is: `runtimes.open_session` starts a worker for each session, so an
engine that crashes, hangs or eats the memory costs one deployment and not the run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

Arrays = Mapping[str, np.ndarray]
Kind = Literal["integer", "float", "conversion", "other"]


PROFILED = 10  # inferences behind the time of a kernel


class DeploymentError(RuntimeError):
    """One deployment failed: report it, go on with the others."""


class EngineMissing(DeploymentError, ValueError):  # noqa: N818 (says what is)
    """The engine is not installed; the text holds the pip line."""


class EngineError(DeploymentError):
    """The engine refused: the text holds its own words. The session may still be usable."""


class EngineCrashed(DeploymentError):  # noqa: N818
    """The worker process ended; the text holds the signal or exit code and its last words."""


class EngineOutOfMemory(EngineCrashed):
    """The engine asked for more memory than it may have."""


class EngineTimeout(DeploymentError):  # noqa: N818
    """The worker did not answer in time and was stopped."""


@dataclass(frozen=True)
class SessionOptions:
    """How a session runs.

    threads           threads of the engine for one inference
    timeout_s         time limit of one request: load a model, run a batch, time a series
    optimize          False: without the engine's graph optimisations, if it has a switch
    batch             compile for this batch size where that makes a difference (None: as the file)
    cpus              the logical processors the worker is bound to (empty: any)
    memory_limit_mib  limit of the worker's private memory, its engine included (None: none)
    """

    threads: int = 1
    timeout_s: float = 120.0
    optimize: bool = True
    batch: int | None = None
    cpus: tuple[int, ...] = ()
    memory_limit_mib: int | None = None

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"threads={self.threads}: a session needs at least one thread")
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s={self.timeout_s}: give a positive number of seconds")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch={self.batch}: give a positive batch size, or None")
        if self.memory_limit_mib is not None and self.memory_limit_mib < 1:
            raise ValueError(f"memory_limit_mib={self.memory_limit_mib}: give a positive number")


@dataclass(frozen=True)
class ExecutedOp:
    """One kernel that the engine really ran, after its own fusions.

    name       the engine's name of it, usually that of an ONNX node
    op         the engine's type of it: "QLinearConv", "Convolution"
    precision  numpy-like name of the type it works in: "uint8", "float32"
    kind       "integer": works on 8-bit (or smaller) tensors; "float": computes in floating point;
               "conversion": only changes number format or layout; "other": shapes, indices, masks
    us         microseconds in one inference, the median or mean of `PROFILED` where it times each;
               None where it cannot time a single kernel
    """

    name: str
    op: str
    precision: str
    kind: Kind
    us: float | None

    @property
    def integer(self) -> bool:
        """Whether it ran with an 8-bit kernel."""
        return self.kind == "integer"


class Session(Protocol):
    """A loaded model. `inputs` and `outputs` are the names in the order of the file."""

    @property
    def inputs(self) -> tuple[str, ...]: ...

    @property
    def outputs(self) -> tuple[str, ...]: ...

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The named outputs (None: all) for one batch."""

    def bind(self, feeds: Arrays) -> Callable[[], object]:
        """The bare engine call on these inputs, to be timed: calling it does nothing else."""

    def executed(self) -> list[ExecutedOp]:
        """What the engine runs, in order; it may load the model once more to find out."""

    def close(self) -> None: ...


class Runtime(Protocol):
    """An inference engine."""

    @property
    def name(self) -> str: ...

    @property
    def supported(self) -> tuple[str, str]:
        """Versions this adapter was made for: from the first, up to but without the second."""

    @property
    def pip(self) -> str:
        """The line that installs such a version."""

    @property
    def suffix(self) -> str:
        """Of the files it opens: ".onnx" if it reads ONNX itself, else of what `convert` writes."""

    def missing(self) -> str | None:
        """The line `pip`, or None if the engine is there. Must not import it."""

    def version(self) -> str:
        """Version of the engine; imports it, so it also proves that it can be loaded."""

    def convert(self, source: str, out: str, options: SessionOptions) -> None:
        """Write the engine's own file `out` for the ONNX file `source`: a float model, or a
        quantized one as `ir.to_qdq` writes it, whose encodings the engine then works with. More
        files beside it share its stem. Never called where `suffix` is ".onnx".
        """

    def open(self, path: str, options: SessionOptions) -> Session:
        """Load the model at `path`, a file with the suffix `suffix`."""
