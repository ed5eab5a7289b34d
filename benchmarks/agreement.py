"""How often a simulation is wrong about the integer engine: every quantized tensor, code by code.

    python benchmarks/agreement.py [--images 1000] [--calibrate 512] [--write]

resnet20 is quantized for each target; the engine gives the codes of every quantized tensor of the
artifact, and two simulations are held against them in one run: modelmill's integer arithmetic, and
the usual fake quantization (float32 convolutions between rounded tensors). Exit code 1: more than
one element in 100,000 differs from ONNX Runtime, or one by more than one code.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as modelmill.cli.main, before torch loads

import torch
from provenance import data_folder, passed, publish, table

import modelmill
from modelmill import executor, ir, tasks
from modelmill.line.agreement import exposed
from modelmill.line.quantize import Quantized
from modelmill.numerics import Encoding
from modelmill.runtimes import SessionOptions, open_session

MODEL = "resnet20_cifar10"
TARGETS = ("ort_cpu", "openvino_cpu")
BATCH = 50
SHARE, CODES = 1e-5, 1


class Count:
    """Elements compared, elements whose code differs, largest difference, first tensor with one."""

    def __init__(self) -> None:
        self.elements = self.differ = self.largest = 0
        self.first = "none"

    def add(self, name: str, engine: np.ndarray, simulated: np.ndarray) -> None:
        difference = np.abs(engine.astype(np.int32) - simulated)
        self.elements += difference.size
        found = int(np.count_nonzero(difference))
        if found and not self.differ:
            self.first = name
        self.differ += found
        self.largest = max(self.largest, int(difference.max(initial=0)))

    @property
    def share(self) -> float:
        return self.differ / max(self.elements, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--calibrate", type=int, default=512)
    parser.add_argument("--write", action="store_true", help="keep the table in docs/benchmarks")
    asked = parser.parse_args()
    data = data_folder()
    card = tasks.load_card(data / "models" / f"{MODEL}.json")
    prepare = tasks.prepare(card)
    train = tasks.open_data(data / "cifar10" / "train.zip", card)
    test = tasks.open_data(data / "cifar10" / "test.zip", card)
    calibration, _ = tasks.split(train, asked.calibrate, 0)
    batches = tasks.batches(calibration, range(asked.calibrate), prepare, 64, "image")
    images = tasks.batches(test, range(asked.images), prepare, BATCH, "image")
    rows, fine = [], True
    for target in TARGETS:
        made = modelmill.quantize(str(data / "models" / f"{MODEL}.onnx"), batches, target)
        for name, count in compare(made, images).items():
            rows.append(
                (target, name, f"{count.elements:,}", f"{count.differ:,}", f"{count.share:.2g}",
                 count.largest, count.first)
            )  # fmt: skip
            if target == "ort_cpu" and name == "integer":
                fine = count.share <= SHARE and count.largest <= CODES
    columns = ("target", "simulation", "elements", "differ", "share", "by at most", "first at")
    body = "\n".join(
        [
            f"{MODEL}, {asked.images} images, every quantized tensor of each artifact.",
            "",
            table(columns, rows),
            "",
            f"- against ONNX Runtime at most 1 in 100,000 differs, by one code: {passed(fine)}",
        ]
    )
    publish(__file__, "Simulation against engine", body, asked.write)
    return 0 if fine else 1


def compare(made: Quantized, images: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Count]:
    """Both simulations of `made` against its engine on the same batches."""
    opened, codes = exposed(made.to_qdq())
    encodings = made.plan.encodings()
    integer, fake = made.simulate(), executor.Module(made.graph, made.plan)
    counts = {"integer": Count(), "fake quantization": Count()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exposed.onnx"
        ir.save(opened, path)
        options = SessionOptions(threads=2, batch=BATCH)
        with open_session(made.target.runtime, path, options) as session, torch.inference_mode():
            for feeds in images:
                engine = session.run(dict(feeds))

                def seen(
                    name: str, simulated: torch.Tensor, engine: dict[str, np.ndarray] = engine
                ) -> None:
                    if codes.get(name) in engine:
                        counts["integer"].add(name, engine[codes[name]], simulated.numpy())

                def faked(
                    name: str, x: torch.Tensor, engine: dict[str, np.ndarray] = engine
                ) -> None:
                    if codes.get(name) in engine:
                        encoding = encodings[ir.Point(name)]
                        assert isinstance(encoding, Encoding)
                        simulated = encoding.quantize(x.numpy()).astype(np.int32)
                        counts["fake quantization"].add(name, engine[codes[name]], simulated)

                integer(feeds, seen)
                fake.visit(feeds, list(codes), faked)
    return counts


if __name__ == "__main__":
    sys.exit(main())
