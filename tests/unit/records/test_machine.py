"""Reading /proc/cpuinfo as kernels of several processors write it."""

import os
import platform
import sys

import pytest

from modelmill.records import Machine, has_vnni, this_machine
from modelmill.records.machine import read_cpuinfo

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Some Xeon
flags\t\t: fpu sse4_1 avx2 avx512bw avx512_vnni fpu
processor\t: 1
model name\t: Another
flags\t\t: fpu
"""
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd asimddp i8mm
CPU implementer\t: 0x41
CPU part\t: 0xd0c
"""


def test_x86():
    assert read_cpuinfo(X86) == ("Some Xeon", ("avx2", "avx512_vnni", "avx512bw", "fpu", "sse4_1"))


def test_arm_has_no_model_name():
    assert read_cpuinfo(ARM) == ("Arm 0x41 0xd0c", ("asimd", "asimddp", "fp", "i8mm"))


def test_elsewhere():
    assert read_cpuinfo("") == ("", ())


@pytest.mark.parametrize(
    ("flags", "vnni", "isa"),
    [
        (("avx2", "avx512_vnni", "avx512bw"), True, "avx512_vnni"),
        (("avx2", "avx_vnni"), True, "avx_vnni"),
        (("avx2", "avx512bw"), False, "avx512"),
        (("avx2", "sse4_1"), False, "avx2"),
        (("asimd", "asimddp"), False, "arm_dotprod"),
        ((), False, "unknown"),
    ],
)
def test_instruction_sets(flags, vnni, isa):
    assert has_vnni(flags) is vnni
    assert Machine("", flags, 1, 0, "", "", "").isa == isa


def test_this_machine():
    here = this_machine()
    assert here is this_machine()
    assert here.cpu and here.cores == os.cpu_count() and here.memory_mib > 100
    assert here.python == platform.python_version() and here.os.startswith(platform.system())
    assert list(here.flags) == sorted(set(here.flags))
    if sys.platform == "linux":
        assert here.flags
