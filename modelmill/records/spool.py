"""Measurements are dear: where their database cannot be written, they wait in a file beside the
default one.

One file for every database, one line for every measurement. Whoever next writes to that database
delivers what waits. A line is removed only after the database has it, and a measurement that is
delivered twice is stored once, so that a kill at any moment loses nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelmill.records.database import Database
from modelmill.records.engine import UnreachableError, masked
from modelmill.records.exchange import Described, as_text, flat, from_flat
from modelmill.records.latencies import Latencies
from modelmill.records.location import data_folder
from modelmill.records.measurement import Measurement, ModelFacts


@dataclass(frozen=True)
class Delivery:
    """What became of measurements: how many are new in the database, those that had waited
    included; how many wait now; and what the user must know, "" if nothing.
    """

    stored: int
    waiting: int = 0
    warning: str = ""


def spool_path(location: str | os.PathLike[str]) -> Path:
    """Where measurements for this database wait."""
    name = masked(os.fspath(location))
    if "://" not in name:
        name = str(Path(name).absolute())
    return data_folder() / f"waiting-{hashlib.sha256(name.encode()).hexdigest()[:12]}.jsonl"


def deliver(
    to: Latencies | str | os.PathLike[str],
    measurements: Sequence[Measurement],
    models: Sequence[ModelFacts] = (),
    timeout_s: float = 30.0,
) -> Delivery:
    """Store measurements and what is known of their models, and what waits for this database; where
    it cannot be written now, let them wait.

    to: an open database, or its path or URL, which is then opened with `timeout_s`.

    Raises:
        ValueError: it can never be written (a file of another kind, a newer version), or they
            cannot even wait.
    """
    spool = spool_path(to.database.location if isinstance(to, Latencies) else to)
    try:
        there = to if isinstance(to, Latencies) else Latencies(Database(to, timeout_s))
        there.add_models(models)
        stored = there.add(measurements)
        late, warning = _deliver_waiting(spool, there) if spool.exists() else (0, "")
        return Delivery(stored + late, 0, warning)
    except UnreachableError as error:
        if not measurements:
            raise
        known = {m.structure: m for m in models}
        described = [(m, known.get(m.model, ModelFacts(m.model))) for m in measurements]
        waiting = _append(spool, described, str(error))
        return Delivery(
            0,
            waiting,
            f"{error}. {len(measurements)} measurement(s) wait in {spool}; the next command that "
            "can write there delivers them",
        )


def _deliver_waiting(spool: Path, there: Latencies) -> tuple[int, str]:
    """(new measurements, warning); the file is empty afterwards."""
    with _alone(spool) as descriptor:
        lines = _read(descriptor).splitlines()
        found, damaged = [], []
        for line in lines:
            try:
                found.append(from_flat(json.loads(line)))
            except (ValueError, TypeError, KeyError, AttributeError):
                damaged.append(line)
        there.add_models(model for _, model in found)
        new = there.add(measured for measured, _ in found)
        warning = ""
        if damaged:
            beside = spool.with_suffix(".damaged")
            with beside.open("ab") as file:
                file.write(b"\n".join([*damaged, b""]))
            warning = f"{len(damaged)} line(s) of {spool} are damaged and were moved to {beside}"
        os.ftruncate(descriptor, 0)
    return new, warning


def _append(spool: Path, described: Sequence[Described], why: str) -> int:
    """Add lines, all or none; how many wait now."""
    data = b"".join(json.dumps(as_text(flat(d))).encode() + b"\n" for d in described)
    try:
        spool.parent.mkdir(parents=True, exist_ok=True)
        with _alone(spool) as descriptor:
            before = _read(descriptor)
            if before and not before.endswith(b"\n"):  # a writer was killed
                data = b"\n" + data
            try:
                os.lseek(descriptor, 0, os.SEEK_END)
                written = os.write(descriptor, data)
                if written < len(data):
                    raise OSError(None, "no room for all of them")
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, len(before))
                raise
            return before.count(b"\n") + data.count(b"\n")
    except OSError as error:
        raise ValueError(
            f"{why}; and they cannot wait in {spool} either: {error.strerror}. Make room, or give "
            "another database with --db"
        ) from error


@contextmanager
def _alone(path: Path) -> Iterator[int]:
    """The file open to read and write, while no other process has it so."""
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> bytes:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        return file.read()
