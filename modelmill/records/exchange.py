"""Measurements as flat rows, for files that other programs read: CSV and Parquet.

A row is one measurement with its platform and its model. In CSV the samples, `facts` and `extra`
are JSON, and the skeleton is base64; in Parquet the samples are lists of numbers and the skeleton
is bytes. What is exported without samples can be imported, and is the same measurement.
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from modelmill.records.database import Database
from modelmill.records.latencies import Latencies
from modelmill.records.measurement import PLATFORM, Measurement, ModelFacts, Platform

Described = tuple[Measurement, ModelFacts]
Advance = Callable[[int], None]
FORMATS = (".csv", ".parquet")
PAGE = 1000  # measurements that are held at once
_MODEL = ("name", "family", "facts", "skeleton")
_TIMES = ("p50_ms", "p90_ms", "p99_ms", "noise", "reference_ms")
COLUMNS = ("model", *_MODEL, *PLATFORM, *_TIMES, "n", "when", "machine", "extra", "samples_ms")
_NEEDED = frozenset(COLUMNS) - {*_MODEL, "reference_ms", "machine", "extra", "samples_ms"}
_MAY_BE_EMPTY = ("version", "device", "isa")


def _silent(done: int) -> None:
    """Nobody watches."""


def flat(described: Described) -> dict[str, Any]:
    """A measurement and its model as one row of plain values; the skeleton as bytes."""
    measured, model = described
    row = {name: getattr(measured, name) for name in (*_TIMES, "n", "when", "machine")}
    return {
        "model": measured.model,
        "name": model.name,
        "family": model.family,
        "facts": json.dumps(dict(model.facts)),
        "skeleton": model.skeleton,
        **asdict(measured.platform),
        **row,
        "extra": json.dumps(dict(measured.extra)),
        "samples_ms": [list(block) for block in measured.samples_ms],
    }


def from_flat(row: Mapping[str, Any]) -> Described:
    """What `flat` made a row of; the same from the texts of a CSV file.

    Raises:
        ValueError: a value that is not what its column holds.
    """
    samples, skeleton, reference = (row.get(n) for n in ("samples_ms", "skeleton", "reference_ms"))
    if isinstance(samples, str):
        samples = json.loads(samples or "[]")
    if isinstance(skeleton, str):
        try:
            skeleton = base64.b64decode(skeleton, validate=True)
        except binascii.Error as error:
            raise ValueError(f"skeleton is not base64: {error}") from None
    place: dict[str, Any] = {
        n: int(row[n]) if n in ("threads", "batch") else row[n] for n in PLATFORM
    }
    times = {n: float(row[n]) for n in _TIMES if n != "reference_ms"}
    measured = Measurement(
        model=row["model"],
        platform=Platform(**place),
        **times,
        n=int(row["n"]),
        when=row["when"],
        machine=row.get("machine") or "",
        reference_ms=None if reference in (None, "") else float(reference),
        samples_ms=tuple(tuple(float(t) for t in block) for block in samples or ()),
        extra=json.loads(row.get("extra") or "{}"),
    )
    name, family = row.get("name") or "", row.get("family") or ""
    facts = json.loads(row.get("facts") or "{}")
    return measured, ModelFacts(measured.model, name, family, skeleton or b"", facts)


def as_text(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `flat` without bytes and lists, for CSV and for JSON."""
    return {
        **row,
        "skeleton": base64.b64encode(row["skeleton"]).decode(),
        "samples_ms": json.dumps(row["samples_ms"]),
    }


# ---------------------------------------------------------------- files


def check_format(path: Path) -> None:
    """Raise ValueError unless the name of a file says CSV or Parquet, and that can be used here."""
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: the name must end in {' or '.join(FORMATS)}")
    if path.suffix == ".parquet":
        import pyarrow.parquet  # noqa: F401 (absent: the command says which extra brings it)


