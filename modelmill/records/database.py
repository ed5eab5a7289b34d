"""The database of records: an SQLite file by default, or PostgreSQL by URL.

One table holds the records of builds, others the latencies (see `Latencies`), one row the version
of the schema; a database of an older version is brought to this one when it is opened. Writers
never read before they write, so with SQLite's write-ahead log and a busy time-out several processes
append at once and nothing is lost. A connection lives for one call only: a `Database` may cross a
fork, and an idle one holds no lock.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelmill.records.engine import UnreachableError, connect, explained, masked
from modelmill.records.location import data_folder
from modelmill.records.record import Record, Where
from modelmill.records.tables import SCHEMA_VERSION, metadata

if TYPE_CHECKING:  # SQLAlchemy takes longer to import than most commands run
    import sqlalchemy as sa

_WHERE = ("device", "engine", "version", "threads", "isa", "commit")
_FILL = "next: modelmill latency measure --help, or modelmill build --help, whose --db writes to it"
_MIGRATIONS = Path(__file__).with_name("migrations")
_MIGRATION_LOCK = 0x6D6F64656C  # "model": which of PostgreSQL's advisory locks is ours


class Database:
    """Records at a path or URL; made if it is not there, unless it is only to be read.

    Args:
        location: path of an SQLite file, or a SQLAlchemy URL such as postgresql://host/name.
        timeout_s: how long to wait for other writers, or for a server.
        read_only: nothing is made or changed there, whatever is asked.

    Raises:
        ValueError: unreadable, of a newer version, or no database of records; if only to be read
            also: not there, empty, of an older version.
        UnreachableError: (a ValueError) locked, no server, no room: what may work later.
    """

    def __init__(
        self,
        location: str | os.PathLike[str],
        timeout_s: float = 30.0,
        read_only: bool = False,
    ) -> None:
        self.location = masked(os.fspath(location))
        self._timeout_s = timeout_s
        if read_only and "://" not in self.location and not os.path.exists(self.location):
            raise ValueError(f"{self.location}: no such database; {_FILL}")
        if Path(self.location).parent == data_folder() and not read_only:
            _make(data_folder())
        self._engine = connect(os.fspath(location), timeout_s, read_only)
        with explained(self.location):
            version = self._version()
        if read_only and (version is None or version < SCHEMA_VERSION):
            state = "empty" if version is None else "of an older modelmill"
            raise ValueError(f"{self.location}: {state}; {_FILL}")
        if version is None or version < SCHEMA_VERSION:
            try:
                with explained(self.location):
                    self._migrate()
            except UnreachableError:
                if version is None or self._is_writable():
                    raise  # what an older one holds can be read even where nothing can be written
        elif version > SCHEMA_VERSION:
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

    def add_missing(self, records: Iterable[Record]) -> int:
        """Append the records that are not there yet, all or none; how many these were.

        Raises:
            ValueError: the database cannot be written.
        """
        rows = {_identity(row): row for row in map(_to_row, records)}
        table = self.tables["modelmill_records"]
        if not rows:
            return 0
        with self.writing(table) as connection:
            for row in connection.execute(table.select()).mappings():
                rows.pop(_identity(row), None)
            if rows:
                connection.execute(table.insert(), list(rows.values()))
        return len(rows)

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

    # ---------------------------------------------------------------- for facts of other kinds

    @property
    def tables(self) -> Mapping[str, sa.Table]:
        """The tables by name."""
        return metadata().tables

    def insert(self, table: sa.Table) -> Any:
        """An insert that may say what is done where the row is there already."""
        from sqlalchemy.dialects import postgresql, sqlite

        return (sqlite if self._is_sqlite else postgresql).insert(table)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection to read with; database errors become a ValueError."""
        with explained(self.location), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self, alone_on: sa.Table | None = None) -> Iterator[sa.Connection]:
        """A transaction, all or nothing; database errors become a ValueError.

        alone_on: a table that nobody else writes meanwhile, for who reads before it writes.
        """
        with explained(self.location), self._engine.begin() as connection:
            self._wait_for_others(connection)
            if alone_on is not None and not self._is_sqlite:
                connection.exec_driver_sql(f"LOCK TABLE {alone_on.name} IN EXCLUSIVE MODE")
            yield connection

    # ---------------------------------------------------------------- schema

    @property
    def _is_sqlite(self) -> bool:
        return self._engine.dialect.name == "sqlite"

    def _is_writable(self) -> bool:
        return "://" in self.location or os.access(self.location, os.W_OK)

    def _wait_for_others(self, connection: sa.Connection) -> None:
        """At the start of a transaction: SQLite lets in one writer, PostgreSQL waits so long."""
        if self._is_sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            milliseconds = round(self._timeout_s * 1000)
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {milliseconds}")

    def _version(self, within: sa.Connection | None = None) -> int | None:
        """Version of the schema there, None in an empty database."""
        import sqlalchemy as sa

        if within is None:
            with self._engine.connect() as connection:
                return self._version(connection)
        schema = self.tables["modelmill_schema"]
        there = sa.inspect(within).get_table_names()
        if schema.name in there:
            return within.execute(sa.select(sa.func.max(schema.c.version))).scalar()
        if there and self._is_sqlite:
            raise ValueError(
                f"{self.location}: an SQLite database of something else"
                f" (tables {', '.join(sorted(there)[:4])});"
                " give another file name"
            )
        return None

    def _migrate(self) -> None:
        """Bring the tables to this version in one transaction; others that do so wait."""
        from alembic import command
        from alembic.config import Config

        if self._is_sqlite:
            self._write_ahead()
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        with self._engine.begin() as connection:
            self._wait_for_others(connection)
            if not self._is_sqlite:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
            version = self._version(connection)
            if version is not None and version >= SCHEMA_VERSION:
                return
            config.attributes["connection"] = connection
            if version == 1:  # made before there were migrations
                command.stamp(config, "1")
            command.upgrade(config, str(SCHEMA_VERSION))
            schema = self.tables["modelmill_schema"]
            connection.execute(schema.delete())
            connection.execute(schema.insert().values(version=SCHEMA_VERSION))

    def _write_ahead(self) -> None:
        """Switch the log on. The switch does not wait for others as every statement does."""
        from sqlalchemy.exc import OperationalError

        for attempt in range(50):
            try:
                with self._engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                return
            except OperationalError as error:
                if "locked" not in str(error.orig) or attempt == 49:
                    raise
                time.sleep(0.02)


def _make(folder: Path) -> None:
    """The folder of the default database: nobody else makes it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnreachableError(
            f"{folder}: cannot be made ({error.strerror}); give a database with --db"
        ) from error


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


def _identity(row: Any) -> tuple[Any, ...]:
    """All of a record; two rows that agree in it are one fact."""
    return tuple(row[column.name] for column in metadata().tables["modelmill_records"].c
                 if column.name != "id")  # fmt: skip


def _from_row(row: Any) -> Record:
    facts = {
        k: row[k] for k in ("what", "value", "unit", "n", "spread", "subject", "when", "build")
    }
    return Record(
        **facts, where=Where(**{k: row[k] for k in _WHERE}), extra=json.loads(row["extra"])
    )
