"""Two concrete pipelines, stage by stage: where they part, and which pipelines tell what it costs.

`alone` is the training pipeline with one stage of the device; `until` has all of the device's
stages up to this one, so the costs of a row of `until` add up to that of the device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from modelmill.audit.pipeline import STAGES, Pipeline, Step
from modelmill.tasks.card import Input, Resize


@dataclass(frozen=True)
class Stage:
    """A stage in which the two are not the same; `trained` and `device` say how in words."""

    name: str
    trained: str
    device: str
    alone: Pipeline
    until: Pipeline


def stages(trained: Pipeline, device: Pipeline) -> list[Stage]:
    """The stages that differ, in order. A layout counts for nothing: both feed the same network."""
    found, until = [], trained
    for name in STAGES:
        alone, until = take(name, trained, device), take(name, until, device)
        if alone != trained:
            found.append(Stage(name, words(name, trained), words(name, device), alone, until))
    return found


def take(stage: str, into: Pipeline, source: Pipeline) -> Pipeline:
    """`into` with one stage of `source`."""
    a, b = into.card.input, source.card.input
    if stage == "decode":
        return replace(_with(into, replace(a, exif=b.exif)), decode=source.decode)
    if stage == "colour":
        return replace(into, colour=source.colour)
    if stage == "resize":
        return replace(_with(into, replace(a, resize=_filter(a, b))), resize=source.resize)
    if stage == "crop":
        return replace(_with(into, replace(a, resize=_geometry(a, b))), place=source.place)
    if stage == "channel order":
        return _with(into, replace(a, color=b.color))
    if stage == "scaling":
        numbers = replace(a, scale=b.scale, mean=b.mean, std=b.std)
        return replace(_with(into, numbers), feed=source.feed)
    if stage == "operators":
        return replace(into, rewrites=source.rewrites)
    if stage == "precision":
        return replace(into, precision=source.precision)
    card = replace(into.card, output=source.card.output)
    return replace(into, card=card, reading=source.reading)


def words(stage: str, pipeline: Pipeline) -> str:
    """What a pipeline does at a stage."""
    spec, how = pipeline.card.input, pipeline.card.input.resize
    if stage == "decode":
        return f"{_named(pipeline.decode, 'pillow')}, EXIF {'obeyed' if spec.exif else 'ignored'}"
    if stage == "colour":
        return _named(pipeline.colour, "RGB throughout")
    if stage == "resize":
        return _named(pipeline.resize, how.method if how is not None else "none")
    if stage == "crop":
        return _named(pipeline.place, _shape(how))
    if stage == "channel order":
        return spec.color
    if stage == "scaling":
        mean, std = ([round(v, 6) for v in values] for values in (spec.mean, spec.std))
        return _named(pipeline.feed, f"(byte * {spec.scale:.6g} - {mean}) / {std}")
    if stage == "operators":
        return ", ".join(step.name for step in pipeline.rewrites) or "as in the file"
    if stage == "precision":
        return "float32" if pipeline.precision is None else pipeline.precision.name
    out = pipeline.card.output
    limits = (("scores", out.score_threshold), ("IoU", out.iou_threshold), ("most", out.max_boxes))
    said = [f"{what} {value:g}" for what, value in limits if value is not None]
    said += [str(pipeline.reading)] if pipeline.reading is not None else []
    return ", ".join([out.decode, *said])


def _with(pipeline: Pipeline, spec: Input) -> Pipeline:
    return replace(pipeline, card=replace(pipeline.card, input=spec))


def _filter(a: Input, b: Input) -> Resize | None:
    """The resize of `a` with the filter of `b`; all of it where one of them resizes nothing."""
    if a.resize is None or b.resize is None:
        return b.resize
    return replace(a.resize, method=b.resize.method)


def _geometry(a: Input, b: Input) -> Resize | None:
    """The resize of `a` with the geometry of `b`."""
    if a.resize is None or b.resize is None:
        return a.resize
    return replace(b.resize, method=a.resize.method)


def _shape(how: Resize | None) -> str:
    if how is None:
        return "none"
    to = f" {how.to}" if how.to is not None else ""
    fill = f" on {how.fill}" if how.mode == "letterbox" else ""
    return f"{how.mode}{to}{fill}{', centre crop' if how.crop is not None else ''}"


def _named(step: Step | None, usual: str) -> str:
    return usual if step is None else step.name
