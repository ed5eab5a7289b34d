"""Connections to a database by path or URL, and what their errors mean for a person."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # SQLAlchemy takes longer to import than most commands run
    import sqlalchemy as sa

# What a database says, what it means, and whether the same may work later.
_MEANINGS = (
    ("not a database", "is not an SQLite database; give another file name", False),
    ("malformed", "is a damaged SQLite database; restore it, or give another file name", False),
    ("locked", "is held by another process; wait for it or end it, then try again", True),
    ("lock timeout", "is held by another process; wait for it or end it, then try again", True),
    (
        "readonly",
        "is read-only; make it and its folder writable, or give another file name",
        True,
    ),
    ("read-only transaction", "is read-only; write to another server or as another user", True),
    ("permission denied", "may not be used by this user; ask for the right to write", True),
    (
        "unable to open",
        "cannot be opened; check that the folder exists and is writable",
        True,
    ),
    (
        "disk is full",
        "could not be written: the disk is full; nothing of this call was stored",
        True,
    ),
    (
        "No space left",
        "could not be written: the disk is full; nothing of this call was stored",
        True,
    ),
    (
        "disk I/O",
        "met an error of the disk, or a full one; nothing of this call was stored",
        True,
    ),
    ("no such table", "was made by an older modelmill and is read-only; make it writable", True),
)
_UNREACHED = "cannot be reached; check that the server runs, and host, name and user in the URL"


class UnreachableError(ValueError):
    """A database that cannot be used now, and perhaps later: what was to be stored may be kept."""


def masked(location: str) -> str:
    """A path or URL as it may be shown: without the password."""
    if "://" not in location:
        return location
    import sqlalchemy as sa

    try:
        return sa.make_url(location).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return location


def connect(location: str, timeout_s: float, read_only: bool = False) -> sa.Engine:
    """An engine whose connections live for one call: it may cross a fork and holds no lock.

    read_only: the database itself refuses to be changed through it.

    Raises:
        ValueError: a folder, or a URL of a kind that is not known here.
    """
    import sqlalchemy as sa
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    if "://" not in location:
        return _sqlite(Path(location), timeout_s, read_only)
    try:
        url = sa.make_url(location)
        if url.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
            return sa.create_engine(url)
        engine = sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            poolclass=sa.NullPool,
            connect_args={"connect_timeout": max(2, round(timeout_s))},
        )
        return engine.execution_options(postgresql_readonly=True) if read_only else engine
    except ModuleNotFoundError as error:
        how = "; run pip install 'modelmill[postgresql]'" if error.name == "psycopg" else ""
        raise ValueError(
            f"{masked(location)}: not a database URL that can be used here: {error}{how}"
        ) from error
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise ValueError(
            f"{masked(location)}: not a database URL that can be used here: {error}"
        ) from error


def _sqlite(path: Path, timeout_s: float, read_only: bool) -> sa.Engine:
    import sqlalchemy as sa

    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give the name of a database file")

    def connection() -> sqlite3.Connection:
        shut = path.exists() and not os.access(path, os.W_OK)
        shut = shut or (read_only and not os.access(path.absolute().parent, os.W_OK))
        if shut or read_only:
            # A log beside the file holds records that are not in it yet; without one the file is
            # all there is, and then it can be read even where SQLite may not make its lock files.
            log = path.with_name(path.name + "-wal").exists()
            frozen = "&immutable=1" if shut and not log else ""
            return sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro{frozen}", timeout=timeout_s, uri=True
            )
        return sqlite3.connect(path, timeout=timeout_s)

    return sa.create_engine("sqlite://", creator=connection, poolclass=sa.NullPool)


@contextmanager
def explained(location: str) -> Iterator[None]:
    """Errors of a database as a ValueError that names it and the way out."""
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    try:
        yield
    except SQLAlchemyError as error:
        said = str(getattr(error, "orig", None) or error).strip()
        server = "://" in location and isinstance(error, OperationalError)
        otherwise = (_UNREACHED, True) if server else ("cannot be used", False)
        found = ((text, later) for key, text, later in _MEANINGS if key in said)
        meaning, later = next(found, otherwise)
        kind = UnreachableError if later else ValueError
        raise kind(f"{location}: {meaning} ({said})") from error
