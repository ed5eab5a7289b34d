"""A tree of files, in a folder or in a zip, with one face: sorted names, bytes, content hash.

A zip is never unpacked; its CRCs, which the zip's directory holds, stand for the content. Hidden
files and what macOS leaves in zips are not seen. A tree inside one outer folder
(`train/airplane/1.jpg`, ...) loses that folder.
"""

import hashlib
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from modelmill.tasks.images import DataError

PICTURE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm",
)  # fmt: skip


@dataclass(frozen=True)
class Files:
    """`paths` are relative, with "/", sorted; `content` hashes names and bytes of given paths."""

    where: str
    paths: tuple[str, ...]
    read: Callable[[str], bytes]
    content: Callable[[Sequence[str]], str]

    @property
    def pictures(self) -> tuple[str, ...]:
        return tuple(p for p in self.paths if p.lower().endswith(PICTURE_SUFFIXES))


def open_files(path: Path) -> Files:
    """The files of a folder or of a zip.

    Raises:
        DataError: not there, not readable, neither folder nor zip.
    """
    if not path.exists():
        raise DataError(f"data {path} does not exist")
    try:
        files = _folder(path) if path.is_dir() else _archive(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"data {path} cannot be read: {error}") from None
    return _without_outer_folder(files)


def _folder(root: Path) -> Files:
    paths = []
    seen = set()
    for folder, subfolders, names in os.walk(root, onerror=_raise, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else sorted(s for s in subfolders if not _hidden(s))
        if real not in seen:
            inside = Path(folder).relative_to(root)
            paths += [(inside / name).as_posix() for name in names if not _hidden(name)]
        seen.add(real)

    def read(path: str) -> bytes:
        try:
            return (root / path).read_bytes()
        except OSError as error:
            raise DataError(f"{root / path}: {error.strerror}") from None

    def content(wanted: Sequence[str]) -> str:
        digest = hashlib.sha256()
        for path in wanted:
            data = read(path)
            digest.update(f"{path}\0{len(data)}\0".encode())
            digest.update(hashlib.sha256(data).digest())
        return digest.hexdigest()

    return Files(str(root), tuple(sorted(paths)), read, content)


def _archive(file: Path) -> Files:
    if not zipfile.is_zipfile(file):
        raise DataError(
            f"data {file} is neither a folder nor a zip; give a folder with one folder of pictures "
            "per class, a zip of one, an .npz with x and y, or a folder with images/ and "
            "labels.csv or instances.json"
        )
    archive = zipfile.ZipFile(
        file
    )  # stays open as long as the Files live; reading it is thread-safe
    entries = {
        entry.filename: entry
        for entry in archive.infolist()
        if not entry.is_dir() and not any(_hidden(p) for p in PurePosixPath(entry.filename).parts)
    }

    def read(path: str) -> bytes:
        try:
            return archive.read(entries[path])
        except Exception as error:  # zlib.error, BadZipFile, RuntimeError (encrypted), ...
            raise DataError(f"{file}/{path}: broken in the zip ({error})") from None

    def content(wanted: Sequence[str]) -> str:
        digest = hashlib.sha256()
        for path in wanted:
            digest.update(f"{path}\0{entries[path].file_size}\0{entries[path].CRC}\0".encode())
        return digest.hexdigest()

    return Files(str(file), tuple(sorted(entries)), read, content)


def _without_outer_folder(files: Files) -> Files:
    parts = [path.split("/") for path in files.paths]
    outer = {p[0] for p in parts}
    pictures = [p.split("/") for p in files.pictures]
    if len(outer) != 1 or not pictures or any(len(p) < 3 for p in pictures):
        return files
    prefix = f"{outer.pop()}/"
    if prefix == "images/":
        return files
    return Files(
        files.where,
        tuple(path.removeprefix(prefix) for path in files.paths),
        lambda path: files.read(prefix + path),
        lambda wanted: files.content([prefix + path for path in wanted]),
    )


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _raise(error: OSError) -> None:
    raise error
