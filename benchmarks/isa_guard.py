"""Does the instruction-set guard hold? The same artifacts on a CPU with VNNI and on one without.

    python benchmarks/isa_guard.py [--images 1000] [--write]

Builds resnet20_cifar10 for ONNX Runtime twice, for this CPU and for one with AVX2 alone, and runs
both files here and under `qemu-x86_64 -cpu Haswell` (Debian: qemu-user), which emulates a CPU with
AVX2 and without VNNI. With 8-bit weights the logits move there, because pairs of products saturate
in 16 bits; with the guard's 7-bit weights not one bit may differ (exit code 1 if one does).
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from provenance import data_folder, publish, table

from modelmill import ir, tasks
from modelmill.line.quantize import quantize
from modelmill.line.source import load_images, load_source
from modelmill.records.machine import has_vnni, this_machine

RUN = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
x = numpy.load(sys.argv[2])
name = session.get_inputs()[0].name
outputs = [session.run(None, {name: x[i:i+50]})[0] for i in range(0, len(x), 50)]
numpy.save(sys.argv[3], numpy.concatenate(outputs))
"""
EMULATED = ("qemu-x86_64", "-cpu", "Haswell")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--write", action="store_true", help="keep the table in docs/benchmarks")
    asked = parser.parse_args()
    if shutil.which(EMULATED[0]) is None:
        print(f"skipped: {EMULATED[0]} is missing; install qemu-user (apt-get install qemu-user)")
        return 0
    if not has_vnni(this_machine().flags):
        print("skipped: this CPU has no VNNI, so there is nothing to compare with")
        return 0
    data = data_folder()
    cifar = data / "cifar10"
    source = load_source(data / "models" / "resnet20_cifar10.onnx", None)
    images = load_images(source, cifar / "test.zip", cifar / "train.zip", 512, asked.images, 0)
    prepare = tasks.prepare(source.card)
    count = len(images.calibration)
    batches = tasks.batches(images.calibration, range(count), prepare, 64, source.input_name)
    samples = [images.evaluation.sample(i) for i in range(len(images.evaluation))]
    labels = np.array([s.truth for s in samples])
    rows, guarded = [], 0
    with tempfile.TemporaryDirectory() as folder:
        x = Path(folder) / "x.npy"
        np.save(x, prepare.batch([s.image for s in samples]))
        for flags in (this_machine().flags, ("avx2",)):
            made = quantize(source.graph, batches, "ort_cpu", flags=flags)
            artifact = Path(folder) / "artifact.onnx"
            ir.save(made.to_qdq(), artifact)
            here = _logits((), artifact, x, Path(folder) / "here.npy")
            there = _logits(EMULATED, artifact, x, Path(folder) / "there.npy")
            specs = map(made.plan.spec, made.plan)
            bits = next(s.bits for s in specs if s.axis is not None and s.bits < 32)
            scores = [f"{np.mean(y.argmax(1) == labels):.2%}" for y in (here, there)]
            guarded = int(np.count_nonzero(here != there))
            rows.append((f"{bits} bits", *scores, f"{guarded:,} of {here.size:,}"))
    columns = ("weights", "top-1 here", "top-1 with AVX2 alone", "logits that differ")
    body = f"resnet20_cifar10, {len(labels)} images.\n\n{table(columns, rows)}"
    publish(__file__, "The instruction-set guard", body, asked.write)
    return 1 if guarded else 0


def _logits(emulator: tuple[str, ...], artifact: Path, x: Path, out: Path) -> np.ndarray:
    command = [*emulator, sys.executable, "-c", RUN, str(artifact), str(x), str(out)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return np.load(out)


if __name__ == "__main__":
    sys.exit(main())
