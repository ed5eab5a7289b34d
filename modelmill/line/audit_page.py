"""The page of an audit for people: what audit.json says, in one file on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelmill.line import charts
from modelmill.line.audit_findings import EXCEEDED, cost
from modelmill.line.audit_report import AuditReport, Outcome
from modelmill.line.charts import Axis, Mark
from modelmill.line.figures import Unit
from modelmill.line.page import Chart, Row, next_step, templates_for
from modelmill.line.report import Finding

LOUD = (EXCEEDED, "this stage costs the accuracy", "not to be fixed from here")


@dataclass(frozen=True)
class Group:
    """All options of a noise, the worst first."""

    noise: str
    stage: str
    outcomes: tuple[Outcome, ...]


def render(report: AuditReport) -> str:
    """The page as HTML."""
    unit = Unit(report.metric)
    return (
        templates_for(unit)
        .get_template("audit.html")
        .render(
            report=report,
            unit=unit,
            headline=headline(report),
            groups=groups(report.outcomes),
            together=[t for t in (report.combined, report.greedy) if t is not None],
            noises=_chart(report, [o for o in report.outcomes if not o.mistake], report.tolerance),
            mistakes=_chart(report, [o for o in report.outcomes if o.mistake], None),
            findings=[(f, _tone(f), *next_step(f.next)) for f in report.findings],
            cost=lambda outcome: cost(report, outcome),
        )
    )


def headline(report: AuditReport) -> str:
    """What the audit found, in one sentence."""
    if report.device is not None:
        return f"The device {cost(report, report.device)}."
    worst = max(report.summaries, key=lambda s: (s.worst.harm, s.worst.changed), default=None)
    if worst is None:
        return "No option of these noises applies."
    return f"What costs most is {worst.noise}: {worst.worst.option} {cost(report, worst.worst)}."


def groups(outcomes: Sequence[Outcome]) -> list[Group]:
    """The outcomes by noise, in the order of the stages."""
    names = dict.fromkeys(o.noise for o in outcomes)
    found = []
    for name in names:
        mine = sorted((o for o in outcomes if o.noise == name), key=lambda o: -o.harm)
        found.append(Group(name, mine[0].stage, tuple(mine)))
    return found


def _tone(finding: Finding) -> str:
    if finding.what in LOUD:
        return "bad"
    return "note" if finding.what == "note" else "remark"


def _chart(
    report: AuditReport, outcomes: Sequence[Outcome], tolerance: float | None
) -> Chart | None:
    """A row per noise: a dot per option, and the interval of the worst."""
    if not outcomes:
        return None
    unit = Unit(report.metric)
    values = [_value(o) for o in outcomes]
    ends = [end for o in outcomes for end in (o.low, o.high) if end is not None]
    axis = charts.span([0.0, *values, *ends])
    limit = None if tolerance is None else tolerance if not report.labelled else -tolerance
    limit = limit if limit is not None and axis.low <= limit <= axis.high else None
    rows = []
    for group in groups(outcomes):
        worst = group.outcomes[0]
        marks = [Mark(_value(o), "deployed pale", f"{o.option}: {_word(unit, o)}")
                 for o in group.outcomes[1:]]  # fmt: skip
        marks.append(Mark(_value(worst), "deployed", f"{worst.option}: {_word(unit, worst)}", 6))
        whisker = None
        if worst.low is not None and worst.high is not None:
            whisker = (worst.low, worst.high)
        words = ((("deployed"), f"{worst.option} {_word(unit, worst)}"),)
        rows.append(Row(group.noise, words, charts.spread(axis, limit, marks, whisker)))
    texts = [_tick(unit, axis, t, report.labelled) for t in axis.ticks()]
    label = f"{unit.label} minus the card's" if report.labelled else "changed predictions"
    return Chart(tuple(rows), charts.scale(axis, texts, label))


def _value(outcome: Outcome) -> float:
    return outcome.changed if outcome.delta is None else outcome.delta


def _word(unit: Unit, o: Outcome) -> str:
    if o.delta is None or o.low is None or o.high is None:
        return f"{100 * o.changed:.1f} % changed"
    return f"{unit.delta(o.delta)} [{unit.delta(o.low)}, {unit.delta(o.high)}]"


def _tick(unit: Unit, axis: Axis, value: float, labelled: bool) -> str:
    return unit.delta(value) if labelled else f"{100 * value:.0f} %"
