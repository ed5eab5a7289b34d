"""`modelmill latency measure`: fill the database with measured latencies."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from modelmill.cli import options

if TYPE_CHECKING:
    from modelmill.line.latency_measure import Done

EPILOG = "\b\nExample:\n  modelmill latency measure --zoo squeezenet --count 2 -t ort_cpu --db l.db"


@click.command("measure", epilog=EPILOG, short_help="Measure latencies into the database.")
@click.argument("models", nargs=-1, metavar="[MODEL.onnx ...]")
@click.option("--zoo", help="Families of random networks, joined by commas, or 'all'.")
@click.option("--count", type=click.IntRange(1), default=100, show_default=True, help="Per family.")
@click.option(
    "--choose",
    "chosen",
    type=click.IntRange(2),
    help="So many models of the database, those that tell most of a platform it has not.",
)
@options.targets
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    default=("float", "w8a8"),
    show_default=True,
    help="float, or bits as in w8a8; may be repeated.",
)
@options.database
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of engines.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Of MODELs.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many models are measured at a time, each on a core of its own.",
)
@options.seed
@options.timeout
@click.option("--again", is_flag=True, help="Measure what is there once more, and compare.")
@click.option(
    "--noisier",
    type=click.FloatRange(0),
    metavar="PART",
    help="Once more only what was measured with more noise than this, e.g. 0.1.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be measured, and measure nothing.")
@options.form
def measure(  # noqa: PLR0913 (a command's options)
    models: tuple[str, ...],
    zoo: str | None,
    count: int,
    chosen: int | None,
    targets: tuple[str, ...],
    precisions: tuple[str, ...],
    db: str | None,
    threads: int,
    batch: int,
    workers: int,
    seed: int,
    timeout: float,
    again: bool,
    noisier: float | None,
    dry_run: bool,
    form: str,
) -> None:
    """Measure models of the zoo, or your own, on the engines of targets.

    What the database has is not measured again: the same command goes on where it was stopped.
    Exit code 1: something could not be measured.
    """
    from modelmill.cli.progress import loading

    if not targets or not (models or zoo or chosen):
        raise ValueError("nothing to measure: give a MODEL.onnx or --zoo all, and -t ort_cpu")
    if (zoo or chosen) and batch != 1:
        raise ValueError(f"--batch {batch}: networks of the zoo have batch 1; give a MODEL.onnx")
    with loading():
        from modelmill.line.latency_measure import Subject, zoo_subjects
        from modelmill.line.latency_query import telling
        from modelmill.line.latency_workers import Job, run
        from modelmill.records import Database, Latencies, default_location
        from modelmill.runtimes import SessionOptions

    subjects = [Subject(path=path) for path in models]
    subjects += zoo_subjects(zoo.split(","), count, seed) if zoo else []
    location = db or default_location()
    if chosen:
        there = telling(Latencies(Database(location)), chosen, seed)
        subjects += [Subject(family=fact.family, stored=fact) for fact in there]
    pairs = tuple(dict.fromkeys((t, p) for t in targets for p in precisions))
    session = SessionOptions(threads, timeout, batch=batch)
    again, least = again or noisier is not None, -1.0 if noisier is None else noisier
    job = Job(tuple(subjects), pairs, location, session, again, least, workers)
    if dry_run:
        _print_plan(job.dry_run(), form)
        return
    done = _watched(run(job), len(subjects) * len(pairs))
    _print(done, form)
    sys.exit(1 if any(d.failed for d in done) else 0)


def _watched(stream: Any, total: int) -> list[Done]:
    """Run it, with a bar that shows the rate and the time left; failures as they come."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    done: list[Done] = []
    start = shown = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("measure", total=total, rate="")
        for behind, one in stream:
            now = time.monotonic()
            if one is not None:
                done.append(one)
                for said in filter(None, (one.failed, one.warning)):
                    where = f"{one.subject.name} on {one.platform.name}"
                    bar.console.print(f"{where}: {said}", markup=False)
            rate = f"{(now - start) / max(len(done), 1):.2f} s each"
            bar.update(task, completed=behind, rate=rate)
            if not console.is_terminal and now - shown > 30:
                shown = now
                left = (now - start) / max(behind, 1) * (total - behind)
                click.echo(f"{behind} of {total}, {rate}, {left / 60:.0f} min left", err=True)
    return done


def _print_plan(plan: list[dict[str, Any]], form: str) -> None:
    from modelmill.cli.tables import print_json, print_table

    if form == "json":
        print_json(plan)
        return
    print_table(
        ("platform", "models", "in the database"),
        [(row["platform"], str(row["models"]), str(row["there"])) for row in plan],
    )


def _print(done: list[Done], form: str) -> None:
    from modelmill.cli.tables import print_json, print_table
    from modelmill.line.latency_measure import repeated
    from modelmill.line.latency_workers import summary, to_json

    repeat = repeated(done)
    if form == "json":
        print_json(to_json(done, repeat))
        return
    print_table(
        ("platform", "family", "n", "failed", "min ms", "p50 ms", "max ms", "noise", "s each"),
        [
            (
                row["platform"],
                row["family"],
                str(row["n"]),
                str(row["failed"]),
                *(f"{row[k]:.3f}" if row["n"] else "" for k in ("min_ms", "median_ms", "max_ms")),
                f"{row['noise']:.3f}" if row["n"] else "",
                f"{row['seconds']:.2f}",
            )
            for row in summary(done)
        ],
    )
    if repeat is not None:
        click.echo(
            f"measured again: {repeat.n}; within the noise {repeat.within_noise:.1%}, within 2 % "
            f"{repeat.within_2:.1%}, within 5 % {repeat.within_5:.1%}; median difference "
            f"{repeat.median:.2%}, after the reference {repeat.corrected:.2%}"
        )
