"""Latencies in the database: models, platforms, measurements, and the predictors made from them.

A measurement is known by its `key`, so that storing it again changes nothing: a delivery may be
repeated, two databases may be merged, and no writer reads before it writes. Rows are written in the
order of their keys, so that two writers wait for one another instead of blocking each other.

Raw samples are kept to the nanosecond: whole numbers, their bytes sorted by place, compressed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from modelmill.records.database import Database
from modelmill.records.measurement import PLATFORM, Measurement, ModelFacts, Platform
from modelmill.records.record import utc_now

if TYPE_CHECKING:
    import sqlalchemy as sa

_NUMBERS = ("p50_ms", "p90_ms", "p99_ms", "n", "noise", "reference_ms")
Samples = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Row:
    """What training reads of a measurement. platform: its key. reference_ms: p50 of the reference
    model in the same turns, None where there was none.
    """

    structure: str
    family: str
    platform: str
    p50_ms: float
    noise: float
    reference_ms: float | None = None


@dataclass(frozen=True)
class StoredPredictor:
    """A predictor as bytes. version: counted by the database from 1, by name. facts: JSON."""

    name: str
    version: int
    when: str
    facts: Mapping[str, Any] = field(hash=False)
    data: bytes = b""


class Latencies:
    """The tables of latencies in a database.

    Every method raises ValueError where the database cannot be read or written.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def add_models(self, models: Iterable[ModelFacts]) -> None:
        """Store models, all or none. Of one that is there, what is empty is filled in."""
        found = {m.structure: _from_model(m) for m in models}
        table = self.database.tables["modelmill_models"]
        insert = self.database.insert(table)
        kept = {
            name: _filled(table.c[name], insert.excluded[name], empty)
            for name, empty in (("name", ""), ("family", ""), ("skeleton", b""), ("facts", "{}"))
        }
        statement = insert.on_conflict_do_update(index_elements=["structure"], set_=kept)
        if found:
            with self.database.writing() as connection:
                connection.execute(statement, [found[key] for key in sorted(found)])

    def add(self, measurements: Iterable[Measurement]) -> int:
        """Store measurements with their platforms, all or none; the number that was new."""
        found = {m.key: m for m in measurements}
        platforms = {m.platform.key: m.platform for m in found.values()}
        if not found:
            return 0
        tables = self.database.tables
        place = self.database.insert(tables["modelmill_platforms"]).on_conflict_do_nothing()
        table = tables["modelmill_measurements"]
        fact = self.database.insert(table).on_conflict_do_nothing().returning(table.c.id)
        places = [{"key": key, **asdict(platforms[key])} for key in sorted(platforms)]
        facts = [_from_measurement(found[key]) for key in sorted(found)]
        with self.database.writing() as connection:
            connection.execute(place, places)
            return len(connection.execute(fact, facts).all())

    def find(
        self, structure: str | None = None, platforms: Collection[Platform] | None = None
    ) -> list[Measurement]:
        """Measurements of a model on any of these platforms, newest last; None: of all."""
        fact = self.database.tables["modelmill_measurements"]
        select = self._measurements()
        if structure is not None:
            select = select.where(fact.c.model == structure)
        if platforms is not None:
            select = select.where(fact.c.platform.in_([p.key for p in platforms]))
        with self.database.reading() as connection:
            found = [_to_measurement(row._mapping) for row in connection.execute(select)]
        return sorted(found, key=lambda m: datetime.fromisoformat(m.when))

    def pages(self, size: int = 1000) -> Iterator[list[Measurement]]:
        """All measurements in the order stored, at most so many at once."""
        last = 0
        while True:
            fact = self.database.tables["modelmill_measurements"]
            select = self._measurements().where(fact.c.id > last).limit(size)
            with self.database.reading() as connection:
                rows = connection.execute(select).mappings().all()
            if not rows:
                return
            yield [_to_measurement(row) for row in rows]
            last = rows[-1]["id"]

    def platforms(
        self,
        target: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        batch: int | None = None,
    ) -> list[Platform]:
        """Platforms that agree with every argument given, by name."""
        table = self.database.tables["modelmill_platforms"]
        wanted = {"target": target, "precision": precision, "threads": threads, "batch": batch}
        select = table.select()
        for name, value in wanted.items():
            if value is not None:
                select = select.where(table.c[name] == value)
        with self.database.reading() as connection:
            rows = connection.execute(select).mappings()
            found = [Platform(**{name: row[name] for name in PLATFORM}) for row in rows]
        return sorted(found, key=lambda p: (p.name, p.device, p.version))

    def models(
        self, family: str | None = None, structures: Collection[str] | None = None
    ) -> list[ModelFacts]:
        """Models of a family, or of these structures; None: all. In the order of structures."""
        table = self.database.tables["modelmill_models"]
        select = table.select().order_by(table.c.structure)
        if family is not None:
            select = select.where(table.c.family == family)
        if structures is not None:
            select = select.where(table.c.structure.in_(list(structures)))
        with self.database.reading() as connection:
            return [_to_model(row._mapping) for row in connection.execute(select)]

    def rows(self, platforms: Collection[Platform] | None = None) -> list[Row]:
        """All measurements without their samples, in the order stored; for training."""
        fact, select = self._select_rows()
        if platforms is not None:
            select = select.where(fact.c.platform.in_([p.key for p in platforms]))
        with self.database.reading() as connection:
            return [Row(*row) for row in connection.execute(select)]

    def told(self, name: str) -> list[tuple[Row, Any]]:
        """Measurements with this among their extra facts, and what it says, in the order stored."""
        fact, select = self._select_rows()
        select = select.where(fact.c.extra.like(f'%"{name}"%')).add_columns(fact.c.extra)
        with self.database.reading() as connection:
            rows = connection.execute(select).all()
        facts = ((Row(*row), json.loads(extra)) for *row, extra in rows)
        return [(row, fact[name]) for row, fact in facts if name in fact]

    def _select_rows(self) -> tuple[sa.Table, sa.Select[Any]]:
        """The table of measurements, and what a `Row` is of them."""
        import sqlalchemy as sa

        fact = self.database.tables["modelmill_measurements"]
        model = self.database.tables["modelmill_models"]
        family = sa.func.coalesce(model.c.family, "")
        numbers = (fact.c.p50_ms, fact.c.noise, fact.c.reference_ms)
        select = (
            sa.select(fact.c.model, family, fact.c.platform, *numbers)
            .join(model, model.c.structure == fact.c.model, isouter=True)
            .order_by(fact.c.id)
        )
        return fact, select

    def count(self) -> int:
        """How many measurements there are."""
        import sqlalchemy as sa

        table = self.database.tables["modelmill_measurements"]
        with self.database.reading() as connection:
            return int(
                connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            )

    def _measurements(self) -> sa.Select[Any]:
        """All of them with their platforms, in the order stored."""
        import sqlalchemy as sa

        fact = self.database.tables["modelmill_measurements"]
        place = self.database.tables["modelmill_platforms"]
        return (
            sa.select(fact, *(place.c[n].label(f"at_{n}") for n in PLATFORM))
            .join(place, place.c.key == fact.c.platform)
            .order_by(fact.c.id)
        )

    # ---------------------------------------------------------------- predictors

    def save_predictor(self, name: str, data: bytes, facts: Mapping[str, Any]) -> int:
        """Store a predictor as the next version of its name; the version."""
        import sqlalchemy as sa

        table = self.database.tables["modelmill_predictors"]
        content = {"name": name, "when": utc_now(), "facts": json.dumps(dict(facts)), "data": data}
        with self.database.writing(table) as connection:
            newest = sa.select(sa.func.max(table.c.version)).where(table.c.name == name)
            version = int(connection.execute(newest).scalar() or 0) + 1
            connection.execute(table.insert().values(version=version, **content))
        return version

    def load_predictor(self, name: str, version: int | None = None) -> StoredPredictor:
        """A version of a predictor, None: the newest.

        Raises:
            ValueError: there is none; the message lists those that are there.
        """
        table = self.database.tables["modelmill_predictors"]
        select = table.select().where(table.c.name == name).order_by(table.c.version.desc())
        if version is not None:
            select = select.where(table.c.version == version)
        with self.database.reading() as connection:
            row = connection.execute(select.limit(1)).mappings().first()
        if row is None:
            there = ", ".join(f"{p.name} {p.version}" for p in self.predictors()) or "none"
            raise ValueError(
                f"{self.database.location}: no predictor {name!r}"
                + (f" of version {version}" if version is not None else "")
                + f"; there: {there}. Next: modelmill latency fit"
            )
        return StoredPredictor(**{**row, "facts": json.loads(row["facts"])})

    def predictors(self) -> list[StoredPredictor]:
        """All versions of all predictors, without their data."""
        table = self.database.tables["modelmill_predictors"]
        select = table.select().order_by(table.c.name, table.c.version)
        columns = [table.c[n] for n in ("name", "version", "when", "facts")]
        with self.database.reading() as connection:
            rows = connection.execute(select.with_only_columns(*columns)).mappings().all()
        return [StoredPredictor(**{**row, "facts": json.loads(row["facts"])}) for row in rows]


