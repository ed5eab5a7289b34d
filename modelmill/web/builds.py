"""The folders of builds, found by their report.json below the folders that were named.

A page asks for a build by an id that was found here, never by a path, so no address leads out of
these folders. What is read is data of others: a report that is not one is listed with the reason.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Json = dict[str, Any]
DEPTH = 4  # how far below a named folder is looked
FOLDERS = 5_000  # at most so many are looked into
FRESH_S = 5.0  # a listing is used so long
OWN = frozenset({"artifacts", "cache", "details"})  # parts of a build, which hold no other build
LARGEST = 16 * 2**20  # bytes of a report.json that is read
BROKEN = (
    KeyError, TypeError, ValueError, AttributeError, OSError, OverflowError, RecursionError,
)  # fmt: skip


@dataclass(frozen=True)
class Build:
    """One folder. facts: what the pages show of report.json, times in ms, scores as fractions."""

    id: str
    folder: Path
    facts: Json

    @property
    def has_page(self) -> bool:
        return self.page() is not None

    def page(self) -> Path | None:
        """Its report.html; None where there is none, or where it is a link to somewhere else."""
        path = (self.folder / "report.html").resolve()
        return path if path.is_file() and path.parent == self.folder else None


@dataclass(frozen=True)
class Found:
    """All builds, the newest first, and the reports that could not be read, with the reason."""

    builds: tuple[Build, ...]
    broken: tuple[tuple[str, str], ...]


class Builds:
    """Looks below `roots`; a folder that is there later is found later.

    Raises:
        ValueError: a root that is no folder.
    """

    def __init__(self, roots: Sequence[Path] = ()) -> None:
        for root in roots:
            if not root.is_dir():
                raise ValueError(
                    f"--builds {root}: no such folder; name one that holds the folders of builds, "
                    "as `modelmill build -o` makes them"
                )
        self.roots = tuple(root.resolve() for root in roots)
        self._found, self._until = Found((), ()), 0.0
        self._read: dict[tuple[str, int, int], Build | str] = {}
        self._lock = threading.Lock()

    def all(self) -> Found:
        """Every build there is now, or was a few seconds ago."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._found = self._look()
                self._until = time.monotonic() + FRESH_S
            return self._found

    def find(self, id: str) -> Build | None:
        """The build of this id."""
        return next((build for build in self.all().builds if build.id == id), None)

    def _look(self) -> Found:
        held: dict[tuple[str, int, int], Build | str] = {}
        for path in _reports(self.roots):
            try:
                state = path.stat()
            except OSError:  # gone since it was listed
                continue
            key = (str(path), state.st_mtime_ns, state.st_size)
            held[key] = self._read[key] if key in self._read else _read(path)
        self._read = held
        found = sorted(
            (b for b in held.values() if isinstance(b, Build)),
            key=lambda b: (b.facts["when"], b.id),
            reverse=True,
        )
        broken = [(Path(k[0]).parent.name, why) for k, why in held.items() if isinstance(why, str)]
        return Found(tuple(_distinct(found)), tuple(sorted(broken)))


def _reports(roots: Iterable[Path]) -> Iterator[Path]:
    """Paths of report.json; links to folders are not followed."""
    looked = 0
    for root in roots:
        for folder, below, files in os.walk(root):
            looked += 1
            if looked > FOLDERS:
                return
            if "report.json" in files:
                yield Path(folder, "report.json")
            deep = len(Path(folder).relative_to(root).parts)
            below[:] = sorted(n for n in below if n not in OWN and deep < DEPTH and n[:1] != ".")


def _distinct(builds: Iterable[Build]) -> Iterator[Build]:
    """A build that was run again elsewhere has the same id: the newest keeps it."""
    seen: set[str] = set()
    for build in builds:
        tail = hashlib.sha256(str(build.folder).encode()).hexdigest()[:6]
        id = build.id if build.id not in seen else f"{build.id}-{tail}"
        seen.add(id)
        yield Build(id, build.folder, {**build.facts, "id": id})


def _read(path: Path) -> Build | str:
    """The build whose report this is, or why there is none."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"larger than {LARGEST >> 20} MiB")
        data = path.read_bytes()
        when = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
        facts = _facts(json.loads(data))
    except BROKEN as error:
        return f"{type(error).__name__}: {error}"[:200]
    id = _named(path.with_name("manifest.json")) or hashlib.sha256(data).hexdigest()[:16]
    return Build(id, path.parent.resolve(), {"id": id, "when": when, **facts})


def _named(manifest: Path) -> str:
    """The id that the records of the build carry; empty where the manifest names none."""
    try:
        id = json.loads(manifest.read_bytes())["build"]
    except BROKEN:
        return ""
    return id if isinstance(id, str) and re.fullmatch(r"[0-9a-f]{8,64}", id) else ""


def _facts(report: Json) -> Json:
    """What the pages show; raises one of BROKEN where it is no report."""
    model = report["model"]
    return {
        "name": str(model["name"]),
        "fingerprint": str(model["fingerprint"]),
        "macs": _number(model.get("macs")),
        "params": _number(model.get("params")),
        "task": str(report["task"]),
        "metric": str(report["metric"]),
        "float": _finite(report["float"]["score"]),
        "images": int(report["float"]["n"]),
        "accepted": bool(report["accepted"]),
        "deployments": [_deployment(d) for d in report["deployments"]],
        "findings": [
            {part: str(f[part]) for part in ("what", "where", "why", "next")}
            for f in report["findings"]
        ],
    }


def _deployment(held: Json) -> Json:
    score, latency = held.get("score") or {}, held.get("latency_ms") or {}
    reference, speedup = held.get("float_latency_ms") or {}, held.get("speedup") or {}
    failed = held.get("failed")
    return {
        "target": str(held["target"]),
        "runtime": str(held["runtime"]),
        "version": str(held["version"]),
        "precision": str(held["precision"]),
        "bytes": _number(held.get("bytes")),
        "deployed": _number(score.get("deployed")),
        "simulated": _number(score.get("simulated")),
        "p50_ms": _number(latency.get("p50")),
        "float_p50_ms": _number(reference.get("p50")),
        "speedup": _number(speedup.get("ratio")),
        "verdict": str(speedup.get("verdict", "")),
        "failed": None if failed is None else str(failed),
    }


def _number(value: object) -> float | None:
    return None if value is None else _finite(value)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number