def export(source: Latencies, path: Path, samples: bool = True, advance: Advance = _silent) -> int:
    """Write all measurements to a new CSV or Parquet file; how many.

    samples: with the raw times. advance: is told how many are done.

    Raises:
        ValueError: no such format, the database cannot be read, or the file exists.
    """
    check_format(path)
    if path.exists():
        raise ValueError(f"{path}: is there already; give another name, or remove it")
    write = _write_csv if path.suffix == ".csv" else _write_parquet
    part = path.with_name(f".{path.name}.part")
    try:
        done = write(part, _pages(source, samples), advance)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return done


def take_in(target: Latencies, path: Path, advance: Advance = _silent) -> int:
    """Store the measurements of a file; how many were new. Page by page: to be repeated after a
    failure, which stores nothing twice.

    Raises:
        ValueError: no such format or file, or a row is damaged; the message names it.
    """
    check_format(path)
    rows = _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)
    new = done = 0
    for page in _in_pages(_checked(path, rows)):
        new += _store(target, page)
        done += len(page)
        advance(done)
    return new


def merge(target: Database, source: Database, advance: Advance = _silent) -> tuple[int, int]:
    """Store what is in `source` and not in `target`; (new measurements, new records).

    Predictors stay where they are: a merged database asks for a new one.
    """
    there = Latencies(target)
    new = done = 0
    for page in _pages(Latencies(source), samples=True):
        new += _store(there, page)
        done += len(page)
        advance(done)
    there.add_models(Latencies(source).models())
    return new, target.add_missing(source.query())


def _store(target: Latencies, page: Sequence[Described]) -> int:
    target.add_models(model for _, model in page)
    return target.add(measured for measured, _ in page)


def _pages(source: Latencies, samples: bool) -> Iterator[list[Described]]:
    for page in source.pages(PAGE):
        known = {m.structure: m for m in source.models(structures={m.model for m in page})}
        kept = page if samples else [replace(m, samples_ms=()) for m in page]
        yield [(m, known.get(m.model, ModelFacts(m.model))) for m in kept]


def _in_pages(rows: Iterable[Described]) -> Iterator[list[Described]]:
    page: list[Described] = []
    for row in rows:
        page.append(row)
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page


def _checked(path: Path, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[Described]:
    for number, row in rows:
        empty = {name for name in _NEEDED if row.get(name) in (None, "")}
        missing = sorted(n for n in empty if n not in _MAY_BE_EMPTY or row.get(n) is None)
        if missing:
            raise ValueError(f"{path}, row {number}: nothing in column(s) {', '.join(missing)}")
        try:
            yield from_flat(row)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, row {number}: {error}") from None


def _write_csv(path: Path, pages: Iterable[list[Described]], advance: Advance) -> int:
    done = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for page in pages:
            writer.writerows(as_text(flat(described)) for described in page)
            done += len(page)
            advance(done)
    return done


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(2**30)  # the samples of one measurement are one field
    with path.open(newline="", encoding="utf-8") as file:
        try:
            reader = csv.DictReader(file)
            _check_columns(path, reader.fieldnames or ())
            yield from enumerate(reader, 1)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: not a CSV file: {error}") from None


def _write_parquet(path: Path, pages: Iterable[list[Described]], advance: Advance) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = dict.fromkeys(COLUMNS, pa.string()) | dict.fromkeys(_TIMES, pa.float64())
    kinds |= {"skeleton": pa.binary(), "samples_ms": pa.list_(pa.list_(pa.float64()))}
    kinds |= dict.fromkeys(("threads", "batch"), pa.int32()) | {"n": pa.int64()}
    schema = pa.schema(list(kinds.items()))
    done = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for page in pages:
            rows = [flat(described) for described in page]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            done += len(page)
            advance(done)
    return done


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(PAGE):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet file, or a damaged one: {error}") from None


def _check_columns(path: Path, names: Iterable[str]) -> None:
    missing = sorted(_NEEDED - set(names))
    if missing:
        raise ValueError(
            f"{path}: no measurements of latency; missing column(s): {', '.join(missing)}. "
            "`modelmill latency export` shows what a file looks like"
        )
