"""What the pages ask of the database: short lists by key, never a whole table.

A list is read from where the last one ended (`after`), not by counting rows from the start, so the
thousandth page costs what the first does. Every row is a dict that can be written as JSON, times in
milliseconds.
"""

from __future__ import annotations

import json
import operator
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modelmill.records.database import Database
from modelmill.records.latencies import unpack
from modelmill.records.measurement import PLATFORM, Platform

if TYPE_CHECKING:
    import sqlalchemy as sa

Json = dict[str, Any]
FACT = ("id", "model", "platform", "p50_ms", "p90_ms", "p99_ms", "noise", "n", "when", "machine")
FRESH_S = 10.0  # counts and names of families are used so long
MOST_PLATFORMS = 10_000
MOST_OF_A_MODEL = 500


class UnreadableError(RuntimeError):
    """The database is gone, locked or damaged since it was opened: which, in words."""


@contextmanager
def reading(database: Database) -> Iterator[sa.Connection]:
    """A connection to read with; raises UnreadableError where there is none."""
    try:
        with database.reading() as connection:
            yield connection
    except ValueError as error:
        raise UnreadableError(str(error)) from error


class Reader:
    """A database of records, to read.

    Every method raises UnreadableError where it cannot be read.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._kept: dict[str, tuple[float, Any]] = {}
        self._lock = threading.Lock()
        with reading(database) as connection:
            self._is_sqlite = connection.dialect.name == "sqlite"

    def counts(self) -> Json:
        """How many models and records there are, as of a few seconds ago."""
        return dict(self._fresh("counts", self._count))

    def families(self) -> list[str]:
        """Names of the families, as of a few seconds ago."""
        return list(self._fresh("families", self._families))

    def platforms(self) -> dict[str, Json]:
        """All platforms by key, in the order of their names."""
        table = self._table("platforms")
        found = [
            {**{n: row[n] for n in PLATFORM}, "key": row["key"]}
            for row in self._rows(table.select().limit(MOST_PLATFORMS))
        ]
        for row in found:
            row["name"] = Platform(**{n: row[n] for n in PLATFORM}).name
        found.sort(key=lambda p: (p["name"], p["device"], p["version"]))
        return {row["key"]: row for row in found}

    def models(
        self, family: str, text: str, descending: bool, after: tuple[str, str] | None, most: int
    ) -> list[Json]:
        """Models by name, from (name, structure) `after` on; `text`: part of the name."""
        import sqlalchemy as sa

        table = self._table("models")
        order = (table.c.name, table.c.structure)
        select = sa.select(table.c.structure, table.c.name, table.c.family).limit(most)
        select = select.order_by(*(c.desc() if descending else c.asc() for c in order))
        if family:
            select = select.where(table.c.family == family)
        if text:
            select = select.where(self._holds(table.c.name, text))
        if after is not None:
            here, there = sa.tuple_(*order), sa.tuple_(*map(sa.literal, after))
            select = select.where(here < there if descending else here > there)
        found = self._rows(select)
        self._add_facts(found)
        return found

    def models_by_structure(self, start: str, most: int) -> list[Json]:
        """Models whose structure starts so."""
        import sqlalchemy as sa

        table = self._table("models")
        select = sa.select(table.c.structure, table.c.name, table.c.family)
        # "g" comes behind all hexadecimal digits.
        select = select.where(table.c.structure >= start, table.c.structure < f"{start}g")
        found = self._rows(select.order_by(table.c.structure).limit(most))
        self._add_facts(found)
        return found

    def model(self, structure: str) -> Json | None:
        """What is known of a model; None: it is not there."""
        import sqlalchemy as sa

        table = self._table("models")
        size = sa.func.length(table.c.skeleton).label("skeleton_bytes")
        columns = (table.c.structure, table.c.name, table.c.family, table.c.facts, size)
        for row in self._rows(sa.select(*columns).where(table.c.structure == structure)):
            return {**row, "facts": json.loads(row["facts"])}
        return None

    def measurements(
        self,
        platform: str = "",
        family: str = "",
        sort: str = "newest",
        after: tuple[float, int] | None = None,
        most: int = 50,
    ) -> list[Json]:
        """Measurements, the newest first; of a platform also the "fastest" or "slowest" first.

        after: (p50_ms, id) of the last one of the page before.
        """
        import sqlalchemy as sa

        # The ids are chosen by indexes alone; only what is shown is read whole, with its samples.
        fact, model = self._table("measurements"), self._table("models")
        order = (fact.c.id,) if sort == "newest" else (fact.c.p50_ms, fact.c.id)
        falling = sort != "fastest"
        ids = sa.select(fact.c.id).limit(most)
        ids = ids.order_by(*(c.desc() if falling else c.asc() for c in order))
        if platform:
            ids = ids.where(fact.c.platform == platform)
        if family:
            ids = ids.where(
                fact.c.model.in_(sa.select(model.c.structure).where(model.c.family == family))
            )
        if after is not None:
            here, there = sa.tuple_(*order), sa.tuple_(*map(sa.literal, after[-len(order) :]))
            ids = ids.where(here < there if falling else here > there)
        rows = self._rows(self._facts().where(fact.c.id.in_(ids.scalar_subquery())))
        by = operator.itemgetter("id") if sort == "newest" else operator.itemgetter("p50_ms", "id")
        return sorted(rows, key=by, reverse=falling)

    def measurements_of(self, structure: str) -> list[Json]:
        """The newest measurements of a model, with the p50 of the reference beside them."""
        fact = self._table("measurements")
        select = self._facts().where(fact.c.model == structure)
        return self._rows(select.order_by(fact.c.id.desc()).limit(MOST_OF_A_MODEL))

    def measurement(self, id: int) -> Json | None:
        """One measurement with its samples; None: it is not there."""
        fact = self._table("measurements")
        select = self._facts().add_columns(fact.c.reference_ms, fact.c.extra, fact.c.samples)
        for row in self._rows(select.where(fact.c.id == id)):
            samples = [list(block) for block in unpack(bytes(row.pop("samples")))]
            return {**row, "extra": json.loads(row["extra"]), "samples_ms": samples}
        return None

    def newest_of(self, models: Collection[str]) -> dict[tuple[str, str], Json]:
        """The newest measurement by (structure, key of the platform), of these models."""
        import sqlalchemy as sa

        fact = self._table("measurements")
        found: dict[tuple[str, str], Json] = {}
        for some in _portions(sorted(models), 500):
            columns = [fact.c[n] for n in ("id", "model", "platform", "p50_ms", "noise", "when")]
            select = sa.select(*columns).where(fact.c.model.in_(some)).order_by(fact.c.id)
            found |= {(row["model"], row["platform"]): row for row in self._rows(select)}
        return found

    def names_of(self, structures: Collection[str]) -> dict[str, Json]:
        """{name, family} by structure."""
        import sqlalchemy as sa

        table = self._table("models")
        found: dict[str, Json] = {}
        for some in _portions(sorted(structures), 500):
            columns = (table.c.structure, table.c.name, table.c.family)
            select = sa.select(*columns).where(table.c.structure.in_(some))
            found |= {row["structure"]: row for row in self._rows(select)}
        return found

    def records(
        self, most: int, what: str = "", subject: str = "", builds: Collection[str] = ()
    ) -> list[Json]:
        """Records, the newest first, without what does not concern the pages."""
        table = self._table("records")
        select = table.select().order_by(table.c.id.desc()).limit(most)
        if what:
            select = select.where(table.c.what == what)
        if subject:
            select = select.where(table.c.subject == subject)
        if builds:
            select = select.where(table.c.build.in_(sorted(builds)))
        return [{**row, "extra": json.loads(row["extra"])} for row in self._rows(select)]

    # ------------------------------------------------------------------ below

    def _table(self, name: str) -> sa.Table:
        return self.database.tables[f"modelmill_{name}"]

    def _holds(self, column: sa.Column[str], text: str) -> sa.ColumnElement[bool]:
        """Whether a column holds a text, in letters of either case."""
        if self._is_sqlite:  # whose LIKE disregards case already, and is the faster for it
            return column.contains(text, autoescape=True)
        return column.icontains(text, autoescape=True)

    def _rows(self, select: sa.Select[Any]) -> list[Json]:
        with reading(self.database) as connection:
            return [dict(row) for row in connection.execute(select).mappings()]

    def _facts(self) -> sa.Select[Any]:
        """Measurements with the name and the family of their model."""
        import sqlalchemy as sa

        fact, model = self._table("measurements"), self._table("models")
        columns: list[sa.ColumnElement[Any]] = [fact.c[name] for name in FACT]
        columns += [sa.func.coalesce(model.c[n], "").label(n) for n in ("name", "family")]
        return sa.select(*columns).select_from(
            fact.outerjoin(model, model.c.structure == fact.c.model)
        )

    def _add_facts(self, models: list[Json]) -> None:
        """Join multiply-adds, parameters and how often it was measured to models."""
        import sqlalchemy as sa

        table, fact = self._table("models"), self._table("measurements")
        wanted = [m["structure"] for m in models]
        held = sa.select(table.c.structure, table.c.facts).where(table.c.structure.in_(wanted))
        facts = {row["structure"]: json.loads(row["facts"]) for row in self._rows(held)}
        counted = sa.select(
            fact.c.model,
            sa.func.count().label("n"),
            sa.func.count(sa.distinct(fact.c.platform)).label("platforms"),
        )
        counted = counted.where(fact.c.model.in_(wanted)).group_by(fact.c.model)
        times = {row["model"]: row for row in self._rows(counted)}
        for model in models:
            known = facts.get(model["structure"], {})
            model |= {name: known.get(name) for name in ("macs", "params")}
            row = times.get(model["structure"], {"n": 0, "platforms": 0})
            model |= {"measurements": row["n"], "platforms": row["platforms"]}

    def _count(self) -> Json:
        import sqlalchemy as sa

        found = {}
        for name in ("models", "records"):
            count = sa.select(sa.func.count().label("n")).select_from(self._table(name))
            found[name] = self._rows(count)[0]["n"]
        return found

    def _families(self) -> list[str]:
        import sqlalchemy as sa

        family = self._table("models").c.family
        select = sa.select(family).distinct().where(family != "").order_by(family)
        return [row["family"] for row in self._rows(select)]

    def _fresh(self, name: str, ask: Any) -> Any:
        """The answer of a few seconds ago, or a new one."""
        with self._lock:
            until, answer = self._kept.get(name, (0.0, None))
            if time.monotonic() >= until:
                answer = ask()
                self._kept[name] = (time.monotonic() + FRESH_S, answer)
            return answer


def _portions(items: list[str], size: int) -> Iterable[list[str]]:
    return (items[i : i + size] for i in range(0, len(items), size))
