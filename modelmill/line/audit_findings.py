"""What an audit means, in words, with the next command; and whether a tolerance is exceeded."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from modelmill.line.audit_deployed import costliest, parts_first
from modelmill.line.audit_report import AuditReport, Outcome
from modelmill.line.figures import Unit
from modelmill.line.report import Finding

EXCEEDED = "tolerance exceeded"
SLACK = 1e-9  # exactly the tolerance is allowed, whatever its last bit


@dataclass(frozen=True)
class Asked:
    """The command again: model and data as they were named, what says how the device is, whether
    --fix.
    """

    model: str
    data: str
    device: tuple[str, ...]
    fix: bool

    def command(self, *more: str) -> str:
        """`modelmill audit` of the same with other options."""
        return shlex.join(["modelmill", "audit", self.model, "-d", self.data, *more])


def conclude(report: AuditReport, notes: Sequence[str], asked: Asked) -> AuditReport:
    """The report with `accepted` and `findings`."""
    exceeded = _exceeded(report, asked)
    found = [*exceeded, *_device(report, asked), *_noises(report, asked), *_mistakes(report)]
    found += [*_refused(report), *_fixed(report)]
    same = [f"{o.noise} {o.option}" for o in report.outcomes if o.same]
    if same:
        found.append(Finding("the same to the bit as the card", "", ", ".join(same), ""))
    if not report.labelled:
        why = (
            "the data have no labels, so there is no score: changed predictions are counted in its "
            "place"
        )
        found.append(Finding("note", "", why, ""))
    found += [Finding("note", "", note, "") for note in notes]
    return replace(report, accepted=not exceeded, findings=tuple(found))


def cost(report: AuditReport, outcome: Outcome) -> str:
    """What an option costs in words: the loss with its interval, or the share that changed."""
    unit = Unit(report.metric)
    if outcome.delta is None or outcome.low is None or outcome.high is None:
        return f"changes {100 * outcome.changed:.1f} % of the predictions"
    if (outcome.delta, outcome.low, outcome.high) == (0.0, 0.0, 0.0):
        return "costs nothing"
    lost = "loses" if outcome.delta <= 0 else "gains"
    span = f"[{unit.delta(outcome.low)}, {unit.delta(outcome.high)}]"
    return f"{lost} {unit.amount(abs(outcome.delta))} of {unit.label} {span}"


def chance(outcome: Outcome) -> str:
    """Whether a difference may be chance, in words to append."""
    if outcome.delta in (None, 0.0) or outcome.low is None or outcome.high is None:
        return ""
    return "; that may be chance" if outcome.low <= 0 <= outcome.high else ""


def _exceeded(report: AuditReport, asked: Asked) -> list[Finding]:
    """One finding per noise, and one for the device, that costs more than is allowed."""
    if report.tolerance is None:
        return []
    allowed = f"--tolerance allows {report.tolerance:g}"
    worst = [(s.noise, s.worst) for s in report.summaries]
    if report.device is not None:
        worst.append(("device", report.device))
    next_step = asked.command("--deployed", "DEVICE.json")
    return [
        Finding(
            EXCEEDED, f"{noise} {o.option}" if noise != "device" else noise,
            f"{o.about}: {cost(report, o)}{chance(o)}; {allowed}",
            "" if noise == "device" else f"{next_step}, which tells whether yours does this",
        )
        for noise, o in worst
        if o.harm > report.tolerance + SLACK
    ]  # fmt: skip


def _device(report: AuditReport, asked: Asked) -> list[Finding]:
    """Where the device parts from training, and what costs the accuracy."""
    if report.device is None:
        return []
    first, worst = parts_first(report.stages), costliest(report.stages)
    if first is None:
        why = f"{len(report.stages)} stages are named differently, all give the same numbers"
        why = why if report.stages else "the device does what training did, stage by stage"
        return [Finding("training and device agree", "", why, "")]
    far = "" if first.largest is None else f", by at most {first.largest:.4g}"
    why = (
        f"{first.device} instead of {first.trained}: {first.differing:,} of {first.elements:,} "
        f"numbers differ behind it{far}"
    )
    found = [Finding("bits part first", first.stage, why, "")]
    command = asked.command(*asked.device, "--fix")
    fix = "" if asked.fix else f"{command}, which mends what it can"
    if worst is None:
        why = f"together they do not: the device {cost(report, report.device)}"
        return [*found, Finding("no stage costs accuracy", "", why, "")]
    why = (
        f"{worst.alone.about}: alone it {cost(report, worst.alone)}{chance(worst.alone)}; the "
        f"whole device {cost(report, report.device)}"
    )
    return [*found, Finding("this stage costs the accuracy", worst.stage, why, fix)]


def _noises(report: AuditReport, asked: Asked) -> list[Finding]:
    """The noise that costs most, and the worst case."""
    worst = max(report.summaries, key=lambda s: (s.worst.harm, s.worst.changed), default=None)
    found = []
    if worst is not None and worst.worst.changed > 0:
        o = worst.worst
        step = f"{asked.command('--deployed', 'DEVICE.json')}, which names the stage of your device"
        why = f"{o.option}, {o.about}, {cost(report, o)}{chance(o)}"
        found.append(Finding("costs most", worst.noise, why, step))
    for what, together in (("all at once", report.combined), ("worst case", report.greedy)):
        if together is not None:
            steps = ", ".join(f"{noise} {option}" for noise, option, _ in together.steps)
            why = f"{cost(report, together.outcome)}: {steps}"
            found.append(Finding(what, "", why, ""))
    return found


def _mistakes(report: AuditReport) -> list[Finding]:
    """What a wrong convention would cost."""
    made = sorted((o for o in report.outcomes if o.mistake), key=lambda o: -o.harm)[:3]
    if not made or made[0].harm <= 0:
        return []
    why = "; ".join(f"{o.noise} {o.option} ({o.about}) {cost(report, o)}" for o in made)
    return [Finding("mistakes that would cost most", "", why, "")]


def _refused(report: AuditReport) -> list[Finding]:
    found = []
    for o in report.outcomes:
        if o.refused:
            picture, reason = o.refused[0]
            why = f"{len(o.refused)} of {report.n} pictures, the first is {picture}: {reason}"
            found.append(Finding("cannot read", f"{o.noise} {o.option}", why, ""))
    return found


def _fixed(report: AuditReport) -> list[Finding]:
    """What `--fix` did, and what it could not."""
    fix = report.fix
    if fix is None:
        return []
    said = "; ".join(f"{stage}: {how}" for stage, how in fix.mended) or "nothing had to be mended"
    after = "" if fix.outcome is None else f". With it the device {cost(report, fix.outcome)}"
    found = [Finding("fixed", ", ".join(fix.files), f"{said}{after}", "")]
    if fix.left:
        left = "; ".join(f"{stage}: {does}" for stage, does in fix.left)
        step = "change the device there, or train with what it does"
        found.append(Finding("not to be fixed from here", "", left, step))
    return found
