"""Data: pictures with or without their truth, from files or from Python, and batches of them.

    folder or zip with one folder of pictures per class     class = rank of the name, alphabetical
    folder or zip of images/ and labels.csv                 columns file, class_index
    folder or zip of images/ and instances.json             COCO boxes
    folder or zip of pictures alone                         no truth: good for calibration
    .npz with x (n, h, w, 3) or (n, h, w) uint8, y (n,)     y may be left out: no truth
    any iterable of (picture, truth)                        see `open_data`

Folders named as the card's classes are matched by name. Nothing is decoded before it is asked for,
and no more than two batches exist at a time, so memory does not grow with the number of pictures.
"""

import csv
import functools
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from modelmill import plugins
from modelmill.tasks import coco
from modelmill.tasks.boxes import Objects, objects
from modelmill.tasks.card import Card, Size
from modelmill.tasks.files import PICTURE_SUFFIXES, Files, open_files
from modelmill.tasks.images import DataError, Floats, Picture, Prepare, decode, to_rgb

Truth = Any  # int for classification, Objects for detection, None without labels
Transform = Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture: its name, RGB bytes (height, width, 3), its truth (None without labels)."""

    id: str
    image: Picture
    truth: Truth

    @property
    def size(self) -> Size:
        return (self.image.shape[0], self.image.shape[1])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pictures that are read one by one.

    `where` is for messages; `size`, if given, is the one that every picture must have. `encoded`
    gives the bytes of a picture's file; None where pictures are no files.
    """

    where: str
    ids: tuple[str, ...]
    read: Callable[[int], tuple[Picture, Truth]]
    content: Callable[[], str]
    labelled: bool
    size: Size | None = None
    encoded: Callable[[int], bytes] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def sample(self, i: int) -> Sample:
        """Picture `i` and its truth.

        Raises:
            DataError: the file is broken, gone, or of a size that the card does not allow; names
                the file.
        """
        image, truth = self.read(i)
        sample = Sample(self.ids[i], image, truth)
        if self.size is not None and sample.size != self.size:
            raise DataError(
                f"{self.where}: {sample.id} is {sample.size[0]}x{sample.size[1]} (height x width), "
                f"the network takes {self.size[0]}x{self.size[1]} and the card has input.resize "
                "null; resize the data, or say in the card how to"
            )
        return sample

    def fingerprint(self) -> str:
        """Hash (hex sha256) of names, bytes and labels; times and the place do not matter."""
        return self.content()

    def subset(self, indices: Sequence[int]) -> "Dataset":
        """The pictures at `indices`, in that order."""
        chosen = [int(i) for i in indices]

        def content() -> str:
            text = f"{self.content()} {','.join(map(str, chosen))}"
            return hashlib.sha256(text.encode()).hexdigest()

        encoded = self.encoded
        return Dataset(
            self.where,
            tuple(self.ids[i] for i in chosen),
            lambda i: self.read(chosen[i]),
            functools.cache(content),
            self.labelled,
            self.size,
            None if encoded is None else lambda i: encoded(chosen[i]),
        )


def open_data(
    source: str | Path | Iterable[Any], card: Card, transform: Transform | None = None
) -> Dataset:
    """The pictures at a path, or in an iterable, as the card's task reads them.

    An iterable gives (picture, truth) or pictures alone; a picture is uint8 (h, w, 3) RGB or (h, w)
    grey, or a Pillow image; truth is a class index, or for detection `Objects` or {"boxes": xyxy,
    "labels": classes, optionally "area", "iscrowd"}. With a length and indices it is read lazily,
    else it is drained into memory. `transform`, if given, makes such a picture from whatever the
    iterable holds.

    Raises:
        DataError: nothing there, or not what the card's task needs; names the place, what was found
            and what to do.
    """
    size = card.input.size if card.input.resize is None else None
    if not isinstance(source, str | Path):
        return _from_python(source, card, transform, size)
    if transform is not None:
        raise DataError(
            "transform goes with an iterable; files are decoded and resized as the card says"
        )
    path = Path(source)
    if path.suffix.lower() == ".npz" and path.is_file():
        return _from_npz(path, card, size)
    return _from_files(open_files(path), card, size)


