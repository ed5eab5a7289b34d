"""A run of measurements, by one process or by several that share the models among them.

Each process is bound to one processor, with its engines, and takes every n-th model. All write to
the same database, so a process that dies costs what it had not stored yet.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from modelmill import ir
from modelmill.line.latency_measure import (
    Asked,
    Done,
    Repeat,
    Subject,
    measure_all,
    platform_of,
)
from modelmill.records import Database, Latencies
from modelmill.runtimes import SessionOptions


@dataclass(frozen=True)
class Job:
    """What is to be measured, and where it is kept. workers: processes, one per core at most."""

    subjects: tuple[Subject, ...]
    platforms: tuple[tuple[str, str], ...]
    location: str
    options: SessionOptions
    again: bool = False
    noisier: float = -1.0
    workers: int = 1

    def __post_init__(self) -> None:
        cores = len(_cpus())
        if self.workers * self.options.threads > cores:
            raise ValueError(
                f"--workers {self.workers} with {self.options.threads} thread(s) each need more "
                f"than the {cores} cores there are: they would measure one another"
            )

    def dry_run(self) -> list[dict[str, Any]]:
        """Per platform: how many models, and how many of them the database has."""
        latencies = Latencies(Database(self.location))
        structures = [ir.structure(subject.open()) for subject in self.subjects]
        rows = []
        for pair in self.platforms:
            platform = platform_of(*pair, self.options)
            there = {row.structure for row in latencies.rows([platform])}
            found = sum(s in there for s in structures)
            rows.append({"platform": platform.name, "models": len(structures), "there": found})
        return rows


def run(job: Job) -> Iterator[tuple[int, Done | None]]:
    """Measure; (how many of all measurements are behind us, what came of one), None for a model
    that was skipped.

    Raises:
        ValueError: a model, a target or the database cannot be used.
    """
    if job.workers == 1:
        yield from _share(job, 0)
        return
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=_child, args=(job, index, results), daemon=False)
        for index in range(job.workers)
    ]
    for process in processes:
        process.start()
    behind = [0] * job.workers
    running, died = set(range(job.workers)), set[int]()
    try:
        while running:
            try:
                index, count, content = results.get(timeout=1.0)
            except queue.Empty:
                gone = {i for i in running if not processes[i].is_alive()}
                if gone and results.empty():
                    running, died = running - gone, died | gone
                continue
            if isinstance(content, str):
                raise ValueError(content)
            if count is None:
                running.discard(index)
                continue
            behind[index] = count
            yield sum(behind), content
        if died:
            codes = ", ".join(str(processes[i].exitcode) for i in sorted(died))
            raise ValueError(
                f"{len(died)} of {job.workers} processes ended early (exit code {codes}); what "
                "they measured is stored, and the same command goes on from there"
            )
    finally:
        for process in processes:
            if running:
                process.terminate()
            process.join()


def _child(job: Job, index: int, results: Any) -> None:
    try:
        for count, done in _share(job, index):
            results.put((index, count, done))
        results.put((index, None, None))
    except ValueError as error:
        results.put((index, 0, str(error)))


def _share(job: Job, index: int) -> Iterator[tuple[int, Done | None]]:
    """The part of process `index`."""
    import torch

    cpus = _cpus()
    mine = cpus[len(cpus) - 1 - index * job.options.threads :: -1][: job.options.threads]
    torch.set_num_threads(1)  # ranges are observed while nothing is timed, on the same core
    options = replace(job.options, cpus=tuple(sorted(mine)))
    asked = Asked(job.platforms, job.again, job.noisier, options)
    share, size = job.subjects[index :: job.workers], len(job.platforms)
    latencies = Latencies(Database(job.location))
    for number, one in measure_all(share, asked, latencies):
        yield number * size, one


def _cpus() -> list[int]:
    """Processors of this process; numbers alone where the system does not bind."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


# ---------------------------------------------------------------- results


def summary(done: Sequence[Done]) -> list[dict[str, Any]]:
    """Per platform and family: numbers of measurements and failures, spread of the p50 in ms,
    median noise, mean seconds.
    """
    groups: dict[tuple[str, str], list[Done]] = {}
    for one in done:
        groups.setdefault((one.platform.name, one.subject.family), []).append(one)
    rows = []
    for (platform, family), members in sorted(groups.items()):
        made = [d.measurement for d in members if d.measurement is not None]
        p50 = [m.p50_ms for m in made] or [0.0]
        rows.append(
            {
                "platform": platform,
                "family": family,
                "n": len(made),
                "failed": len(members) - len(made),
                "min_ms": min(p50),
                "median_ms": float(np.median(p50)),
                "max_ms": max(p50),
                "noise": float(np.median([m.noise for m in made] or [0.0])),
                "seconds": float(np.mean([d.seconds for d in members])),
            }
        )
    return rows


def to_json(done: Sequence[Done], repeat: Repeat | None) -> dict[str, Any]:
    """Everything, without the raw samples, which are in the database."""
    rows = []
    for one in done:
        row: dict[str, Any] = {
            "model": one.subject.name,
            "family": one.subject.family,
            "platform": asdict(one.platform),
            "seconds": one.seconds,
            "failed": one.failed or None,
        }
        if one.measurement is not None:
            facts = asdict(replace(one.measurement, samples_ms=()))
            row |= {k: facts[k] for k in ("model", "p50_ms", "p90_ms", "p99_ms", "n", "noise")}
            row |= {"structure": facts["model"], "model": one.subject.name}
            row |= {"reference_ms": facts["reference_ms"], "extra": dict(one.measurement.extra)}
        rows.append(row)
    return {"measurements": rows, "again": asdict(repeat) if repeat is not None else None}
