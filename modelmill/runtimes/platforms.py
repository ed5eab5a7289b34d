"""Platforms: an engine in an environment, of which there may be several side by side.

`onnxruntime` is the engine of this environment, or of one of its own that `doctor --install` made;
`onnxruntime@1.24.4` is that version of it, wherever it is. A fleet has several versions of one
engine, and some engines want packages that others refuse: each such environment is a folder

    ENGINES/NAME[@VERSION]/          a virtual environment
    ENGINES/NAME[@VERSION]/modelmill.json    written last, so that an unfinished one is known

with ENGINES = $MODELMILL_ENGINES, or modelmill/engines in the user's data folder. Versions are read
from the metadata of the installed distributions; no engine is imported for it.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

from modelmill import plugins
from modelmill.runtimes.protocol import EngineMissing, Runtime

MARKER = "modelmill.json"
_PARTS = ("name", "supported", "pip", "suffix", "missing", "version", "open")
_REQUIREMENT = re.compile(r"""["']?([A-Za-z0-9][\w.-]*)(\[[\w,-]+\])?[<>=!~]""")


@dataclass(frozen=True)
class Platform:
    """An engine that can be started.

    name: as the user says it, `ncnn` or `onnxruntime@1.24.4`. runtime: name of the adapter, or the
    path of its file. version: of the engine's distribution, "" if its adapter names none. python:
    the interpreter of its environment. folder: of an environment of its own, None for this one.
    """

    name: str
    runtime: str
    version: str
    python: str
    folder: Path | None


def load_runtime(name: str) -> Runtime:
    """The adapter of that name, or of the file at that path: its RUNTIME, else its PLUGIN.

    Raises:
        ValueError: no such adapter (lists the choices), or the file holds something else.
    """
    found = plugins.load("modelmill.runtimes", name, "RUNTIME")
    lacks = [part for part in _PARTS if not hasattr(found, part)]
    if lacks:
        raise ValueError(
            f"{name} holds a {type(found).__name__}, which is no engine's adapter: it has no "
            f"{', no '.join(lacks)}; see modelmill/runtimes/protocol.py"
        )
    runtime: Runtime = found
    return runtime


def engines_folder() -> Path:
    """Where environments of engines are."""
    held = os.environ.get("MODELMILL_ENGINES")
    if held:
        return Path(held)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "modelmill" / "engines"


def distribution_of(runtime: Runtime) -> str:
    """Name of the distribution that is the engine: the first requirement of its pip line.

    Raises:
        ValueError: the line has none.
    """
    found = _REQUIREMENT.search(runtime.pip)
    if found is None:
        raise ValueError(f"the pip line of {runtime.name} names no requirement: {runtime.pip!r}")
    return found[1]


def find_platform(name: str) -> Platform:
    """The platform that goes by `name`: NAME, NAME@VERSION, or the path of an adapter file.

    Raises:
        ValueError: no such adapter, or two environments claim the name.
        EngineMissing: it is installed nowhere; the text holds the line that installs it.
    """
    stem, _, asked = name.partition("@") if not name.endswith(".py") else (name, "", "")
    runtime = load_runtime(stem)
    claims = [p for p in _platforms(stem, runtime) if asked in ("", p.version)]
    exact = [p for p in claims if p.folder is None or p.folder.name == stem]
    if not asked and exact:  # environments of a version do not answer to the bare name, unless
        claims = exact  # there is nothing else
    if len(claims) > 1:
        places = " and ".join(str(p.folder or f"this environment ({sys.prefix})") for p in claims)
        raise ValueError(
            f"two environments claim the platform {name}: {places}. Keep one: modelmill doctor "
            f"--remove NAME takes one of its own away, or name the version, for example "
            f"{stem}@{claims[0].version}"
        )
    if not claims:
        if asked:
            raise EngineMissing(f"{name} is not installed; run: modelmill doctor --install {name}")
        raise EngineMissing(
            f"{name} is not installed; run: {runtime.pip}, or give it an environment of its own: "
            f"modelmill doctor --install {name}"
        )
    found = claims[0]
    return Platform(name, found.runtime, found.version, found.python, found.folder)


def platforms() -> list[Platform]:
    """Every platform that is there, by engine and version; unfinished environments are not."""
    found: list[Platform] = []
    for name in plugins.names("modelmill.runtimes"):
        found += _platforms(name, load_runtime(name))
    return found


def unfinished() -> list[Path]:
    """Folders of environments whose making was broken off."""
    folder = engines_folder()
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in inside if path.is_dir() and not (path / MARKER).is_file()]


def _platforms(stem: str, runtime: Runtime) -> Iterator[Platform]:
    if runtime.missing() is None:
        found = "" if stem.endswith(".py") else _version(runtime, None)
        yield Platform(stem, stem, found, sys.executable, None)
    folder = engines_folder()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.partition("@")[0] == runtime.name and (path / MARKER).is_file():
            held = json.loads((path / MARKER).read_bytes())
            found = _version(runtime, path) or held["version"]
            yield Platform(path.name, stem, found, str(path / "bin" / "python"), path)


def _version(runtime: Runtime, folder: Path | None) -> str:
    """Version of the engine's distribution in an environment, "" where it has none."""
    try:
        wanted = distribution_of(runtime)
        if folder is None:
            return version(wanted)
    except (ValueError, PackageNotFoundError):
        return ""
    places = [str(p) for p in folder.glob("lib/python*/site-packages")]
    held = distributions(path=places)
    return next((d.version for d in held if _normal(d.name or "") == _normal(wanted)), "")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
