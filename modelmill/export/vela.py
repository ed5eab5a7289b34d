"""Arm's Vela, run for real on a LiteRT file: what an Ethos-U makes of it.

Vela is the compiler for the Ethos-U NPUs and needs no chip. It decides operator by operator what
the NPU runs and what is left to the CPU beside it, and estimates cycles and memory for a system
and a memory mode of its configuration file. It runs in a process of its own; its summary (CSV) and
its words are read. https://pypi.org/project/ethos-u-vela
"""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelmill import ir
from modelmill.export import litert
from modelmill.ir import Plan

PIP = 'pip install "ethos-u-vela>=5.2,<6"'
ACCELERATORS = ("ethos-u55-128", "ethos-u65-256", "ethos-u85-256")
TIMEOUT_S = 300.0

_REFUSED = re.compile(
    r"Warning \(supported operators\) operator: (?P<op>\S+), ofm: '(?P<tensor>[^']*)'\s*\n"
    r"Reason: (?P<reason>[^\n]*)"
)


@dataclass(frozen=True)
class CpuOperator:
    """An operator of the file that the NPU does not take: its kind, the tensor it writes, why."""

    op: str
    tensor: str
    reason: str


@dataclass(frozen=True)
class VelaReport:
    """What Vela says of one file on one accelerator. Cycles, time and memory are its estimates.

    system, memory_mode: of Vela's configuration. clock_mhz: of the NPU. cycles: of one inference,
    memory included; npu_cycles: of its multipliers alone. sram_kib, dram_kib, flash_kib: peak use.
    macs: multiply-accumulates after Vela's padding. npu_operators, cpu_operators: how many.
    cpu: those left to the CPU, with the reason.
    """

    accelerator: str
    version: str
    system: str
    memory_mode: str
    clock_mhz: float
    cycles: int
    npu_cycles: int
    inference_ms: float
    sram_kib: float
    dram_kib: float
    flash_kib: float
    macs: int
    npu_operators: int
    cpu_operators: int
    cpu: tuple[CpuOperator, ...]


def missing() -> str | None:
    """The line that installs Vela, or None if it is there."""
    return None if importlib.util.find_spec("ethosu") else PIP


def compile_with_vela(
    path: str | Path,
    accelerator: str = ACCELERATORS[0],
    out: str | Path | None = None,
    timeout_s: float = TIMEOUT_S,
) -> VelaReport:
    """Compile a .tflite file; `out` is where the compiled file goes, if it is wanted.

    Raises:
        ValueError: Vela is not installed (the text holds the pip line).
        RuntimeError: Vela refused, crashed or took too long; the text holds its last words.
    """
    line = missing()
    if line is not None:
        raise ValueError(f"Vela is not installed; run: {line}")
    with tempfile.TemporaryDirectory() as folder:
        words = _run(Path(path), accelerator, folder, timeout_s)
        tables = list(Path(folder).glob("*_summary_*.csv"))
        compiled = list(Path(folder).glob("*_vela.tflite"))
        if not tables or not compiled:
            raise RuntimeError(f"Vela compiled nothing of {path}: {_last(words)}")
        with tables[0].open(newline="") as table:
            row = next(csv.DictReader(table))
        if out is not None:
            Path(out).write_bytes(compiled[0].read_bytes())
    return _report(accelerator, row, words)


def export(graph: ir.Graph, plan: Plan) -> dict[str, bytes]:
    """The LiteRT file, and Vela's report on each of ACCELERATORS as JSON: {suffix: bytes}.

    Where Vela is not installed the report says so, with the line that installs it.
    """
    files = litert.export(graph, plan)
    line = missing()
    if line is not None:
        return {**files, ".vela.json": json.dumps({"missing": line}).encode()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(files[".tflite"])
        found = [asdict(compile_with_vela(path, name)) for name in ACCELERATORS]
    return {**files, ".vela.json": json.dumps({"reports": found}, indent=1).encode()}


def _run(path: Path, accelerator: str, folder: str, timeout_s: float) -> str:
    command = [
        sys.executable, "-m", "ethosu.vela", str(path), "--accelerator-config", accelerator,
        "--output-dir", folder,
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, cwd=folder, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"Vela did not compile {path} within {timeout_s:g} s") from error
    words = done.stdout + done.stderr
    if done.returncode:
        raise RuntimeError(
            f"Vela refused {path} for {accelerator} (exit code {done.returncode}): {_last(words)}"
        )
    return words


def _last(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return " | ".join(lines[-4:]) or "it said nothing"


def _report(accelerator: str, row: dict[str, Any], words: str) -> VelaReport:
    from importlib.metadata import version

    refused = [match.groupdict() for match in _REFUSED.finditer(words)]
    return VelaReport(
        accelerator=accelerator,
        version=version("ethos-u-vela"),
        system=row["system_config"],
        memory_mode=row["memory_mode"],
        clock_mhz=float(row["core_clock"]) / 1e6,
        cycles=int(float(row["cycles_total"])),
        npu_cycles=int(float(row["cycles_npu"])),
        inference_ms=float(row["inference_time"]) * 1e3,
        sram_kib=float(row["sram_memory_used"]),
        dram_kib=float(row["dram_memory_used"]),
        flash_kib=sum(float(row[f"{place}_chip_flash_memory_used"]) for place in ("on", "off")),
        macs=int(float(row["nn_macs"])),
        npu_operators=_count(words, "NPU"),
        cpu_operators=_count(words, "CPU"),
        cpu=tuple(CpuOperator(**fields) for fields in refused),
    )


def _count(words: str, where: str) -> int:
    found = re.search(rf"{where} operators = (\d+)", words)
    return int(found[1]) if found else 0


PLUGIN = export
