"""What each page says, as values that can be written as JSON: its `.json` form is exactly this.

Times are milliseconds, scores and noise fractions. A list holds at most MOST rows and, in `next`,
the address of what comes after them. Nothing is made for the eye here: see `drawing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from modelmill.records.measurement import PREDICTED
from modelmill.web import tally
from modelmill.web.accuracy import accuracies
from modelmill.web.builds import Builds
from modelmill.web.predictions import compared, of_model
from modelmill.web.reader import Reader
from modelmill.web.tally import Counts, Tally

Json = dict[str, Any]
MOST = 50  # rows on a page
FEW = 10  # rows of a list that is one among others
SOME = 20  # of each kind that a search lists
MOST_PREDICTIONS = 5_000
MOST_BUILDS = 300


class NotHereError(LookupError):
    """There is no such model, platform, ...: which, and where to look."""


class AskedError(ValueError):
    """An address that asks for what cannot be answered: what, and what may be asked."""


@dataclass(frozen=True)
class Site:
    """All that the pages are made from."""

    reader: Reader
    tally: Tally
    builds: Builds

    def home(self) -> Json:
        """Counts, the newest measurements, the newest builds."""
        counts, platforms = self.tally.look(), self.reader.platforms()
        return {
            "counts": {
                **self.reader.counts(),
                "measurements": sum(c.n for c in counts.values()),
                "platforms": len(platforms),
                "builds": len(self.builds.all().builds),
            },
            "platforms": _busiest(platforms, counts)[:FEW],
            "measurements": self._placed(self.reader.measurements(most=FEW)),
            "builds": [b.facts for b in self.builds.all().builds[:FEW]],
        }

    def models(self, family: str, q: str, sort: str, after: str) -> Json:
        """A page of models by name; after: "structure name" of the last one of the page before."""
        start = None
        if after:
            structure, _, name = after.partition(" ")
            start = (name, structure)
        rows = self.reader.models(family, q, sort == "-name", start, MOST + 1)
        asked = {"family": family, "q": q, "sort": sort if sort != "name" else ""}
        last = rows[MOST - 1] if len(rows) > MOST else None
        return {
            "models": rows[:MOST],
            "asked": {"family": family, "q": q, "sort": sort},
            "families": self.reader.families(),
            "count": self.reader.counts()["models"],
            "next": last and _link("/models", asked, f"{last['structure']} {last['name']}"),
        }

    def model(self, structure: str) -> Json:
        """Facts, measurements on every platform, and what was predicted."""
        facts = self.reader.model(structure)
        rows = self.reader.measurements_of(structure)
        if facts is None and not rows:
            raise NotHereError(f"no model {structure[:80]!r}; /models lists those that are there")
        if facts is None:  # measured by somebody who stored no facts
            facts = {"structure": structure, "name": "", "family": "", "facts": {}}
        held = self.reader.records(MOST_PREDICTIONS, PREDICTED, structure)
        newest = {row["platform"]: row for row in reversed(rows)}
        platforms = self.reader.platforms()
        return {
            "model": facts,
            "measurements": self._placed(rows),
            "predictions": of_model(held, newest, platforms),
        }

    def platforms(self) -> Json:
        """All platforms, with what was measured on each."""
        counts = self.tally.look()
        rows = [_counted(p, counts.get(key)) for key, p in self.reader.platforms().items()]
        return {"platforms": rows}

    def platform(self, key: str, sort: str, after: str) -> Json:
        """One platform: histograms of latency and noise, and its measurements."""
        platform = self.reader.platforms().get(key)
        if platform is None:
            raise NotHereError(f"no platform {key[:80]!r}; /platforms lists those that are there")
        counts = self.tally.look().get(key, Counts())
        rows = self.reader.measurements(key, "", sort, _after(after), MOST + 1)
        asked = {"sort": sort if sort != "newest" else ""}
        return {
            "platform": _counted(platform, counts),
            "latencies_ms": tally.histogram(tally.MS, counts.p50),
            "noise": tally.histogram(tally.NOISE, counts.noise),
            "asked": {"sort": sort},
            "measurements": rows[:MOST],
            "next": _next(f"/platforms/{key}", asked, rows),
        }

    def measurements(self, platform: str, family: str, sort: str, after: str) -> Json:
        """A page of measurements."""
        platforms = self.reader.platforms()
        if platform and platform not in platforms:
            raise NotHereError(
                f"no platform {platform[:80]!r}; /platforms lists those that are there"
            )
        if sort != "newest" and not platform:
            raise AskedError(f"sort={sort} compares times of one platform: choose a platform too")
        rows = self.reader.measurements(platform, family, sort, _after(after), MOST + 1)
        asked = {"platform": platform, "family": family, "sort": sort if sort != "newest" else ""}
        return {
            "asked": {"platform": platform, "family": family, "sort": sort},
            "platforms": list(platforms.values()),
            "families": self.reader.families(),
            "count": sum(c.n for c in self.tally.look().values()),
            "measurements": self._placed(rows[:MOST]),
            "next": _next("/measurements", asked, rows),
        }

    def measurement(self, id: int) -> Json:
        """One measurement with its samples."""
        row = self.reader.measurement(id)
        if row is None:
            raise NotHereError(f"no measurement {id}; /measurements lists those that are there")
        return {"measurement": row, "platform": self.reader.platforms().get(row["platform"])}

    def list_builds(self) -> Json:
        """Builds whose folders were found, and those that only the database knows."""
        found = self.builds.all()
        here = {b.facts["id"] for b in found.builds}
        elsewhere = [b for b in self._recorded() if b["id"] not in here]
        return {
            "builds": [b.facts for b in found.builds],
            "elsewhere": elsewhere,
            "broken": [{"folder": name, "why": why} for name, why in found.broken],
            "looked_in": len(self.builds.roots),
        }

    def build(self, id: str) -> Json:
        """One build: its report where the folder is here, and its records."""
        found = self.builds.find(id)
        records = self.reader.records(MOST_PREDICTIONS, builds=[id])
        if found is None and not records:
            raise NotHereError(f"no build {id[:80]!r}; /builds lists those that are there")
        return {
            "id": id,
            "report": found and found.facts,
            "has_page": found is not None and found.has_page,
            "records": records,
        }

    def accuracy(self, model: str) -> Json:
        """Score against latency of every deployment, or those of one model, by its name."""
        newest = self.reader.records(4 * MOST_BUILDS, "artifact_bytes")
        ids = list(dict.fromkeys(r["build"] for r in newest if r["build"]))[:MOST_BUILDS]
        records = self.reader.records(100 * MOST_BUILDS, builds=ids) if ids else []
        metrics = accuracies(records)
        names = sorted({p["name"] for m in metrics for p in m["points"]})
        if model:
            kept = ((m, [p for p in m["points"] if p["name"] == model]) for m in metrics)
            metrics = [{**m, "points": points} for m, points in kept if points]
        return {
            "metrics": metrics,
            "models": names,
            "asked": {"model": model},
            "builds": len(ids),
            "most": MOST_BUILDS,
        }

    def predictions(self) -> Json:
        """Predicted against measured, by platform."""
        held = self.reader.records(MOST_PREDICTIONS, PREDICTED)
        structures = {r["subject"] for r in held}
        newest, names = self.reader.newest_of(structures), self.reader.names_of(structures)
        return {
            "platforms": compared(held, newest, names, self.reader.platforms()),
            "read": len(held),
            "most": MOST_PREDICTIONS,
        }

    def search(self, q: str) -> Json:
        """Models, families, platforms and builds that hold the words."""
        low = q.strip().lower()
        found: Json = {"q": q, "models": [], "families": [], "platforms": [], "builds": []}
        if not low:
            return found
        models = self.reader.models("", q.strip(), False, None, SOME)
        if all(c in "0123456789abcdef" for c in low):
            models += self.reader.models_by_structure(low, SOME)
        words = low.split()
        counts = self.tally.look()
        platforms = [
            _counted(p, counts.get(key))
            for key, p in self.reader.platforms().items()
            if all(
                w in f"{p['name']} {p['device']} {p['version']} {p['isa']}".lower() for w in words
            )
        ]
        builds = [
            b.facts
            for b in self.builds.all().builds
            if all(w in f"{b.facts['name']} {b.facts['task']} {b.id}".lower() for w in words)
        ]
        families = [f for f in self.reader.families() if low in f.lower()]
        return {
            **found,
            "models": list({m["structure"]: m for m in models}.values())[:SOME],
            "families": families[:SOME],
            "platforms": platforms[:SOME],
            "builds": builds[:SOME],
            "most": SOME,
        }

    # ------------------------------------------------------------------ below

    def _placed(self, rows: list[Json]) -> list[Json]:
        """Measurements with the name of their platform."""
        platforms = self.reader.platforms()
        names = {key: platform["name"] for key, platform in platforms.items()}
        return [{**row, "platform_name": names.get(row["platform"], "")} for row in rows]

    def _recorded(self) -> list[Json]:
        """The newest builds that the database knows."""
        rows = self.reader.records(4 * MOST_BUILDS, "artifact_bytes")
        found: dict[str, Json] = {}
        for row in rows:
            if row["build"]:
                said = {"id": row["build"], "when": row["when"], "targets": []}
                held = found.setdefault(
                    row["build"], {**said, "name": str(row["extra"].get("model", ""))}
                )
                held["targets"].append(str(row["extra"].get("target", "")))
        return list(found.values())[:MOST_BUILDS]


def _busiest(platforms: Mapping[str, Json], counts: Mapping[str, Counts]) -> list[Json]:
    rows = [_counted(p, counts.get(key)) for key, p in platforms.items()]
    return sorted(rows, key=lambda p: -int(p["measurements"]))


def _counted(platform: Json, counts: Counts | None) -> Json:
    """A platform with its number of measurements and, about, what they say."""
    held = counts or Counts()
    return {
        **platform,
        "measurements": held.n,
        "about_median_ms": held.median_ms,
        "about_noise_p50": held.noise_at(0.5),
        "about_noise_p90": held.noise_at(0.9),
    }


def _after(text: str) -> tuple[float, int] | None:
    """Where a list of measurements goes on: "0.25 1234" -> (0.25, 1234)."""
    if not text:
        return None
    try:
        p50, id = text.split(" ")
        if 0 < int(id) < 2**63:
            return float(p50), int(id)
        raise ValueError
    except ValueError:
        raise AskedError(f"after={text[:40]!r} is not from a link of these pages") from None


def _next(path: str, asked: Mapping[str, str], rows: Sequence[Json]) -> str | None:
    """Where the list goes on, if there is more than a page of it."""
    if len(rows) <= MOST:
        return None
    last = rows[MOST - 1]
    return _link(path, asked, f"{last['p50_ms']!r} {last['id']}")


def _link(path: str, asked: Mapping[str, str], after: str) -> str:
    given = {name: value for name, value in asked.items() if value}
    return f"{path}?{urlencode({**given, 'after': after})}"
