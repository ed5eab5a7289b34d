"""The file that an engine opens: the ONNX file itself, or what its converter makes of it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from modelmill.line.job import FLOAT_ARTIFACT, Job
from modelmill.line.store import Json, file_hash
from modelmill.runtimes import convert, find_platform, load_runtime


def float_file(job: Job, runtime: str) -> Path:
    """The file of the float model for `runtime`.

    Raises:
        DeploymentError: see `engine_file`.
    """
    return engine_file(job, runtime, job.store.path(FLOAT_ARTIFACT))[0]


def engine_file(job: Job, runtime: str, source: Path) -> tuple[Path, float]:
    """The file for `runtime` of an ONNX artifact of this build, and the seconds its making took.

    Raises:
        DeploymentError: the engine is missing, or its converter refused, crashed or hung.
    """
    platform = find_platform(runtime)
    suffix = load_runtime(platform.runtime).suffix
    if suffix == ".onnx":
        return source, 0.0
    stem = source.stem
    if source == job.store.path(FLOAT_ARTIFACT):  # one for each engine, which no target's name says
        stem = f"float-{Path(runtime).stem if runtime.endswith('.py') else runtime}"
    name = f"{stem}{suffix}"

    def compute() -> tuple[Json, dict[str, bytes]]:
        start = time.perf_counter()
        with (
            tempfile.TemporaryDirectory(prefix="modelmill-") as folder,
            job.show.step(f"convert {source.name} for {runtime}"),
        ):
            options = job.session(job.threads, job.source.batch)
            convert(runtime, source, Path(folder) / name, options)
            made = {f"artifacts/{f.name}": f.read_bytes() for f in sorted(Path(folder).iterdir())}
        return {"file": name, "seconds": round(time.perf_counter() - start, 3)}, made

    inputs = {"source": file_hash(source), "runtime": runtime, "version": platform.version}
    held = job.store.step(f"convert-{name}", {**job.key, **inputs}, compute)
    return job.store.path(f"artifacts/{held['file']}"), float(held["seconds"])


def size(path: Path) -> int:
    """Bytes of an engine's file with those beside it that share its stem; not of its QDQ source."""
    stem = path.name.removesuffix(path.suffix)
    parts = [p for p in path.parent.iterdir() if p.name.rpartition(".")[0] == stem]
    kept = [p for p in parts if p == path or p.suffix != ".onnx"]
    return sum(p.stat().st_size for p in kept)
