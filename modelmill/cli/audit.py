"""`modelmill audit`: what the deployed pipeline costs that training never saw."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelmill.cli import options

if TYPE_CHECKING:
    from modelmill.line.audit_report import AuditReport, Outcome
    from modelmill.line.figures import Unit

EPILOG = options.EXAMPLE + (
    "modelmill audit demo-build/digits.onnx -d demo-build/test.npz --limit 100 -o my-audit"
)


@click.command("audit", epilog=EPILOG, short_help="What the deployed pipeline costs.")
@click.argument("model")
@click.option("-d", "--data", required=True, help="Images; with labels there are scores.")
@options.card
@click.option("--task", help="What the card must be for; a check, the card decides.")
@options.targets
@options.runtimes
@click.option(
    "--noise",
    "noises",
    multiple=True,
    metavar="NOISE",
    help="Only this one: decode, colour, resize, crop, ...; repeatable. Default: all.",
)
@click.option(
    "--deployed",
    type=click.Path(path_type=Path),
    metavar="CARD2",
    help="The card that the device follows: compare it with the model's, stage by stage.",
)
@click.option(
    "--with",
    "added",
    multiple=True,
    metavar="NOISE=OPTION",
    help="What else the device does, which no card says: decode=ffmpeg; repeatable.",
)
@click.option("--fix", is_flag=True, help="Write a network and card that mend what they can.")
@click.option(
    "--tolerance",
    type=float,
    help="Exit with code 1 if an option, or the device, loses more: 0.005 is half a point.",
)
@click.option(
    "--int8",
    multiple=True,
    default=("usual",),
    show_default=True,
    metavar="TARGET",
    help="Targets whose 8 bits are tried: names, usual, all or none; repeatable.",
)
@click.option("--calib", help="Images to calibrate int8 with. Default: some of --data.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder. Default: NAME-audit.")
@click.option("--resume", is_flag=True, help="Continue an earlier audit in the same folder.")
@options.limit
@options.seed
@click.option(
    "--workers", type=int, default=2, show_default=True, help="Processes that share the images."
)
@options.timeout
@options.database
@click.option("--all", "everything", is_flag=True, help="List every option.")
@options.form
def audit(  # noqa: PLR0913 (a command's options)
    model: str,
    data: str,
    card: Path | None,
    task: str | None,
    targets: tuple[str, ...],
    runtimes: tuple[str, ...],
    noises: tuple[str, ...],
    deployed: Path | None,
    added: tuple[str, ...],
    fix: bool,
    tolerance: float | None,
    int8: tuple[str, ...],
    calib: str | None,
    out: Path | None,
    resume: bool,
    limit: int | None,
    seed: int,
    workers: int,
    timeout: float,
    db: str | None,
    everything: bool,
    form: str,
) -> None:
    """Measure what decoders, resizes, colour paths, precisions and other steps of a device cost.

    Every option is the real library's, put in the place of what the card of MODEL says, one at a
    time; then all at once. Exit code 1: more is lost than --tolerance allows.
    """
    from modelmill.cli.progress import loading, watch
    from modelmill.cli.tables import print_json

    if len(targets) + len(runtimes) > 1:
        raise click.UsageError("Name one engine at most: -t TARGET or --runtime ENGINE.")
    with loading():
        from modelmill.line.artifact import find_card
        from modelmill.line.audit import AuditOptions, audit_deployment

    if task is not None and (found := find_card(model, card).task) != task:
        raise ValueError(f"--task {task}: the card says {found}; give another with --card")
    with watch() as show:
        asked = AuditOptions(
            out=out,
            card=card,
            target=targets[0] if targets else None,
            runtime=runtimes[0] if runtimes else None,
            noises=noises,
            deployed=deployed,
            added=added,
            fix=fix,
            tolerance=tolerance,
            int8=int8,
            calib=calib,
            limit=limit,
            seed=seed,
            workers=workers,
            resume=resume,
            timeout_s=timeout,
            db=db,
        )
        report = audit_deployment(model, data, asked, show)
    print_json(report.to_json()) if form == "json" else _print(report, everything)
    sys.exit(0 if report.accepted else 1)


def _print(report: "AuditReport", everything: bool) -> None:
    from modelmill.cli.tables import print_finding, print_table
    from modelmill.line.figures import Unit

    unit = Unit(report.metric)
    scored = f", {unit.label} {unit.score(report.score)}" if report.score is not None else ""
    click.echo(f"{report.model['name']} on {report.engine}, {report.n} images{scored}")
    columns = ("noise", "options", "mean", "worst", "95 % interval", "changed", "option")
    means = ["" if s.mean is None else unit.delta(s.mean) for s in report.summaries]
    rows = [
        (s.noise, str(s.options), mean, *_row(unit, s.worst))
        for s, mean in zip(report.summaries, means, strict=True)
    ]
    both = [t for t in (report.combined, report.greedy) if t is not None]
    rows += [(t.outcome.option, str(len(t.steps)), "", *_row(unit, t.outcome)) for t in both]
    if rows:
        print_table(columns, rows)
    if report.stages:
        shown = [
            (s.stage, s.trained, s.device, f"{s.differing:,} of {s.elements:,}",
             *_row(unit, s.alone)[:2])
            for s in report.stages
        ]  # fmt: skip
        print_table(("stage", "training", "device", "differ", "alone", "95 % interval"), shown)
    if everything:
        print_table(
            ("noise", "option", "worst", "95 % interval", "changed", "what"),
            [(o.noise, o.option, *_row(unit, o)[:3], _about(o)) for o in report.outcomes],
        )
        for noise, option, why in report.left_out:
            click.echo(f"left out: {noise} {option}: {why}")
    for finding in report.findings:
        print_finding(finding)
    folder = Path(report.folder)
    click.echo(f"\nreport     {folder / 'audit.html'}, {folder / 'audit.json'}")
    if not report.accepted:
        click.echo("NOT WITHIN THE TOLERANCE")


def _row(unit: "Unit", o: "Outcome") -> tuple[str, str, str, str]:
    """Difference, interval, share of changed predictions, option."""
    changed = f"{100 * o.changed:.1f} %"
    if o.delta is None or o.low is None or o.high is None:
        return "", "", changed, o.option
    interval = f"[{unit.delta(o.low)}, {unit.delta(o.high)}]"
    return unit.delta(o.delta), interval, changed, o.option


def _about(o: "Outcome") -> str:
    return f"{o.about} (mistake)" if o.mistake else o.about


PLUGIN = audit
