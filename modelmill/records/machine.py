"""What this computer is: the facts a measured number depends on, read once.

The instruction set decides more than the clock does: without VNNI (x86) or the dot product
extension (Arm) an 8-bit multiplication goes through 16-bit sums, which is slower and, in some
kernels, saturates. The flags are those that the kernel lists in /proc/cpuinfo, under `flags` on x86
and `Features` on Arm; where there is no such file they are empty, and every question about them is
answered "no", which is the careful answer.
"""

import os
import platform
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})
# Best first: the flag that decides which 8-bit kernels an engine takes, and the name we record for
# it.
_LADDER = (
    ("avx512_vnni", "avx512_vnni"),
    ("avx_vnni", "avx_vnni"),
    ("avx512bw", "avx512"),
    ("avx2", "avx2"),
    ("sse4_1", "sse4_1"),
    ("i8mm", "arm_i8mm"),
    ("asimddp", "arm_dotprod"),
    ("asimd", "arm_neon"),
)


@dataclass(frozen=True)
class Machine:
    """A computer that measures. `memory_mib` is 0 where the system does not tell."""

    cpu: str
    flags: tuple[str, ...]
    cores: int
    memory_mib: int
    os: str
    python: str
    arch: str

    @property
    def isa(self) -> str:
        """The best instruction set for 8-bit arithmetic among `flags`, or "unknown"."""
        return next((name for flag, name in _LADDER if flag in self.flags), "unknown")


def has_vnni(flags: Collection[str]) -> bool:
    """Whether x86 `flags` hold an instruction that multiplies u8 by s8 into exact 32-bit sums."""
    return not _VNNI.isdisjoint(flags)


@cache
def this_machine() -> Machine:
    """The computer this process runs on."""
    name, flags = read_cpuinfo(_CPUINFO.read_text(errors="replace") if _CPUINFO.exists() else "")
    return Machine(
        cpu=name or platform.processor() or platform.machine() or "unknown",
        flags=flags,
        cores=os.cpu_count() or 1,
        memory_mib=_memory_mib(),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        arch=platform.machine(),
    )


def read_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """(name, sorted flags) of the first processor in the text of /proc/cpuinfo.

    "" and () stand for what is not there.
    """
    facts: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    # Arm kernels often name no model, only who made the core and its part number.
    part = " ".join(facts[k] for k in ("CPU implementer", "CPU part") if k in facts)
    name = facts.get("model name") or facts.get("Hardware") or (f"Arm {part}" if part else "")
    flags = facts.get("flags") or facts.get("Features") or ""
    return name, tuple(sorted(set(flags.split())))


def _memory_mib() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (AttributeError, ValueError, OSError):
        return 0
