"""Results as tables and sentences for a person; numbers as in the report, scores as fractions."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modelmill.line.page_cross import lines
from modelmill.line.report import FLOAT, Deployment, Finding, Report

NUMBER = re.compile(r"[-+?]?[\d.,]*( \w?i?B)?$")
WIDTH = 140  # where the output is no terminal: no cell may be cut


def print_json(value: Any) -> None:
    """Indented JSON on standard output."""
    click.echo(json.dumps(value, indent=1, allow_nan=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on standard output; columns of numbers stand to the right."""
    cells = [list(row) for row in rows]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        numbers = all(NUMBER.match(row[index]) for row in cells)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    console().print(table)


def console() -> Console:
    """Standard output as it is now."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(width=WIDTH, highlight=False)


def print_report(report: Report) -> None:
    """The table of a build, its findings with the next command, and where everything is.

    delta is deployed - simulated on the images that were simulated.
    """
    print_table(
        (
            "\ntarget",
            f"{report.metric}\ndeployed",
            "\nsimulated",
            "\ndelta",
            "\nfloat",
            "int8\nms",
            "float\nms",
            "\nspeedup",
            "differing\ncodes",
            "\nsize",
        ),
        [_row(report, deployment) for deployment in report.deployments],
    )
    for line in lines(report.cross_agreement):
        click.echo(line)
    for finding in report.findings:
        print_finding(finding)
    folder = Path(report.folder)
    click.echo(f"\nreport     {folder / 'report.html'}, {folder / 'report.json'}")
    for deployment in report.deployments:
        if deployment.failed is None:
            for name in deployment.exports or (deployment.artifact,):
                click.echo(f"artifact   {folder / name}")
    click.echo(f"manifest   {folder / 'manifest.json'}")
    verdict = "accepted" if report.accepted else "NOT ACCEPTED"
    click.echo(f"{verdict}   {report.seconds:.0f} s, {report.peak_memory_mib:.0f} MiB")


def _row(report: Report, d: Deployment) -> tuple[str, ...]:
    if d.failed is not None or d.score is None:
        return (d.target, "failed", *[""] * 8)
    simulated = f"{d.score.simulated:.4f}"
    if d.score.deployed is None or d.score.deployed_same is None:
        base = f"{report.float_score['score_same']:.4f}"
        return (d.target, "simulated", simulated, "", base, *[""] * 4, size(d.bytes))
    times = ["emulated", "", ""]
    if d.precision == FLOAT and d.float_latency_ms is not None:
        times = ["stays float", f"{d.float_latency_ms.p50:.3f}", ""]
    elif d.latency_ms is not None and d.float_latency_ms is not None and d.speedup is not None:
        speedup = f"{d.speedup.ratio:.2f} {d.speedup.verdict}"
        times = [f"{d.latency_ms.p50:.3f}", f"{d.float_latency_ms.p50:.3f}", speedup]
    return (
        d.target,
        f"{d.score.deployed:.4f}",
        simulated,
        f"{d.score.deployed_same - d.score.simulated:+.4f}",
        f"{report.float_score['score']:.4f}",
        *times,
        "" if d.agreement is None else _share(d.agreement.mismatched, d.agreement.elements),
        size(d.bytes),
    )


def _share(part: int, whole: int) -> str:
    return "none" if part == 0 else f"{part / max(whole, 1):.2g}"


def print_finding(finding: Finding) -> None:
    where = f" ({finding.where})" if finding.where else ""
    click.echo(f"* {finding.what}{where}: {finding.why}")
    if finding.next:
        click.echo(f"  next: {finding.next}")


def speedup(ratio: float, low: float, high: float, verdict: str) -> str:
    """A ratio with its interval and what may be said."""
    return f"{ratio:.2f} [{low:.2f}, {high:.2f}] {verdict}"


def size(count: int) -> str:
    """Bytes in a unit that leaves three digits."""
    power = 0 if count < 1000 else 1 if count < 1000 * 2**10 else 2
    return f"{count / 2 ** (10 * power):.3g} {('B', 'KiB', 'MiB')[power]}"


def quantity(count: float | None) -> str:
    """A count with its thousands apart; unknown as a question mark."""
    return "?" if count is None else f"{count:,.0f}"
