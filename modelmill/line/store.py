"""The folder of one build: whole files or none, and finished steps that a resumed build does not
redo.

A step's result is `cache/NAME-KEY.json`, KEY a hash over everything it was computed from. Files it
made lie beside it under `artifacts/` and are listed with their hashes: a file that is missing or
altered makes the step count as not done. Every file is written under a temporary name, flushed to
the disk and renamed, so that a kill or a full disk never leaves half of one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modelmill import ir

Json = dict[str, Any]


class OutputError(ValueError):
    """The output folder cannot be used or written; the text says why and what to do."""


def check_folder(folder: Path, resume: bool) -> None:
    """Whether a build may go there, as far as can be known without writing.

    Raises:
        OutputError: it is a file, or holds an earlier build and `resume` is False.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; choose a folder with -o")
    if (folder / "cache").exists() and not resume:
        raise OutputError(
            f"{folder} holds an earlier build; add --resume to continue it, or choose another "
            "folder with -o"
        )


class Store:
    """Opens or makes the folder.

    Raises:
        OutputError: not writable, or it holds an earlier build and `resume` is False.
    """

    def __init__(self, folder: Path, resume: bool) -> None:
        self.folder, self.resume = folder, resume
        self.redone: list[str] = []
        self.reused: list[str] = []
        self._done: set[str] = set()  # by this build: asked for once more, it is not redone
        check_folder(folder, resume)
        try:
            for part in ("cache", "artifacts", "details"):
                (folder / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make {folder}: {error.strerror}; choose a writable folder with -o"
            ) from error
        self.write("cache/.writable", b"")

    def path(self, name: str) -> Path:
        """Where the file `name` of this build lies."""
        return self.folder / name

    def write(self, name: str, data: bytes) -> Path:
        """Write a file whole or not at all.

        Raises:
            OutputError: not writable, or the disk is full.
        """
        path = self.path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            ir.write_whole(path, data)
        except OSError as error:
            raise OutputError(
                f"cannot write {path} ({len(data):,} bytes): {error.strerror}. Finished steps are "
                "kept; make room, then run the same command with --resume"
            ) from error
        return path

    def link(self, name: str, source: str) -> None:
        """Let `name` be the file `source` of this build as well, without a second copy where the
        file system can.

        Raises:
            OutputError: not writable, or the disk is full.
        """
        path, held = self.path(name), self.path(source)
        if path.exists() and path.samefile(held):
            return
        part = path.with_name(f".{path.name}.part")
        try:
            part.unlink(missing_ok=True)
            part.hardlink_to(held)
            part.replace(path)
        except OSError:
            self.write(name, held.read_bytes())

    def write_json(self, name: str, value: Json) -> Path:
        """Write `value` as indented JSON with sorted keys left as given."""
        return self.write(name, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())

    def step(
        self, name: str, inputs: Json, compute: Callable[[], tuple[Json, Mapping[str, bytes]]]
    ) -> Json:
        """The JSON result of a step: what an earlier run stored for the same inputs, else
        `compute`d and stored now.

        `compute` gives the result and the files (name under the folder -> bytes) that belong to it.
        """
        key = key_of(inputs)
        file_name = re.sub(r"[^\w.-]+", "_", name)  # an engine may be a path
        entry = f"cache/{file_name}-{key}.json"
        stored = self._stored(entry) if self.resume or entry in self._done else None
        if stored is not None:
            if entry not in self._done:
                self._done.add(entry)
                self.reused.append(name)
            return stored
        result, files = compute()
        for file, data in files.items():
            self.write(file, data)
        hashes = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
        self.write_json(entry, {"step": name, "inputs": inputs, "files": hashes, "result": result})
        self.redone.append(name)
        self._done.add(entry)
        return result

    def _stored(self, entry: str) -> Json | None:
        try:
            held: Json = json.loads(self.path(entry).read_bytes())
            for file, digest in held["files"].items():
                if file_hash(self.path(file)) != digest:
                    return None
            result: Json = held["result"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return result


def key_of(inputs: Json) -> str:
    """Short hash of what a step depends on."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:24]


def file_hash(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
