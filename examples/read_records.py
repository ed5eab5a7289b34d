"""Every number that a build measured is a record; read them back and put two side by side.

modelmill demo && python examples/read_records.py [FOLDER]
"""

import sys
from pathlib import Path

from modelmill.records.database import Database


def main(folder: Path) -> None:
    records = Database(folder / "records.db").query()
    print(f"{len(records)} records:", *sorted({r.what for r in records}))
    for r in records:
        if r.what == "latency_p50_ms":
            where = f"{r.where.engine} {r.where.version}, {r.where.threads} thread, {r.where.isa}"
            print(f"{r.value:.3f} {r.unit}, median of {r.n}: {r.extra['target']} on {where}")
    fastest = min((r for r in records if r.what == "latency_p50_ms"), key=lambda r: r.value)
    print("fastest:", fastest.extra["target"])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-build"))
