"""A tiny classifier with card and data, and a private PostgreSQL server."""

import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest

TINY = """g (float[N,1,8,8] x) => (float[N,4] y) {
  c1 = Conv<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(x, w1, b1)
  r1 = Relu(c1)
  c2 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(r1, w2, b2)
  s = Add(c2, r1)
  r2 = Relu(s)
  p = GlobalAveragePool(r2)
  f = Flatten(p)
  y = Gemm<transB=1>(f, w3, b3)
}"""
CARD = {
    "task": "classification",
    "input": {
        "layout": "NCHW", "size": [8, 8], "color": "GRAY", "resize": None,
        "scale": 1 / 255, "mean": [0.5], "std": [0.25],
    },
    "output": {"decode": "argmax"},
    "classes": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    """Paths of a float model whose own answers are the labels, so that its float score is 1."""

    folder: Path

    @property
    def model(self) -> str:
        return str(self.folder / "tiny.onnx")

    @property
    def data(self) -> str:
        return str(self.folder / "data.npz")

    @property
    def card(self) -> Path:
        return self.folder / "tiny.json"


@pytest.fixture(scope="session")
def make_tiny(proto_from_text: Callable[..., onnx.ModelProto]) -> Callable[..., Tiny]:
    """folder, n images, hair -> Tiny. `hair`: classes 0, 1 differ by less than 8 bits can hold."""

    def make(folder: Path, n: int = 60, hair: bool = False) -> Tiny:
        rng = np.random.default_rng(0)
        level = rng.integers(0, 160, (n, 1, 1)) + rng.integers(0, 96, (n, 8, 8))
        pictures = level.astype(np.uint8)
        x = ((pictures / 255 - 0.5) / 0.25).astype(np.float32)[:, None]
        weights = {
            "w1": rng.normal(0, 0.5, (8, 1, 3, 3)), "b1": rng.normal(0, 0.5, 8),
            "w2": rng.normal(0, 0.2, (8, 8, 3, 3)), "b2": rng.normal(0, 0.5, 8),
            "w3": rng.normal(0, 1, (4, 8)), "b3": np.zeros(4),
        }  # fmt: skip
        if hair:
            weights["w3"][1:] = weights["w3"][0]
            weights["w3"][1] += rng.normal(0, 1e-3, 8)
        weights = {name: array.astype(np.float32) for name, array in weights.items()}
        proto = proto_from_text(TINY, 17, **weights)
        y = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x})[0]
        weights["b3"] = -np.median(y, axis=0)  # every class wins somewhere
        if hair:
            weights["b3"] -= np.array([0, 0, 9, 9], np.float32)
        proto = proto_from_text(TINY, 17, **weights)
        y = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x})[0]
        onnx.save(proto, folder / "tiny.onnx")
        (folder / "tiny.json").write_text(json.dumps(CARD))
        np.savez(folder / "data.npz", x=pictures, y=y.argmax(1))
        return Tiny(folder)

    return make


