"""Where a number comes from: machine, versions, commit; and how a benchmark prints and keeps it.

python benchmarks/provenance.py        # only says what it would put above a table
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import modelmill
from modelmill.records.machine import this_machine

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "nncf")


def data_folder() -> Path:
    """The folder with real models and images; ends the program with a clear word without one."""
    folder = Path(os.environ.get("MODELMILL_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        sys.exit(f"no data: {folder} is absent; set MODELMILL_DATA to the folder with the models")
    return folder


def machine() -> str:
    """Processor, its best 8-bit instructions, cores, memory, system."""
    m = this_machine()
    return f"{m.cpu} ({m.isa}), {m.cores} cores, {m.memory_mib:,} MiB, {m.os}, Python {m.python}"


def versions() -> str:
    """Modelmill with its commit, and the packages that are installed."""
    found = [f"modelmill {modelmill.__version__} ({_commit()})"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def publish(script: str, title: str, body: str, write: bool) -> None:
    """Print a result under its provenance; with `write` also keep it in docs/benchmarks."""
    name = Path(script).name
    command = " ".join(["python", f"benchmarks/{name}", *sys.argv[1:]])
    text = "\n".join(
        [
            f"# {title}",
            "",
            f"- command: `{command}`",
            f"- machine: {machine()}",
            f"- versions: {versions()}",
            f"- when: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "",
            body,
            "",
        ]
    )
    print(text)
    if write:
        folder = ROOT / "docs" / "benchmarks"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / Path(name).with_suffix(".md").name
        path.write_text(text, encoding="utf-8")
        print(f"written to {path.relative_to(ROOT)}", file=sys.stderr)


def passed(fine: bool) -> str:
    """The word of a verdict."""
    return "pass" if fine else "FAIL"


def _commit() -> str:
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        state = subprocess.run(
            [*git, "status", "--porcelain", "--", "modelmill"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "no commit"
    return "commit " + head.stdout.strip() + (", changed" if state.stdout else "")


if __name__ == "__main__":
    print(machine(), versions(), sep="\n")
