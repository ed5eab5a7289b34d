"""`modelmill compare`: is one really better than the other?"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelmill.cli import options

if TYPE_CHECKING:
    from modelmill.line.compare import Comparison

EPILOG = options.EXAMPLE + (
    "modelmill compare demo-build/artifacts/float.onnx demo-build/artifacts/ort_cpu.onnx"
    " -t ort_cpu -d demo-build/test.npz"
)


@click.command("compare", epilog=EPILOG, short_help="Which of two models is really better.")
@click.argument("reference")
@click.argument("candidate", required=False)
@options.targets
@options.runtimes
@options.data
@options.card
@options.limit
@options.seed
@options.threads
@options.timeout
@options.form
def compare(  # noqa: PLR0913 (a command's options)
    reference: str,
    candidate: str | None,
    targets: tuple[str, ...],
    runtimes: tuple[str, ...],
    data: str,
    card: Path | None,
    limit: int | None,
    seed: int,
    threads: int | None,
    timeout: float,
    form: str,
) -> None:
    """Score REFERENCE and CANDIDATE on the same images and test the difference.

    With two engines (-t or --runtime twice) each side has its own; CANDIDATE is then REFERENCE
    if left out. Exit code 1: the candidate is significantly worse (5 %).
    """
    from modelmill.cli.progress import loading, watch
    from modelmill.cli.tables import print_json

    with loading():
        from modelmill.line.compare import compare as compare_both

    if candidate is None and len(targets) + len(runtimes) != 2:
        raise click.UsageError("Name a CANDIDATE, or two engines to compare REFERENCE on.")
    with watch() as show:
        found = compare_both(
            reference,
            candidate or reference,
            data,
            targets,
            runtimes=runtimes,
            card=card,
            limit=limit,
            seed=seed,
            threads=threads,
            timeout_s=timeout,
            show=show,
        )
    print_json(found.to_json()) if form == "json" else _print(found)
    sys.exit(0 if found.accepted else 1)


def _print(found: "Comparison") -> None:
    from modelmill.cli.tables import print_table

    paired = found.paired
    rows = [
        (f"{name}: {side.model}", f"{side.runtime} {side.version}", f"{side.score.value:.4f}")
        for name, side in (("reference", found.reference), ("candidate", found.candidate))
    ]
    print_table(("", "engine", found.metric), rows)
    click.echo(
        f"difference {paired.difference:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}], "
        f"p = {paired.p:.3g} ({paired.test}, {found.reference.score.n} images)"
    )
    if paired.only_reference is not None:
        click.echo(
            f"right only on the reference: {paired.only_reference}, only on the candidate: "
            f"{paired.only_candidate}"
        )
    click.echo(f"candidate: {paired.verdict}")


PLUGIN = compare
