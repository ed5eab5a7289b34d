"""`modelmill bench`: latency on real engines."""

import sys
from pathlib import Path

import click

from modelmill.cli import options

EPILOG = options.EXAMPLE + (
    "modelmill bench demo-build/artifacts/float.onnx demo-build/artifacts/ort_cpu.onnx -t ort_cpu"
)


@click.command("bench", epilog=EPILOG, short_help="Latency on real engines, and who is faster.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL2 ...]")
@options.targets
@options.runtimes
@click.option("-d", "--data", help="Images, the first of which is the input. Default: random.")
@options.card
@click.option("--batch", type=int, default=1, show_default=True, help="Images per inference.")
@click.option("--threads", type=int, default=1, show_default=True, help="Of the engine.")
@options.seed
@options.timeout
@options.database
@options.form
def bench(  # noqa: PLR0913 (a command's options)
    models: tuple[str, ...],
    targets: tuple[str, ...],
    runtimes: tuple[str, ...],
    data: str | None,
    card: Path | None,
    batch: int,
    threads: int,
    seed: int,
    timeout: float,
    db: str | None,
    form: str,
) -> None:
    """Time models on the engines of targets; all take turns, so that drift meets all alike.

    The first MODEL is the reference of the others. The latencies are kept in a database, see --db;
    --db none keeps nothing. Exit code 1: one of them is slower than the first.
    """
    from modelmill.cli.progress import loading, watch
    from modelmill.cli.tables import print_json, print_table, speedup

    with loading():
        from modelmill.line.bench import bench as time_all
        from modelmill.records import default_location

    with watch() as show:
        found = time_all(
            models,
            targets,
            runtimes=runtimes,
            data=data,
            card=card,
            batch=batch,
            threads=threads,
            seed=seed,
            timeout_s=timeout,
            db=None if db == "none" else db or default_location(),
            show=show,
        )
    if form == "json":
        print_json(found.to_json())
    else:
        rows = []
        for row in found.rows:
            ms = [f"{v:.3f}" for v in (row.latency.p50_ms, row.latency.p90_ms, row.latency.p99_ms)]
            s = row.speedup
            verdict = speedup(s.ratio, s.low, s.high, s.verdict) if s is not None else "reference"
            rows.append((row.name, *ms, str(row.latency.n), verdict, f"{row.peak_memory_mib:.0f}"))
        columns = ("model", "p50 ms", "p90 ms", "p99 ms", "n", "speedup", "MiB")
        print_table(columns, rows)
        machine = found.machine
        click.echo(
            f"batch {found.batch}, {threads} thread(s), input: {found.fed}; {machine.cpu}, "
            f"{machine.isa}"
        )
        if found.database is not None:
            click.echo(f"stored in {found.database}")
    sys.exit(0 if found.accepted else 1)


PLUGIN = bench
