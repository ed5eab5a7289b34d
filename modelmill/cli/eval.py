"""`modelmill eval`: the score of a file on a real engine."""

import sys
from pathlib import Path

import click

from modelmill.cli import options

EPILOG = options.EXAMPLE + (
    "modelmill eval demo-build/artifacts/ort_cpu.onnx -t ort_cpu -d demo-build/test.npz"
)


@click.command("eval", epilog=EPILOG, short_help="Score a file on a real engine.")
@click.argument("artifact")
@options.targets
@options.runtimes
@options.data
@options.card
@options.limit
@click.option("--min", "least", type=float, help="Exit with code 1 if the metric is below this.")
@options.seed
@options.threads
@options.timeout
@options.form
def evaluate(  # noqa: PLR0913 (a command's options)
    artifact: str,
    targets: tuple[str, ...],
    runtimes: tuple[str, ...],
    data: str,
    card: Path | None,
    limit: int | None,
    least: float | None,
    seed: int,
    threads: int | None,
    timeout: float,
    form: str,
) -> None:
    """Score ARTIFACT, or any model file, on the engine of a target.

    An artifact of a build is fed as that build's manifest says, unless there is a card.
    """
    from modelmill.cli.progress import loading, watch
    from modelmill.cli.tables import print_json, print_table

    with loading():
        from modelmill.line.evaluate import evaluate as score

    if len(targets) + len(runtimes) != 1:
        raise click.UsageError("Name one engine: -t TARGET or --runtime ENGINE.")
    with watch() as show:
        found = score(
            artifact,
            data,
            targets[0] if targets else None,
            runtime=runtimes[0] if runtimes else None,
            card=card,
            limit=limit,
            seed=seed,
            threads=threads,
            timeout_s=timeout,
            show=show,
        )
    if form == "json":
        print_json(found.to_json())
    else:
        metrics = found.score.metrics
        columns = ("model", "engine", *metrics, "images", "s", "MiB")
        engine = f"{found.runtime} {found.version}"
        values = [f"{value:.4f}" for value in metrics.values()]
        rest = (str(found.score.n), f"{found.seconds:.1f}", f"{found.peak_memory_mib:.0f}")
        print_table(columns, [(found.model, engine, *values, *rest)])
        if found.score.invalid:
            click.echo(f"* {found.score.invalid} predictions hold NaN or infinity")
    if least is not None and found.score.value < least:
        click.echo(f"{found.score.metric} {found.score.value:.4f} is below {least:g}", err=True)
        sys.exit(1)


PLUGIN = evaluate
