"""How long questions to the latency database take when it holds a million measurements.

python benchmarks/latency_db.py                                  # fills a file, asks, removes it
python benchmarks/latency_db.py --db postgresql://me@host/empty  # in an empty database of yours
python benchmarks/latency_db.py --write                          # keeps it in docs/benchmarks

The rows are made up: models x 16 platforms, each with 20 samples. The first are stored through the
calls that measurements are stored through, which is timed; the others are put in as plain rows.
Every question opens a connection, as it does everywhere.
"""

import argparse
import hashlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import provenance

from modelmill.records import Database, Latencies, Measurement, Platform

GOAL_MS = 10.0  # "in milliseconds"
PAGE = 16_000
PLATFORMS = [
    Platform(target, "1.0", "a processor", "avx2", threads, precision)
    for target in ("ort_cpu", "openvino_cpu", "mnn", "ncnn")
    for precision in ("float", "w8a8")
    for threads in (1, 2)
]
CODE = """
import time; start = time.perf_counter()
import sys
from modelmill.records import Database, Latencies
there = Latencies(Database(sys.argv[1], read_only=True))
found = there.find(sys.argv[2], there.platforms("ort_cpu", "w8a8", 1))
assert len(found) == 1
print((time.perf_counter() - start) * 1000)
"""


def structure(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def measurements(first: int, models: int) -> Iterator[Measurement]:
    """Measurements of some models on all platforms."""
    random = np.random.default_rng(first)
    for number in range(first, first + models):
        for platform in PLATFORMS:
            samples = np.sort(np.rint(random.lognormal(0, 0.1, 20) * 1e6) / 1e6)
            yield Measurement(
                model=structure(number),
                platform=platform,
                p50_ms=float(samples[9]),
                p90_ms=float(samples[17]),
                p99_ms=float(samples[19]),
                n=20,
                noise=0.01,
                when="2026-01-01T00:00:00+00:00",
                machine="made up",
                samples_ms=(tuple(samples.tolist()),),
            )


def fill(there: Latencies, rows: int) -> float:
    """Store the rows; measurements a second through the usual calls."""
    models = rows // len(PLATFORMS)
    usual = min(models, PAGE // len(PLATFORMS))
    start = time.perf_counter()
    there.add(measurements(0, usual))
    speed = usual * len(PLATFORMS) / (time.perf_counter() - start)
    database = there.database
    table = database.tables["modelmill_measurements"]
    with database.reading() as connection:
        sample = dict(connection.execute(table.select().limit(1)).mappings().one())
    del sample["id"]
    for first in range(usual, models, PAGE):
        numbers = range(first, min(first + PAGE, models))
        with database.writing() as connection:
            connection.execute(
                table.insert(),
                [
                    {**sample, "model": model, "platform": p.key, "key": model[:16] + p.key}
                    for model in map(structure, numbers)
                    for p in PLATFORMS
                ],
            )
        print(f"\r{numbers[-1] + 1:,} of {models:,} models", end="", file=sys.stderr)
    print(file=sys.stderr)
    return speed


def timed(ask: Callable[[int], object], times: int) -> tuple[float, float, float]:
    """Of a question about random models: median and 99th percentile in ms, and the median of the
    processor time, which others on the machine do not lengthen as much.
    """
    spent, worked = [], []
    for number in np.random.default_rng(1).integers(0, 2**31, times):
        start, busy = time.perf_counter(), time.process_time()
        ask(int(number))
        worked.append((time.process_time() - busy) * 1000)
        spent.append((time.perf_counter() - start) * 1000)
    return statistics.median(spent), float(np.percentile(spent, 99)), statistics.median(worked)


def ask_all(location: str, there: Latencies, models: int) -> tuple[list[list[object]], bool]:
    one = there.platforms("ort_cpu", "w8a8", threads=1)
    assert len(one) == 1
    questions: dict[str, tuple[Callable[[int], object], int, int]] = {
        "a model on one platform": (lambda n: there.find(structure(n % models), one), 300, 1),
        "a model on all platforms": (lambda n: there.find(structure(n % models)), 300, 16),
        "a model that was never measured": (lambda n: there.find(structure(-1 - n), one), 300, 0),
        "what platforms there are": (lambda n: there.platforms(), 30, len(PLATFORMS)),
        "all of a platform, for training": (lambda n: there.rows(one), 3, models),
    }
    rows: list[list[object]] = []
    fine = True
    for name, (ask, times, expected) in questions.items():
        assert len(ask(7)) == expected, name  # type: ignore[arg-type]
        median, slow, worked = timed(ask, times)
        goal = GOAL_MS if expected <= 1 else None
        fine &= goal is None or median <= goal
        verdict = provenance.passed(median <= goal) if goal else ""
        shown = [f"{median:,.2f}", f"{slow:,.2f}", f"{worked:,.2f}"]
        rows.append([name, f"{expected:,}", *shown, goal or "", verdict])
    if "://" not in location:
        command = [sys.executable, "-c", CODE, location, structure(5)]
        runs = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                for _ in range(5)]  # fmt: skip
        shown = [f"{statistics.median(runs):,.0f}", f"{max(runs):,.0f}", ""]
        rows.append(["the first, in a new process, imports included", 1, *shown, "", ""])
    return rows, fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--db", help="URL of an empty database; default: a temporary file")
    parser.add_argument("--write", action="store_true", help="keep it in docs/benchmarks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        location = options.db or str(Path(folder) / "million.db")
        there = Latencies(Database(location))
        if there.count():
            sys.exit(f"{there.database.location} is not empty")
        speed = fill(there, options.rows)
        rows, fine = ask_all(location, there, options.rows // len(PLATFORMS))
        size = "" if options.db else f", {Path(location).stat().st_size / 2**20:,.0f} MiB"
        kind = "PostgreSQL" if options.db else "SQLite"
    columns = [
        "question",
        "rows in the answer",
        "median ms",
        "p99 ms",
        "processor ms",
        "at most ms",
        "",
    ]
    body = (
        f"{kind}, {options.rows:,} measurements of {options.rows // len(PLATFORMS):,} models"
        f"{size}; {speed:,.0f} are stored in a second, in pages of {PAGE:,}\n\n"
        + provenance.table(columns, rows)
    )
    provenance.publish(__file__, "The latency database at a million rows", body, options.write)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
