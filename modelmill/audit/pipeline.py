"""Pipeline: how a device gets from a file to an answer, one replaceable step per stage.

    file --decode--> RGB bytes --colour--> RGB bytes --resize--> --crop--> levels of the input's
    size --order, scaling--> float32 --operators, precision--> outputs --reading--> predictions

A step that is None is what the card and this package do. Two pipelines that agree in the steps of
a stage and of all before it have the same numbers there, so they share the work (`sweep`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelmill.tasks import Card
from modelmill.tasks.images import by_opencv

STAGES = (
    "decode",
    "colour",
    "resize",
    "crop",
    "channel order",
    "scaling",
    "operators",
    "precision",
    "post-processing",
)
FLOAT32, HALVES = "float32", ("float16", "bfloat16")


@dataclass(frozen=True)
class Step:
    """What is done at a stage. Two steps of one name do the same; `run` goes to other processes, so
    it is a function of a module or a `functools.partial` of one.
    """

    name: str
    run: Callable[..., Any] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Network:
    """A network to run, a file. name: FLOAT32, a 16-bit type of torch, or whatever else it is
    called. digest: of the file. engine: None for the executor. target: whose integer arithmetic
    the executor simulates; None: float.
    """

    name: str
    path: Path = field(compare=False, repr=False)
    digest: str
    engine: str | None = None
    target: str | None = None


@dataclass(frozen=True)
class Reading:
    """How boxes are chosen from the candidates of a decoder; see `modelmill.audit.suppression`.

    suppress    by class, over all classes, or by a library's function
    iou         overlap from which a box goes; None: the card's
    far_edge    1: a box ends one pixel of the network's input earlier, at the last pixel it holds
    inclusive   1: widths and heights in the IoU count both ends, x2 - x1 + 1
    levels      scores are rounded to 1/levels; 0: not; "float16" is -16
    """

    suppress: str = "class-wise"
    iou: float | None = None
    far_edge: int = 0
    inclusive: int = 0
    levels: int = 0


@dataclass(frozen=True)
class Pipeline:
    """One device, by default what its card says: size, crop, colour order, scaling, thresholds.

    decode     (bytes, name, Input) -> RGB picture; None: Pillow
    colour     RGB picture -> RGB picture; None: nothing
    resize     (picture, size) -> levels (h, w, c); None: the card's library and filter
    place      (Input, Size) -> Placement; None: `tasks.images.place`
    feed       (levels (n, H, W, c), Input) -> float32; None: `tasks.images.scaled`
    rewrites   Graph -> Graph, one after the other
    precision  the network to run; None: the float one
    reading    None: the card's decoder alone
    """

    card: Card
    decode: Step | None = None
    colour: Step | None = None
    resize: Step | None = None
    place: Step | None = None
    feed: Step | None = None
    rewrites: tuple[Step, ...] = ()
    precision: Network | None = None
    reading: Reading | None = None

    def key(self, stage: str) -> tuple[Any, ...]:
        """What decides the numbers behind a stage (one of STAGES), this and all before it."""
        spec = self.card.input
        method = spec.resize.method if spec.resize is not None else None
        grey = by_opencv(spec) if spec.color == "GRAY" else None  # which library makes it
        how = spec.resize
        box = (how.mode, how.to, how.crop, how.fill) if how is not None else ()
        parts = (
            (self.decode, spec.exif),
            (self.colour, grey),
            (self.resize, method),
            (self.place, spec.size, *box),
            (spec.color,),
            (self.feed, spec.layout, spec.scale, spec.mean, spec.std),
            self.rewrites,
            (self.precision,),
            (self.reading, self.card.output, spec),
        )
        return parts[: STAGES.index(stage) + 1]
