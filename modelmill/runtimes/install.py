"""Make an environment of its own for an engine: `modelmill doctor --install NAME[@VERSION]`.

It holds the engine as its adapter's pip line says, and what a worker needs besides: the packages of
`WORKER`, in the versions of this environment, so that both sides read a model alike. PyTorch, where
an engine brings it, is held at this environment's version.
"""

import json
import re
import shlex
import shutil
import subprocess
import tempfile
import venv
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from modelmill.runtimes.platforms import (
    MARKER,
    Platform,
    distribution_of,
    engines_folder,
    find_platform,
    load_runtime,
)
from modelmill.runtimes.protocol import EngineError
from modelmill.runtimes.worker import probe

WORKER = ("numpy", "onnx", "onnx-ir")
HELD = (*WORKER, "torch", "ml-dtypes")
_TAIL = 1500


def install(name: str, say: Callable[[str], None], again: bool = False) -> Platform:
    """Make the environment of `name` (NAME or NAME@VERSION), and start the engine in it once.

    Args:
        name: an engine, with a version or in the newest that the adapter supports.
        say: is told each step.
        again: remove an environment of that name first.

    Raises:
        ValueError: no such engine, or there is an environment of that name.
        DeploymentError: the engine was installed and cannot be loaded.
        EngineError: pip failed; the text holds its last words.
    """
    stem, _, wanted = name.partition("@")
    runtime = load_runtime(stem)
    folder = engines_folder() / name
    if (folder / MARKER).is_file() and not again:
        raise ValueError(f"{name} is there already, in {folder}; run: modelmill doctor --remove")
    shutil.rmtree(folder, ignore_errors=True)  # left by an installation that was broken off
    say(f"{name}: make {folder}")
    folder.mkdir(parents=True)
    venv.create(folder, with_pip=True, symlinks=True)
    requirements = _requirements(runtime.pip, distribution_of(runtime), wanted)
    say(f"{name}: pip install {' '.join(requirements)}")
    _pip(folder, requirements)
    facts = {"runtime": stem, "version": wanted, "requirements": requirements}
    (folder / MARKER).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    found = find_platform(name)
    say(f"{name}: version {probe(name)} works")
    return found


def remove(name: str) -> Path:
    """Remove the environment of `name`, finished or not.

    Raises:
        ValueError: there is none.
    """
    folder = engines_folder() / name
    inside = folder.parent == engines_folder() and name not in ("", ".", "..")
    if not inside or not folder.is_dir():
        have = sorted(p.name for p in engines_folder().glob("*")) or ["none"]
        raise ValueError(
            f"{name} has no environment of its own in {engines_folder()}; there: {', '.join(have)}"
        )
    shutil.rmtree(folder)
    return folder


def _requirements(pip: str, distribution: str, wanted: str) -> list[str]:
    """What a pip line asks for, the engine at the version wanted, and what a worker needs."""
    given = shlex.split(pip)[2:]
    if wanted:
        given = [
            f"{distribution}=={wanted}" if _is(requirement, distribution) else requirement
            for requirement in given
        ]
    named = {re.split(r"[<>=!~\[]", requirement)[0] for requirement in given}
    return given + [f"{p}=={_here(p)}" for p in WORKER if p not in named and _here(p)]


def _is(requirement: str, distribution: str) -> bool:
    return re.split(r"[<>=!~\[]", requirement)[0] == distribution


def _pip(folder: Path, requirements: list[str]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as held:
        held.write("".join(f"{p}=={_here(p)}\n" for p in HELD if _here(p)))
        held.flush()
        command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        command += ["--disable-pip-version-check", "--constraint", held.name, *requirements]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise EngineError(
            f"pip could not install {' '.join(requirements)} in {folder}: "
            f"{(ran.stderr or ran.stdout).strip()[-_TAIL:]}"
        )


def _here(package: str) -> str:
    """Version in this environment without a local part ("2.13.0+cpu"), "" if it is not here."""
    try:
        return version(package).split("+")[0]
    except PackageNotFoundError:
        return ""
