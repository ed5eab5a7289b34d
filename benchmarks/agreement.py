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
from modelmill.line.agreement import OWN_IMAGES, Agreement, Count, exposed
from modelmill.line.quantize import Quantized
from modelmill.runtimes import SessionOptions, open_session

MODEL = "resnet20_cifar10"
TARGETS = ("ort_cpu", "openvino_cpu")
BATCH = 50
SHARE, CODES = 1e-5, 1


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
        agreement, faked = compare(made, images)
        whole, own = agreement.whole, agreement.own
        sides = {"integer": whole, "integer, each layer on the engine's inputs": own}
        for name, count in {**sides, "fake quantization": faked}.items():
            share = count.mismatched / max(count.elements, 1)
            numbers = (f"{count.elements:,}", f"{count.mismatched:,}", f"{share:.2g}")
            rows.append((target, name, *numbers, count.max_codes))
        if target == "ort_cpu":
            fine = whole.mismatched <= SHARE * whole.elements and whole.max_codes <= CODES
    columns = ("target", "simulation", "elements", "differ", "share", "by at most, codes")
    body = "\n".join(
        [
            f"{MODEL}, {asked.images} images, every quantized tensor of each artifact.",
            "",
            table(columns, rows),
            "",
            "The second row of a target counts what arises in the layers themselves, on at most "
            f"{OWN_IMAGES} images, and nothing where no code differs.",
            "",
            f"- against ONNX Runtime at most 1 in 100,000 differs, by one code: {passed(fine)}",
        ]
    )
    publish(__file__, "Simulation against engine", body, asked.write)
    return 0 if fine else 1


def compare(made: Quantized, images: Iterable[Mapping[str, np.ndarray]]) -> tuple[Agreement, Count]:
    """The integer simulation of `made` against its engine, and fake quantization against it."""
    opened, codes = exposed(made.to_qdq())
    encodings = made.plan.encodings()
    module, fake, faked = made.simulate(), executor.Module(made.graph, made.plan), Count()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exposed.onnx"
        ir.save(opened, path)
        options = SessionOptions(threads=2, batch=BATCH)
        with open_session(made.target.runtime, path, options) as session, torch.inference_mode():
            agreement = Agreement(module, session, codes)
            for feeds in images:
                agreement.run(feeds)
                engine = session.run(dict(feeds))

                def look(
                    name: str, x: torch.Tensor, engine: dict[str, np.ndarray] = engine
                ) -> None:
                    if codes.get(name) in engine:
                        simulated = encodings[ir.Point(name)].quantize(x.numpy())
                        faked.add(simulated.astype(np.int32), engine[codes[name]])

                fake.visit(feeds, list(codes), look)
    return agreement, faked


if __name__ == "__main__":
    sys.exit(main())
