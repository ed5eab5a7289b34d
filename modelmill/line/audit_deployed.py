"""`--deployed`: the training pipeline against a device's, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from modelmill.audit import LeftOut, Option, Pipeline, Subject, noises, stages
from modelmill.line.audit_measure import Asked, Judge, judge_all
from modelmill.line.audit_report import Outcome, StageReport
from modelmill.line.audit_work import Bench
from modelmill.tasks import Card, CardError

COMPARED = 16  # pictures whose every number is compared
LAST = "post-processing"


def device_of(subject: Subject, card: Card | None, added: Sequence[str]) -> Pipeline:
    """The device's pipeline: its card (None: the training card), and options NOISE=OPTION for what
    no card says.

    Raises:
        ValueError: a card of another task or size, or no such noise or option.
    """
    trained = subject.card
    held = trained if card is None else card
    for field, a, b in (
        ("task", trained.task, held.task),
        ("classes", trained.class_count, held.class_count),
        ("input.size", trained.input.size, held.input.size),
        ("output.decode", trained.output.decode, held.output.decode),
    ):
        if a != b:
            raise CardError(
                f"the device's card has {field} = {b!r}, the training card {a!r}: both must "
                "describe the same network"
            )
    if held.input.channels != trained.input.channels:
        raise CardError(
            f"the device's card has input.color {held.input.color}, the training card "
            f"{trained.input.color}: another number of channels"
        )
    pipeline = Pipeline(replace(held, input=replace(held.input, layout=trained.input.layout)))
    for text in added:
        pipeline = _option(subject, text).change(pipeline)
    return pipeline


def _option(subject: Subject, text: str) -> Option:
    noise, _, name = text.partition("=")
    offered = noises([noise])[0].options(subject)
    found = [o for o in offered if isinstance(o, Option) and o.name == name]
    if found:
        return found[0]
    left_out = [o.why for o in offered if isinstance(o, LeftOut) and o.name in ("", name)]
    choices = ", ".join(o.name for o in offered if isinstance(o, Option))
    why = f": {left_out[0]}" if left_out else f". Choices: {choices or 'none'}"
    raise ValueError(f"--with {text}: noise {noise!r} has no option {name!r} here{why}")


def compare_stages(
    base: Pipeline, device: Pipeline, bench: Bench, judge: Judge
) -> tuple[tuple[StageReport, ...], Outcome]:
    """A report per stage that differs, and what the device does in all."""
    found = stages(base, device)
    tried = [base, *(s.alone for s in found), *(s.until for s in found), device]
    answers = bench.try_all("training and device", tried)
    asked = [Asked("all", "device", "device", "all stages of the device", answers[-1])]
    for k, stage in enumerate([*found, *found], 1):
        words = f"{stage.device} instead of {stage.trained}"
        asked.append(Asked(stage.name, stage.name, stage.name, words, answers[k]))
    whole, *outcomes = judge_all(judge, asked, bench.crew, bench.show)
    pictures = list(range(min(COMPARED, bench.pictures)))
    numeric = [s for s in found if s.name != LAST]
    partings = bench.partings([(pictures, s.name, base, s.until) for s in numeric])
    by_stage = {s.name: p for s, p in zip(numeric, partings, strict=True)}
    reports = []
    for i, stage in enumerate(found):
        alone, until = outcomes[i], outcomes[len(found) + i]
        parting = by_stage.get(stage.name)
        if parting is None:  # of boxes those that differ are counted
            elements, differing, largest = until.n, round(until.changed * until.n), None
        else:
            elements, differing = parting.elements, parting.differing
            largest = None if parting.largest == float("inf") else parting.largest
        reports.append(
            StageReport(
                stage.name, stage.trained, stage.device, elements, differing, largest, alone, until
            )
        )
    return tuple(reports), whole


def parts_first(reports: Sequence[StageReport]) -> StageReport | None:
    """The first stage behind which bits differ."""
    return next((s for s in reports if s.differing), None)


def costliest(reports: Sequence[StageReport]) -> StageReport | None:
    """The stage that costs most alone; None where none costs anything."""
    worst = max(reports, key=lambda s: (s.alone.harm, s.alone.changed), default=None)
    return worst if worst is not None and worst.alone.harm > 0 else None
