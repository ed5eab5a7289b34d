"""What the steps of one build share: read once, never changed."""

from __future__ import annotations

from dataclasses import dataclass

from modelmill import ir
from modelmill.latency import Effort
from modelmill.line.options import BuildOptions
from modelmill.line.show import Show
from modelmill.line.source import Images, Source
from modelmill.line.store import Json, Store
from modelmill.runtimes import SessionOptions

EFFORT = Effort()
FLOAT_ARTIFACT = "artifacts/float.onnx"


@dataclass(frozen=True)
class Job:
    """One build at work.

    graph: the clean float graph. key: what every step's result depends on. threads: of scoring
    sessions; latency is always measured with one.
    """

    options: BuildOptions
    source: Source
    images: Images
    graph: ir.Graph
    store: Store
    key: Json
    threads: int
    show: Show
    effort: Effort = EFFORT

    def session(self, threads: int, batch: int | None) -> SessionOptions:
        """Options of a session of this build."""
        return SessionOptions(threads=threads, timeout_s=self.options.timeout_s, batch=batch)
