"""Options that mean the same in every command."""

import re
from collections.abc import Callable
from pathlib import Path

import click

from modelmill import plugins

EXAMPLE = "\b\nExample (after `modelmill demo`):\n  "
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def _complete(package: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Shell completion by the names of the plug-ins of a package."""
    return lambda ctx, param, start: [n for n in plugins.names(package) if n.startswith(start)]


card = click.option(
    "--card",
    type=click.Path(path_type=Path),
    help="How the model is fed and read (JSON). Default: MODEL with suffix .json.",
)
data = click.option(
    "-d",
    "--data",
    required=True,
    help="Labelled images: a folder or zip of classes, images/ with labels.csv or "
    "instances.json, or an .npz with x and y.",
)
targets = click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    metavar="TARGET",
    shell_complete=_complete("modelmill.targets"),
    help="ort_cpu, openvino_cpu, or a .py file with a target; may be repeated.",
)
runtimes = click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="ENGINE",
    shell_complete=_complete("modelmill.runtimes"),
    help="An engine in place of a target: onnxruntime, openvino, or a .py file with an adapter.",
)
limit = click.option("--limit", type=int, help="Score at most so many images, drawn by --seed.")
precision = click.option(
    "--precision", default="w8a8", show_default=True, help="Bits of weights and activations."
)
first_last_bits = click.option(
    "--first-last-bits",
    type=int,
    default=8,
    show_default=True,
    help="Bits of the first and last layers where the others have fewer; 0: as the others.",
)
seed = click.option("--seed", type=int, default=0, show_default=True, help="Of every draw.")
cpu_flags = click.option(
    "--cpu-flags",
    help="Instruction set of the machine that will run it, if not this one: 'avx2,fma,...' or a "
    "copy of its /proc/cpuinfo.",
)
keep_float = click.option(
    "--keep-float",
    multiple=True,
    metavar="NODE",
    help="Name of a node that is to stay in float, see `modelmill check --all`; repeatable.",
)
threads = click.option("--threads", type=int, help="Of the engine. Default: all cores.")
timeout = click.option(
    "--timeout",
    type=float,
    default=300.0,
    show_default=True,
    help="Seconds that one request to an engine may take.",
)
database = click.option(
    "--db",
    envvar="MODELMILL_DB",
    metavar="DATABASE",
    help="Path of an SQLite file, or postgresql://USER@HOST/NAME. Default: $MODELMILL_DB, or a "
    "file in your data folder.",
)
form = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="What to print on standard output.",
)


def parse_flags(text: str | None) -> tuple[str, ...] | None:
    """`--cpu-flags` as a tuple; None where it was not given.

    Raises:
        ValueError: neither a list of flags nor a file in the format of /proc/cpuinfo.
    """
    if text is None:
        return None
    if Path(text).is_file():
        from modelmill.records.machine import read_cpuinfo

        flags = read_cpuinfo(Path(text).read_text(errors="replace"))[1]
        if not flags:
            raise ValueError(
                f"--cpu-flags {text}: no line 'flags' or 'Features' in it; copy /proc/cpuinfo of "
                "the machine, or list its flags: avx2,fma"
            )
        return flags
    flags = tuple(flag for flag in re.split(r"[,\s]+", text.strip()) if flag)
    wrong = [flag for flag in flags if not re.fullmatch(r"[a-z0-9_.]+", flag)]
    if wrong or not flags:
        raise ValueError(
            f"--cpu-flags {text!r}: no such file, and {wrong[0] if wrong else 'nothing'!r} is no "
            "CPU flag; write them as in /proc/cpuinfo: avx2,fma,avx512_vnni"
        )
    return flags


def parse_memory(text: str) -> int:
    """`--memory` in bytes: "2GiB" -> 2147483648; a number alone is bytes.

    Raises:
        ValueError: not a number with a unit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in UNITS:
        raise ValueError(
            f"--memory {text!r} is no amount of memory; write a number and its unit, KiB, MiB, "
            "GiB, kB, MB or GB, for example 2GiB"
        )
    return int(float(match[1]) * UNITS[match[2].upper()])
