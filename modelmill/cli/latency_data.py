"""`modelmill latency export`, `import` and `merge`: measurements from one place to another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelmill.cli import options

if TYPE_CHECKING:
    from modelmill.records import Latencies

EXAMPLE = "\b\nExample:\n  "
FILE = click.Path(path_type=Path)


@click.command(
    "export",
    epilog=EXAMPLE + "modelmill latency export measured.parquet --db latency.db --no-samples",
    short_help="Measurements as a CSV or Parquet file.",
)
@click.argument("file", type=FILE)
@options.database
@click.option(
    "--samples/--no-samples",
    default=True,
    show_default=True,
    help="With every single time, which makes most of the file.",
)
@options.form
def export(file: Path, db: str | None, samples: bool, form: str) -> None:
    """Write all measurements with their models and platforms to FILE, .csv or .parquet."""
    from modelmill.cli.progress import watch
    from modelmill.records import exchange

    exchange.check_format(file)
    source = _open(db, read_only=True)
    with watch() as show, show.step(f"export to {file}", source.count()) as advance:
        done = exchange.export(source, file, samples, advance)
    _tell(form, {"file": str(file), "measurements": done}, f"{done:,} measurements in {file}")


@click.command(
    "import",
    epilog=EXAMPLE + "modelmill latency import measured.parquet --db latency.db",
    short_help="Measurements from CSV or Parquet files.",
)
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE [FILE2 ...]")
@options.database
@options.form
def import_(files: tuple[Path, ...], db: str | None, form: str) -> None:
    """Store the measurements of files that `export` wrote, except those that are there already."""
    from modelmill.cli.progress import watch
    from modelmill.records import exchange

    for file in files:
        exchange.check_format(file)
        if not file.is_file():
            raise ValueError(f"{file}: no such file")
    target = _open(db)
    new = 0
    with watch() as show:
        for file in files:
            with show.step(f"import {file}") as advance:
                new += exchange.take_in(target, file, advance)
    where = target.database.location
    _tell(form, {"database": where, "new": new}, f"{new:,} new measurements in {where}")


@click.command(
    "merge",
    epilog=EXAMPLE + "modelmill latency merge colleague.db demo-build/records.db --db latency.db",
    short_help="What other databases hold, into one.",
)
@click.argument("sources", nargs=-1, required=True, metavar="DATABASE [DATABASE2 ...]")
@options.database
@options.form
def merge(sources: tuple[str, ...], db: str | None, form: str) -> None:
    """Store what other databases (paths or URLs) hold: measurements, models, records of builds.

    What is there already is not stored again. Predictors are not taken over: fit a new one.
    """
    from modelmill.cli.progress import watch
    from modelmill.records import Database, Latencies, exchange

    opened = [Database(source, read_only=True) for source in sources]
    target = _open(db).database
    new = records = 0
    with watch() as show:
        for source in opened:
            total = Latencies(source).count()
            with show.step(f"merge {source.location}", total) as advance:
                found = exchange.merge(target, source, advance)
            new, records = new + found[0], records + found[1]
    _tell(
        form,
        {"database": target.location, "new": new, "new_records": records},
        f"{new:,} new measurements and {records:,} new records of builds in {target.location}",
    )


def _open(db: str | None, read_only: bool = False) -> Latencies:
    from modelmill.records import Database, Latencies, default_location

    return Latencies(Database(db or default_location(), read_only=read_only))


def _tell(form: str, facts: dict[str, object], words: str) -> None:
    from modelmill.cli.tables import print_json

    if form == "json":
        print_json(facts)
    else:
        click.echo(words)