def split(dataset: Dataset, n_calibration: int, seed: int) -> tuple[Dataset, Dataset]:
    """`n_calibration` pictures drawn by `seed`, and the rest; each keeps the data's order.

    Raises:
        DataError: nothing would be left in one of the two.
    """
    if not 0 < n_calibration < len(dataset):
        raise DataError(
            f"{dataset.where}: cannot take {n_calibration} calibration pictures out of "
            f"{len(dataset)} and have some left to score; ask for 1 to {len(dataset) - 1} with "
            "--calibrate, or give other data with --calib"
        )
    order = np.random.default_rng(seed).permutation(len(dataset))
    drawn, rest = order[:n_calibration], order[n_calibration:]
    return dataset.subset(np.sort(drawn).tolist()), dataset.subset(np.sort(rest).tolist())


@dataclass(frozen=True, eq=False)
class Batches:
    """Re-iterable of {input name: float32 batch}, decoded while it is iterated; see `batches`."""

    dataset: Dataset
    indices: tuple[int, ...]
    prepare: Prepare
    input_name: str
    batch_size: int
    read_ahead: bool = False

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Floats]]:
        for x, _ in prepared(
            self.dataset, self.indices, self.prepare, self.batch_size, self.read_ahead
        ):
            yield {self.input_name: x}


