"""crop: where the picture comes to lie in the network's input.

Side lengths in proportion are rounded, truncated or rounded up, the odd pixel of a centred crop
falls to either side, and a picture may be stretched, bordered or cut to the input's shape.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from modelmill.audit.noise import LeftOut, Noise, Offer, Option, Subject
from modelmill.audit.pipeline import Pipeline, Step
from modelmill.tasks.card import Input, Resize, Size
from modelmill.tasks.images import Placement, place


def torchvision(spec: Input, size: Size) -> Placement:
    """The longer side truncated, the corner rounded half to even, as torchvision's Resize and
    CenterCrop do.
    """
    assert spec.resize is not None
    short = spec.resize.to
    assert isinstance(short, int)
    h, w = size
    resized = (short, int(short * w / h)) if h <= w else (int(short * h / w), short)
    corners = [-round((o - i) / 2) for o, i in zip(resized, spec.size, strict=True)]
    return Placement((resized[0] / h, resized[1] / w), (corners[0], corners[1]), resized)


def other_corner(spec: Input, size: Size) -> Placement:
    """The odd pixel of a crop or border at the top and left."""
    found = place(spec, size)
    sides = zip(spec.size, found.resized, found.offset, strict=True)
    top, left = (offset - (outer - inner) % 2 if outer > inner else offset + (inner - outer) % 2
                 for inner, outer, offset in sides)  # fmt: skip
    return replace(found, offset=(top, left))


def at_corner(spec: Input, size: Size) -> Placement:
    """A letterbox whose border is at the bottom and right alone."""
    return replace(place(spec, size), offset=(0, 0))


def _place(pipeline: Pipeline, step: Step) -> Pipeline:
    return replace(pipeline, place=step)


def _mode(pipeline: Pipeline, mode: str, to: int | None = None, fill: int = 114) -> Pipeline:
    spec = pipeline.card.input
    assert spec.resize is not None
    crop = "center" if mode == "shorter-side" else None
    resize = Resize(spec.resize.method, mode, to, crop, fill)
    changed = replace(pipeline.card, input=replace(spec, resize=resize))
    return replace(pipeline, card=changed, place=None)


def options(subject: Subject) -> Offer:
    spec = subject.card.input
    if spec.resize is None:
        return [LeftOut("", "the card resizes nothing: pictures have the input's size")]
    mode = spec.resize.mode
    found: list[Option | LeftOut] = []
    if mode == "shorter-side":
        step = Step("torchvision", torchvision)
        words = "longer side truncated, corner rounded, as torchvision does"
        found.append(Option("torchvision", words, partial(_place, step=step)))
    if mode != "stretch" or spec.resize.crop is not None:
        step = Step("other-corner", other_corner)
        words = "the odd pixel at the top and left"
        found.append(Option("other-corner", words, partial(_place, step=step)))
    largest = max(spec.size)
    if mode == "shorter-side" and spec.resize.to != largest:
        words = f"shorter side straight to {largest}, nothing cut from it"
        change = partial(_mode, mode="shorter-side", to=largest)
        found.append(Option("no-margin", words, change, mistake=True))
    if mode == "letterbox":
        step = Step("border-at-end", at_corner)
        words = "border at the bottom and right alone"
        found.append(Option("border-at-end", words, partial(_place, step=step)))
        black = partial(_mode, mode="letterbox", fill=0 if spec.resize.fill else 114)
        words = f"border of grey level {0 if spec.resize.fill else 114}"
        found.append(Option("other-border", words, black))
    others = {"stretch": "stretched", "letterbox": "on a border of grey"}
    others |= {"shorter-side": "cut to the input's shape"} if mode != "shorter-side" else {}
    for name, words in others.items():
        if name != mode:
            to = largest if name == "shorter-side" else None
            found.append(Option(name, words, partial(_mode, mode=name, to=to), mistake=True))
    return found


PLUGIN = Noise("crop", "crop", "where the picture lies in the network's input", options)