@pytest.fixture(scope="session")
def tiny(make_tiny: Callable[..., Tiny], tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


COLOURED = """g (float[N,3,16,16] x) => (float[N,5] y) {
  c1 = Conv<kernel_shape=[3,3]>(x, w1, b1)
  r1 = Relu(c1)
  p1 = MaxPool<kernel_shape=[3,3], strides=[2,2]>(r1)
  u1 = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",
              nearest_mode="floor">(p1, , twice)
  c2 = Conv<kernel_shape=[3,3]>(u1, w2, b2)
  r2 = Sigmoid(c2)
  p = GlobalAveragePool(r2)
  f = Flatten(p)
  y = Gemm<transB=1>(f, w3, b3)
}"""


@dataclass(frozen=True)
class Photos:
    """A colour classifier whose own answers are the labels, and JPEG files to ask it about."""

    model: str
    card: Path
    data: str
    unlabelled: str


@pytest.fixture(scope="session")
def photos(
    proto_from_text: Callable[..., onnx.ModelProto], tmp_path_factory: pytest.TempPathFactory
) -> Photos:
    """40 photographs in small, at 85 % quality with half-size colour."""
    from PIL import Image

    from modelmill import tasks

    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    (folder / "data" / "images").mkdir(parents=True)
    for i in range(40):
        coarse = rng.integers(0, 256, (7, 9, 3)).astype(np.uint8)
        image = Image.fromarray(coarse).resize((61, 46 + i % 3), Image.Resampling.BICUBIC)
        image.save(folder / "data" / "images" / f"{i:02}.jpg", quality=85)
    card = {
        "task": "classification",
        "input": {
            "layout": "NCHW", "size": [16, 16], "color": "RGB",
            "resize": {"method": "pillow-bilinear", "mode": "shorter-side", "to": 18,
                       "crop": "center"},
            "scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
        },
        "output": {"decode": "argmax"},
        "classes": 5,
    }  # fmt: skip
    (folder / "coloured.json").write_text(json.dumps(card))
    weights = {
        "w1": rng.normal(0, 0.6, (6, 3, 3, 3)), "b1": rng.normal(0, 0.5, 6),
        "w2": rng.normal(0, 0.4, (8, 6, 3, 3)), "b2": rng.normal(0, 0.5, 8),
        "w3": rng.normal(0, 4, (5, 8)), "b3": np.zeros(5), "twice": np.array([1, 1, 2, 2]),
    }  # fmt: skip
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    held = tasks.card_from_json(card)
    dataset = tasks.open_data(folder / "data", held)
    x = tasks.prepare(held).batch([dataset.sample(i).image for i in range(40)])

    def answers() -> np.ndarray:
        proto = proto_from_text(COLOURED, 17, **weights)
        onnx.save(proto, folder / "coloured.onnx")
        return np.asarray(onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x})[0])

    weights["b3"] = -np.median(answers(), axis=0)  # every class wins somewhere
    labels = answers().argmax(1)
    rows = "".join(f"{i:02}.jpg,{label}\n" for i, label in enumerate(labels))
    (folder / "data" / "labels.csv").write_text(f"file,class_index\n{rows}")
    shutil.copytree(folder / "data" / "images", folder / "bare" / "images")
    return Photos(
        str(folder / "coloured.onnx"), folder / "coloured.json", str(folder / "data"),
        str(folder / "bare"),
    )  # fmt: skip


USER = "postgres"  # of the database; the server itself refuses to run as root


class Server:
    """A PostgreSQL server that listens on a socket in its folder and nowhere else."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self.folder = programs, folder
        self._as: list[str] = []
        if os.getuid() == 0:
            shutil.chown(folder, USER)
            self._as = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        self._run("initdb", "-D", self.data, "-U", USER, "-A", "trust", "--no-sync")

    @property
    def data(self) -> str:
        return str(self.folder / "data")

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as, str(self._programs / program), *arguments]
        with (self.folder / "log.txt").open("a") as log:  # a server keeps what it is given open
            subprocess.run(
                command, check=True, cwd=self.folder, stdout=log, stderr=log, timeout=120
            )

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off"
        self._run("pg_ctl", "-D", self.data, "-w", "-l", f"{self.data}/server.log",
                  "-o", options, "start")  # fmt: skip

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self.data, "-w", "-m", "immediate", "stop")

    def sql(self, statement: str, name: str = "postgres") -> None:
        self._run("psql", "-h", str(self.folder), "-U", USER, "-d", name, "-c", statement)

    def new_url(self) -> str:
        """The URL of a new, empty database."""
        name = f"t{uuid.uuid4().hex}"
        self.sql(f"CREATE DATABASE {name}")
        return f"postgresql://{USER}@/{name}?host={self.folder}"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="run: pip install 'modelmill[postgresql]'")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))  # where Debian has it
    anywhere = shutil.which("initdb")
    if not found and anywhere is None:
        pytest.skip("no PostgreSQL server here; run: apt-get install postgresql")
    programs = (found[-1] if found else Path(anywhere or "")).resolve().parent
    # Not below pytest's folder: a socket's path holds 107 characters, and others may not look in.
    with tempfile.TemporaryDirectory(prefix="mm-pg-") as folder:
        server = Server(programs, Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()