def batches(
    dataset: Dataset,
    indices: Sequence[int],
    prepare: Prepare,
    batch_size: int,
    input_name: str,
    read_ahead: bool = False,
) -> Batches:
    """Batches of the pictures at `indices`; the last one may be smaller.

    `read_ahead` decodes the next batch in a thread.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}; it must be at least 1")
    return Batches(dataset, tuple(indices), prepare, input_name, batch_size, read_ahead)


def prepared(
    dataset: Dataset,
    indices: Sequence[int],
    prepare: Prepare,
    batch_size: int,
    read_ahead: bool,
) -> Iterator[tuple[Floats, list[tuple[str, Size, Truth]]]]:
    """Batches of network input, each with (id, size of the original, truth) per picture."""

    def load(start: int) -> tuple[Floats, list[tuple[str, Size, Truth]]]:
        samples = [dataset.sample(i) for i in indices[start : start + batch_size]]
        return prepare.batch([s.image for s in samples]), [(s.id, s.size, s.truth) for s in samples]

    starts = range(0, len(indices), batch_size)
    if not read_ahead:
        yield from map(load, starts)
        return
    with ThreadPoolExecutor(1, "read-ahead") as pool:
        coming = None
        for start in starts:
            ready, coming = coming, pool.submit(load, start)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


# ------------------------------------------------------------------------------------------- files


def _from_files(files: Files, card: Card, size: Size | None) -> Dataset:
    if not files.pictures:
        raise DataError(
            f"data {files.where} has no pictures ({len(files.paths)} other files); looked for "
            f"{' '.join(PICTURE_SUFFIXES)}"
        )
    wants_boxes = plugins.load("modelmill.tasks", card.task).truth is Objects
    tables = {"labels.csv": int, "instances.json": Objects}
    for table in ("instances.json", "labels.csv") if wants_boxes else ("labels.csv",):
        if table in files.paths:
            _check_kind(tables[table], card, f"{files.where}/{table}")
            rows = _coco_rows(files, card) if table == "instances.json" else _csv_rows(files, card)
            return _dataset(files, rows, card, size, (table,))
    others = [p for p in tables if p in files.paths]
    folders = sorted({p.split("/")[0] for p in files.pictures if "/" in p})
    if folders in ([], ["images"]) and not others:
        return _dataset(files, [(p, None, None) for p in files.pictures], card, size, ())
    if others or wants_boxes:
        found = others[0] if others else f"one folder per class ({', '.join(folders[:3])}, ...)"
        wanted = "images/ and instances.json" if wants_boxes else "images/ and labels.csv"
        raise DataError(
            f"data {files.where} holds {found}, but task {card.task!r} needs a folder with {wanted}"
        )
    return _dataset(files, _class_rows(files, folders, card), card, size, ())


Row = tuple[str, Truth, Size | None]  # path, truth, the size that the labels say


def _dataset(
    files: Files, rows: Sequence[Row], card: Card, size: Size | None, tables: tuple[str, ...]
) -> Dataset:
    if not rows:
        raise DataError(f"data {files.where}: {tables[0]} lists no pictures")
    exif = card.input.exif

    def read(i: int) -> tuple[Picture, Truth]:
        path, truth, said = rows[i]
        image = decode(files.read(path), f"{files.where}/{path}", exif)
        if said is not None and image.shape[:2] != said:
            raise DataError(
                f"{files.where}/{path} is {image.shape[0]}x{image.shape[1]} (height x width), but "
                f"{tables[0]} says {said[0]}x{said[1]}; its boxes would be wrong"
            )
        return image, truth

    paths = tuple(path for path, _, _ in rows)
    return Dataset(
        files.where,
        paths,
        read,
        functools.cache(lambda: files.content((*paths, *tables))),
        rows[0][1] is not None,
        size,
        lambda i: files.read(rows[i][0]),
    )


def _class_rows(files: Files, folders: list[str], card: Card) -> list[Row]:
    loose = [p for p in files.pictures if "/" not in p]
    if loose:
        raise DataError(
            f"data {files.where}: {loose[0]} lies beside the class folders "
            f"{', '.join(folders[:3])}, ...; move it into the folder of its class"
        )
    names = card.class_names or ()
    strange = [f for f in folders if f not in names]
    if names and not strange:
        index = {folder: names.index(folder) for folder in folders}
    elif names and len(strange) < len(folders):
        raise DataError(
            f"data {files.where}: folder {strange[0]!r} is not one of the card's classes, the "
            f"others are; rename or remove it. Classes: {', '.join(names)}"
        )
    elif len(folders) != card.class_count:
        shown = ", ".join(folders[:5]) + (", ..." if len(folders) > 5 else "")
        raise DataError(
            f"data {files.where} has {len(folders)} class folders ({shown}), but the card says "
            f"{card.class_count} classes; each class needs its folder, an empty one cannot be seen "
            "in a zip. If some classes have no picture here, give the card a list of class names, "
            "or use images/ and labels.csv"
        )
    else:
        index = {folder: i for i, folder in enumerate(folders)}
    return [(p, index[p.split("/")[0]], None) for p in files.pictures]


def _csv_rows(files: Files, card: Card) -> list[Row]:
    where = f"{files.where}/labels.csv"
    try:
        text = files.read("labels.csv").decode("utf-8-sig")
        table = csv.DictReader(io.StringIO(text), strict=True)
        lines = [(table.line_num, row) for row in table]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{where} is not a CSV text file: {error}") from None
    columns = table.fieldnames or []
    missing = [c for c in ("file", "class_index") if c not in columns]
    if missing:
        raise DataError(
            f"{where}: no column {missing[0]!r}; the first line must be file,class_index, it is "
            f"{','.join(columns)!r}"
        )
    there = set(files.pictures)
    rows: dict[str, Row] = {}
    for number, row in lines:
        path = f"images/{row['file']}"
        if path not in there:
            raise DataError(f"{where}, line {number}: {path} does not exist or is not a picture")
        if path in rows:
            raise DataError(f"{where}, line {number}: {path} is listed twice")
        label = _class_label(row["class_index"], card, f"{where}, line {number} ({row['file']})")
        rows[path] = (path, label, None)
    return list(rows.values())


def _coco_rows(files: Files, card: Card) -> list[Row]:
    where = f"{files.where}/instances.json"
    try:
        pictures = coco.read(
            files.read("instances.json"), where, card.class_names, card.class_count
        )
    except ValueError as error:
        raise DataError(str(error)) from None
    there = set(files.paths)
    gone = [p.file for p in pictures if f"images/{p.file}" not in there]
    if gone:
        raise DataError(
            f"{where}: images/{gone[0]} does not exist ({len(gone)} of {len(pictures)} pictures "
            "are missing)"
        )
    exif = card.input.exif  # an upright picture may have the other orientation than the file says
    return [(f"images/{p.file}", p.truth, None if exif else p.size) for p in pictures]


def _class_label(value: Any, card: Card, where: str) -> int:
    try:
        label = int(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: class index {value!r} is not an integer") from None
    if not 0 <= label < card.class_count:
        raise DataError(
            f"{where}: class index {label} is out of range: the card says {card.class_count} "
            f"classes, 0 to {card.class_count - 1}"
        )
    return label


def _check_kind(kind: type, card: Card, where: str) -> None:
    wanted = plugins.load("modelmill.tasks", card.task).truth
    if kind is not wanted:
        raise DataError(
            f"{where} gives a class per picture, but task {card.task!r} needs a folder with "
            "images/ and instances.json"
            if kind is int
            else f"{where} gives boxes, but task {card.task!r} needs a class per picture"
        )


# --------------------------------------------------------------------------------- .npz and Python


def _from_npz(path: Path, card: Card, size: Size | None) -> Dataset:
    try:
        # opened here, because np.load leaves a broken file open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in ("x", "y") if name in arrays}
            names = list(arrays.files)
    except Exception as error:  # BadZipFile, zlib.error, ValueError for pickles, ...
        raise DataError(f"data {path} is not a readable .npz: {error}") from None
    if "x" not in found:
        raise DataError(
            f"data {path} has no array 'x' (n, height, width, 3) uint8; it has "
            f"{', '.join(names) or 'nothing'}"
        )
    x, y = found["x"], found.get("y")
    if x.dtype != np.uint8 or not (x.ndim == 3 or (x.ndim == 4 and x.shape[3] in (1, 3))):
        raise DataError(
            f"data {path}: x is {x.dtype} {x.shape}; it must be uint8 (n, height, width, 3) or (n, "
            "height, width), pictures before scaling and normalisation"
        )
    if 0 in x.shape:
        raise DataError(f"data {path}: x is empty, shape {x.shape}")
    if y is not None:
        _check_kind(int, card, str(path))
        if y.shape != x.shape[:1] or y.dtype.kind not in "iu":
            raise DataError(
                f"data {path}: y is {y.dtype} {y.shape}; it must hold one integer per picture, "
                f"shape ({len(x)},)"
            )
        for i in np.flatnonzero((y < 0) | (y >= card.class_count))[:1]:
            _class_label(y[i], card, f"data {path}, y[{i}]")

    def content() -> str:
        digest = hashlib.sha256()
        for array in (x, y):
            if array is not None:
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    return Dataset(
        str(path),
        tuple(f"x[{i}]" for i in range(len(x))),
        lambda i: (_rgb(x[i]), None if y is None else int(y[i])),
        functools.cache(content),
        y is not None,
        size,
    )


def _from_python(
    source: Iterable[Any], card: Card, transform: Transform | None, size: Size | None
) -> Dataset:
    if isinstance(source, Mapping | bytes) or not (
        hasattr(source, "__iter__") or hasattr(source, "__getitem__")
    ):
        raise DataError(
            f"data of type {type(source).__name__}: give a path, or an iterable of (picture, truth)"
        )
    lazy = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    items: Any = source if lazy else list(source)
    if len(items) == 0:
        raise DataError("data: the iterable is empty")
    boxes = plugins.load("modelmill.tasks", card.task).truth is Objects

    def read(i: int) -> tuple[Picture, Truth]:
        image, truth = _pair(items[i])
        picture = _picture(image if transform is None else transform(image), f"item {i}")
        if truth is None:
            return picture, None
        return picture, (_boxes if boxes else _class_label)(truth, card, f"item {i}")

    def content() -> str:
        digest = hashlib.sha256()
        for i in range(len(items)):
            image, truth = read(i)
            values = [truth.boxes_xyxy, truth.classes, truth.crowd] if boxes and truth else [truth]
            digest.update(f"{image.shape}{[np.asarray(v).tolist() for v in values]}".encode())
            digest.update(np.ascontiguousarray(image).data)
        return digest.hexdigest()

    return Dataset(
        "data",
        tuple(f"item {i}" for i in range(len(items))),
        read,
        functools.cache(content),
        _pair(items[0])[1] is not None,
        size,
    )


def _pair(item: Any) -> tuple[Any, Any]:
    """An item of an iterable as (picture, truth); an array is never a pair."""
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    return item, None


def _picture(image: Any, where: str) -> Picture:
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    array = np.asarray(image)
    if array.dtype != np.uint8 or not (
        array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))
    ):
        raise DataError(
            f"{where}: a picture must be uint8 (height, width, 3) RGB or (height, width), or a "
            f"Pillow image, not {type(image).__name__} {array.dtype} {array.shape}; the card does "
            "the scaling, so undo yours, or give a transform that returns the picture"
        )
    return _rgb(array)


def _rgb(array: npt.NDArray[np.uint8]) -> Picture:
    """(h, w), (h, w, 1) or (h, w, 3) as (h, w, 3)."""
    if array.ndim == 2:
        array = array[:, :, None]
    return array if array.shape[2] == 3 else np.repeat(array, 3, axis=2)


def _boxes(truth: Any, card: Card, where: str) -> Objects:
    if isinstance(truth, Mapping):
        if "boxes" not in truth or "labels" not in truth:
            raise DataError(
                f"{where}: needs 'boxes' and 'labels', has {', '.join(map(str, truth))}"
            )
        try:
            truth = objects(
                truth["boxes"], truth["labels"], truth.get("area"), truth.get("iscrowd")
            )
        except (ValueError, TypeError) as error:
            raise DataError(f"{where}: {error}") from None
    if not isinstance(truth, Objects):
        raise DataError(
            f"{where}: the truth of a detector is Objects or a dict with boxes and labels, not "
            f"{type(truth).__name__}"
        )
    for label in truth.classes:
        _class_label(label, card, where)
    return truth
