"""How long `import modelmill` and `modelmill --help` take.

    python benchmarks/startup.py [--runs 20] [--write]

Each run is a fresh interpreter; an empty one takes turns with them, so that the cost of Python
itself can be seen in the same run. Medians. Exit code 1: over 0.1 s for the import (above the empty
interpreter) or over 0.3 s for the help (all in all).
"""

import argparse
import statistics
import subprocess
import sys
import time

from provenance import passed, publish, table

HELP = "from modelmill.cli.main import main; main(['--help'], prog_name='modelmill')"
PROGRAMS = {
    "python, nothing": "pass",
    "import modelmill": "import modelmill",
    "modelmill --help": HELP,
}
IMPORT_S, HELP_S = 0.1, 0.3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="keep the table in docs/benchmarks")
    asked = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for run in range(asked.runs + 1):
        for name, program in PROGRAMS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, check=True)
            if run:  # the first one warms the file cache
                seconds[name].append(time.perf_counter() - start)
    empty, imported, helped = (statistics.median(times) for times in seconds.values())
    rows = [
        (name, f"{statistics.median(t):.3f}", f"{min(t):.3f} .. {max(t):.3f}")
        for name, t in seconds.items()
    ]
    quick_import, quick_help = imported - empty <= IMPORT_S, helped <= HELP_S
    body = "\n".join(
        [
            table(("program", "median s", "range s"), rows),
            "",
            f"- import modelmill adds {imported - empty:.3f} s, at most {IMPORT_S:g}: "
            f"{passed(quick_import)}",
            f"- modelmill --help takes {helped:.3f} s, at most {HELP_S:g}: {passed(quick_help)}",
        ]
    )
    publish(__file__, "Start-up", body, asked.write)
    return 0 if quick_import and quick_help else 1


if __name__ == "__main__":
    sys.exit(main())
