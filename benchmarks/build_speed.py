"""Is a build slower than it was? Wall seconds of `modelmill build` from two checkouts, in turns.

    git worktree add ../before COMMIT
    python benchmarks/build_speed.py ../before . [--model resnet20_cifar10] [--repeats 5]
                                     [--limit 1000] [--write]

Both run w8a8 for ort_cpu in this Python environment, each from its own folder, with the same
images; the order changes from repeat to repeat. Exit code 1: the median of the ratios, one per
repeat, is over 1.05.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from build_all import PROGRAM, SOURCES
from provenance import data_folder, passed, publish, table

SLACK = 1.05  # two builds of one checkout differ by so much


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", nargs="*", type=Path, metavar="BEFORE AFTER")
    parser.add_argument("--model", choices=SOURCES, default="resnet20_cifar10")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=int, default=1000, help="images to score")
    parser.add_argument("--write", action="store_true", help="keep the table in docs/benchmarks")
    asked = parser.parse_args()
    if not asked.checkouts:
        print("Left out: give two checkouts to compare, BEFORE and AFTER.", file=sys.stderr)
        return 0
    if len(asked.checkouts) != 2:
        parser.error("give two checkouts, BEFORE and AFTER")
    before, after = (path.resolve() for path in asked.checkouts)
    commits = {path: commit(path) for path in (before, after)}
    seconds: dict[Path, list[float]] = {before: [], after: []}
    for repeat in range(asked.repeats):
        for path in (before, after) if repeat % 2 == 0 else (after, before):
            seconds[path].append(built_in(path, asked.model, asked.limit))
    ratios = [new / old for old, new in zip(seconds[before], seconds[after], strict=True)]
    rows = [
        (side, commits[path], f"{statistics.median(s):.2f}", f"{min(s):.2f} .. {max(s):.2f}")
        for side, (path, s) in zip(("before", "after"), seconds.items(), strict=True)
    ]
    ratio = statistics.median(ratios)
    body = "\n".join(
        [
            f"{asked.model}, w8a8, ort_cpu, {asked.limit} images scored, {asked.repeats} repeats "
            "in turns; the whole command.",
            "",
            table(("side", "commit", "median s", "range s"), rows),
            "",
            f"- after / before: {ratio:.3f} ({min(ratios):.3f} .. {max(ratios):.3f}); at most "
            f"{SLACK:g}: {passed(ratio <= SLACK)}",
        ]
    )
    publish(__file__, "Seconds of a build, before and after", body, asked.write)
    return 0 if ratio <= SLACK else 1


def commit(path: Path) -> str:
    """The checkout's commit.

    Raises:
        SystemExit: it is no checkout, or this interpreter takes the package from elsewhere.
    """
    asked = [sys.executable, "-c", "import modelmill; print(modelmill.__file__)"]
    done = subprocess.run(asked, cwd=path, env=environment(path), capture_output=True, text=True)
    if not Path(done.stdout.strip() or "/").is_relative_to(path):
        sys.exit(f"{path}: not a checkout of modelmill (it would be {done.stdout.strip()!r})")
    git = ["git", "-C", str(path)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", "modelmill"], capture_output=True, text=True
    )
    return (head.stdout.strip() or "no commit") + (", changed" if changed.stdout else "")


def environment(path: Path) -> dict[str, str]:
    """Processes started inside import the package from the checkout."""
    return os.environ | {"PYTHONPATH": str(path)}


def built_in(path: Path, model: str, limit: int) -> float:
    """Wall seconds of one build by the checkout."""
    data = data_folder()
    images, calibration = SOURCES[model]
    command = [sys.executable, "-c", PROGRAM, "build", str(data / "models" / f"{model}.onnx")]
    command += ["-d", str(data / images), "--calib", str(data / calibration), "-t", "ort_cpu"]
    command += ["--format", "json", "--limit", str(limit)]
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        done = subprocess.run(
            [*command, "-o", out],
            cwd=path,
            env=environment(path),
            stdout=subprocess.DEVNULL,
            check=False,
        )
        wall = time.perf_counter() - start
    if done.returncode not in (0, 1):
        sys.exit(f"{path}: the build ended with exit code {done.returncode}")
    return wall


if __name__ == "__main__":
    sys.exit(main())