# ---------------------------------------------------------------- values as rows


def _filled(old: Any, new: Any, empty: object) -> sa.ColumnElement[Any]:
    import sqlalchemy as sa

    return sa.case((old == empty, new), else_=old)


def _from_model(model: ModelFacts) -> dict[str, Any]:
    facts = {name: float(number) for name, number in model.facts.items()}
    return {
        "structure": model.structure,
        "name": model.name,
        "family": model.family,
        "skeleton": model.skeleton,
        "facts": json.dumps(facts, sort_keys=True),
    }


def _to_model(row: sa.RowMapping) -> ModelFacts:
    known = {name: row[name] for name in ("structure", "name", "family")}
    return ModelFacts(**known, skeleton=bytes(row["skeleton"]), facts=json.loads(row["facts"]))


def _from_measurement(m: Measurement) -> dict[str, Any]:
    numbers = {n: None if (v := getattr(m, n)) is None else float(v) for n in _NUMBERS}
    return {
        **numbers,
        "n": int(m.n),
        "key": m.key,
        "model": m.model,
        "platform": m.platform.key,
        "when": m.when,
        "machine": m.machine,
        "extra": json.dumps(dict(m.extra)),
        "samples": pack(m.samples_ms),
    }


def _to_measurement(row: sa.RowMapping) -> Measurement:
    return Measurement(
        model=row["model"],
        platform=Platform(**{name: row[f"at_{name}"] for name in PLATFORM}),
        **{name: row[name] for name in (*_NUMBERS, "when", "machine")},
        samples_ms=unpack(bytes(row["samples"])),
        extra=json.loads(row["extra"]),
    )


def pack(samples_ms: Samples) -> bytes:
    """Blocks of times as bytes, to the nanosecond."""
    import numpy as np

    if not samples_ms:
        return b""
    sizes = [len(samples_ms), *(len(block) for block in samples_ms)]
    flat = [t for block in samples_ms for t in block]
    whole = np.concatenate([sizes, np.rint(np.array(flat, np.float64) * 1e6)]).astype("<u8")
    return zlib.compress(whole.view(np.uint8).reshape(-1, 8).T.tobytes(), 6)


def unpack(data: bytes) -> Samples:
    """What `pack` packed."""
    import numpy as np

    if not data:
        return ()
    planes = np.frombuffer(zlib.decompress(data), np.uint8).reshape(8, -1)
    whole = np.ascontiguousarray(planes.T).view("<u8").ravel()
    blocks = int(whole[0])
    ends = np.cumsum(whole[1 : blocks + 1].astype(np.int64)) + blocks + 1
    starts = [blocks + 1, *ends[:-1]]
    return tuple(tuple((whole[a:b] / 1e6).tolist()) for a, b in zip(starts, ends, strict=True))
