"""The database of records: an SQLite file by default, or any SQLAlchemy URL.

One table holds the records, one row holds the version of the schema. Writers never read before they
write, so with SQLite's write-ahead log and a busy time-out several processes append at once and
nothing is lost. A connection lives for one call only: a `Database` may cross a fork, and an idle
one holds no lock.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelmill.records.record import Record, Where
from modelmill.records.tables import metadata

if TYPE_CHECKING:  # SQLAlchemy takes longer to import than most commands run
    import sqlalchemy as sa

SCHEMA_VERSION = 1
_WHERE = ("device", "engine", "version", "threads", "isa", "commit")
# What SQLite says, and what it means for the person at the keyboard.
_MEANINGS = (
    ("not a database", "is not an SQLite database; give another file name"),
    ("malformed", "is a damaged SQLite database; restore it, or give another file name"),
    ("locked", "is held by another process; wait for it or end it, then try again"),
    ("readonly", "is read-only; make it and its folder writable, or give another file name"),
    ("unable to open", "cannot be opened; check that the folder exists and is writable"),
    ("disk is full", "could not be written: the disk is full; nothing of this call was stored"),
    ("disk I/O", "met an error of the disk, or a full one; nothing of this call was stored"),
)


class Database:
    """Records at a path or URL; made if it is not there.

    Args:
        location: path of an SQLite file, or a SQLAlchemy URL such as postgresql://host/name.
        timeout_s: how long to wait for other writers (SQLite).

    Raises:
        ValueError: unreadable, locked, of a newer version, or no database of records.
    """

    def __init__(self, location: str | os.PathLike[str], timeout_s: float = 30.0) -> None:
        self.location = os.fspath(location)
        self._path = None if "://" in self.location else Path(self.location)
        self._engine = _connect(self._path, self.location, timeout_s)
        with self._explained():
            if self._version() is None or self._lacks_tables():
                self._create()
            version = self._version()
        assert version is not None
        if version > SCHEMA_VERSION:
            raise ValueError(
                f"{self.location}: written by a newer modelmill"
                f" (schema {version}, this one knows {SCHEMA_VERSION});"
                " run pip install --upgrade modelmill, or give another file name"
            )

    def add(self, records: Iterable[Record]) -> None:
        """Append records, all or none.

        Raises:
            ValueError: the database cannot be written.
        """
        rows = [_to_row(r) for r in records]
        if rows:
            with self.writing() as connection:
                connection.execute(self.tables["modelmill_records"].insert(), rows)

    def query(
        self,
        what: str | None = None,
        subject: str | None = None,
        engine: str | None = None,
        device: str | None = None,
        build: str | None = None,
    ) -> list[Record]:
        """Records that agree with every argument given, in the order they were added.

        Raises:
            ValueError: the database cannot be read.
        """
        table = self.tables["modelmill_records"]
        wanted = {
            "what": what,
            "subject": subject,
            "engine": engine,
            "device": device,
            "build": build,
        }
        select = table.select().order_by(table.c.id)
        for column, value in wanted.items():
            if value is not None:
                select = select.where(table.c[column] == value)
        with self.reading() as connection:
            return [_from_row(row) for row in connection.execute(select).mappings()]

    @property
    def tables(self) -> Mapping[str, sa.Table]:
        """The tables by name, for those that keep facts of other kinds here."""
        return metadata().tables

    def insert(self, table: sa.Table) -> Any:
        """An insert that may say what is done where the row is there already."""
        from sqlalchemy.dialects import postgresql, sqlite

        return (sqlite if self._engine.dialect.name == "sqlite" else postgresql).insert(table)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection to read with; database errors become a ValueError."""
        with self._explained(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self, alone_on: sa.Table | None = None) -> Iterator[sa.Connection]:
        """A transaction, all or nothing; database errors become a ValueError.

        alone_on: a table that nobody else writes meanwhile, for who reads before it writes.
        """
        with self._explained(), self._engine.begin() as connection:
            if self._engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            elif alone_on is not None:
                connection.exec_driver_sql(f"LOCK TABLE {alone_on.name} IN EXCLUSIVE MODE")
            yield connection

    def _version(self) -> int | None:
        """Version of the schema there, None in an empty database."""
        import sqlalchemy as sa

        schema = self.tables["modelmill_schema"]
        with self._engine.connect() as connection:
            there = sa.inspect(connection).get_table_names()
            if schema.name in there:
                return connection.execute(sa.select(sa.func.max(schema.c.version))).scalar()
        if there and self._path is not None:
            raise ValueError(
                f"{self.location}: an SQLite database of something else"
                f" (tables {', '.join(sorted(there)[:4])});"
                " give another file name"
            )
        return None

    def _lacks_tables(self) -> bool:
        import sqlalchemy as sa

        with self._engine.connect() as connection:
            return not set(self.tables) <= set(sa.inspect(connection).get_table_names())

    def _create(self) -> None:
        """Make the tables. Another process may do the same: who comes second finds them made."""
        from sqlalchemy.exc import DBAPIError

        schema = self.tables["modelmill_schema"]
        for attempt in range(50):
            try:
                with self._engine.connect() as connection:
                    if connection.dialect.name == "sqlite":
                        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                with self._engine.begin() as connection:
                    if connection.dialect.name == "sqlite":
                        connection.exec_driver_sql("BEGIN IMMEDIATE")
                    schema.metadata.create_all(connection)
                    if connection.execute(schema.select()).first() is None:
                        connection.execute(schema.insert().values(version=SCHEMA_VERSION))
                return
            except DBAPIError as error:
                # Changing the journal mode does not wait for others as every other statement does.
                racing = "locked" in str(error.orig) or "exist" in str(error.orig)
                if not racing or attempt == 49:
                    raise
                time.sleep(0.02)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Database errors as a ValueError that names the file and the way out."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except SQLAlchemyError as error:
            said = str(getattr(error, "orig", None) or error)
            meaning = next((text for key, text in _MEANINGS if key in said), "cannot be used")
            raise ValueError(f"{self.location}: {meaning} ({said})") from error


def _connect(path: Path | None, url: str, timeout_s: float) -> sa.Engine:
    import sqlalchemy as sa
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    if path is None:
        try:
            return sa.create_engine(url)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise ValueError(f"{url}: not a database URL that can be used here: {error}") from error
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give the name of a database file")

    def connect() -> sqlite3.Connection:
        if path.exists() and not os.access(path, os.W_OK):
            # A log beside the file holds records that are not in it yet; without one the file is
            # all there is, and then it can be read even where SQLite may not make its lock files.
            frozen = "" if path.with_name(path.name + "-wal").exists() else "&immutable=1"
            return sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro{frozen}", timeout=timeout_s, uri=True
            )
        return sqlite3.connect(path, timeout=timeout_s)

    return sa.create_engine("sqlite://", creator=connect, poolclass=sa.NullPool)


def _to_row(record: Record) -> dict[str, Any]:
    return asdict(record.where) | {
        "what": record.what,
        "value": float(record.value),
        "unit": record.unit,
        "n": int(record.n),
        "spread": None if record.spread is None else float(record.spread),
        "subject": record.subject,
        "when": record.when,
        "build": record.build,
        "extra": json.dumps(dict(record.extra)),
    }


def _from_row(row: Any) -> Record:
    facts = {
        k: row[k] for k in ("what", "value", "unit", "n", "spread", "subject", "when", "build")
    }
    return Record(
        **facts, where=Where(**{k: row[k] for k in _WHERE}), extra=json.loads(row["extra"])
    )
