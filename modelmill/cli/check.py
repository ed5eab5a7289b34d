"""`modelmill check`: what a target makes of a model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelmill.cli import options

if TYPE_CHECKING:
    from modelmill.line.check import Checked

EPILOG = options.EXAMPLE + "modelmill check demo-build/digits.onnx -t ort_cpu -t openvino_cpu"


@click.command("check", epilog=EPILOG, short_help="What a target runs on integers, and what not.")
@click.argument("model")
@options.targets
@options.precision
@options.first_last_bits
@options.cpu_flags
@options.keep_float
@options.card
@click.option("--all", "everything", is_flag=True, help="List the nodes on integers, too.")
@options.form
def check(  # noqa: PLR0913 (a command's options)
    model: str,
    targets: tuple[str, ...],
    precision: str,
    first_last_bits: int,
    cpu_flags: str | None,
    keep_float: tuple[str, ...],
    card: Path | None,
    everything: bool,
    form: str,
) -> None:
    """Say of every node of MODEL whether a target runs it on integers, by which rule, or why not.

    Exit code 1: a convolution or matrix product with weights would stay float, or no build is
    possible. The engine need not be installed.
    """
    from modelmill.cli.progress import loading
    from modelmill.cli.tables import print_json

    with loading():
        from modelmill.line.check import check as read_rules

    if not targets:
        raise click.UsageError("Missing -t / --target, for example -t ort_cpu.")
    flags = options.parse_flags(cpu_flags)
    found = [
        read_rules(
            model,
            t,
            precision=precision,
            flags=flags,
            keep_float=keep_float,
            card=card,
            first_last_bits=first_last_bits,
        )
        for t in targets
    ]
    if form == "json":
        print_json([checked.to_json() for checked in found])
    else:
        for checked in found:
            _print(checked, everything)
    sys.exit(0 if all(checked.accepted for checked in found) else 1)


def _print(checked: "Checked", everything: bool) -> None:
    from modelmill.cli.tables import print_table

    counts = checked.counts
    click.echo(
        f"{checked.model} for {checked.target} {checked.precision}: {counts['integer']} nodes on "
        f"integers, {counts['fused']} fused into them, {counts['float']} in float"
    )
    rows = [v for v in checked.verdicts if everything or v.runs == "float"]
    if rows:
        columns = ("node", "operator", "runs", "why")
        print_table(columns, [(v.node, v.op, v.runs, v.why) for v in rows])
    if checked.fallback:
        ops = ", ".join(f"{op} ({n})" for op, n in checked.fallback.items())
        cost = f"* these fall back to the {checked.host}, which costs a transfer each way"
        click.echo(f"{cost}: {ops}")
    for note in checked.notes:
        click.echo(f"* {note}")
    for verdict in checked.heavy:
        click.echo(f"* {verdict.op} {verdict.node!r} has weights and would run in float")
    for node, op in checked.unknown:
        click.echo(f"* the simulation has no operator {op} (node {node!r}): no build is possible")


PLUGIN = check
