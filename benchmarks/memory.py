"""Peak memory of calibrating resnet20 with more and more images: it must not grow with them.

    python benchmarks/memory.py [--images 512 2048 8192] [--write]

Each number of images is a process of its own, which streams JPEG files from the archive and reads
its peak resident memory (VmHWM, Linux) at the end. Exit code 1: the largest number of images needs
over 5 % more than the smallest.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from provenance import data_folder, passed, publish, table

MODEL = "resnet20_cifar10"
GROWTH = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--write", action="store_true", help="keep the table in docs/benchmarks")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    data = data_folder()
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as modelmill.cli.main, before torch loads
    if asked.one is not None:
        print(peak_of_one(data, asked.one))
        return 0
    peaks = {}
    for count in sorted(asked.images):
        command = [sys.executable, __file__, "--one", str(count)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks[count] = float(done.stdout)
    smallest = next(iter(peaks.values()))
    rows = [(n, f"{mib:.0f}", f"{100 * (mib / smallest - 1):+.1f} %") for n, mib in peaks.items()]
    flat = list(peaks.values())[-1] <= smallest * (1 + GROWTH)
    body = "\n".join(
        [
            f"{MODEL}: peak resident memory of a process that calibrates and quantizes it.",
            "",
            table(("calibration images", "peak MiB", "against the fewest"), rows),
            "",
            f"- grows by at most {GROWTH:.0%}: {passed(flat)}",
        ]
    )
    publish(__file__, "Memory of calibration", body, asked.write)
    return 0 if flat else 1


def peak_of_one(data: Path, count: int) -> float:
    """MiB of this process after it quantized with `count` images."""
    import modelmill
    from modelmill import tasks

    card = tasks.load_card(data / "models" / f"{MODEL}.json")
    dataset, _ = tasks.split(tasks.open_data(data / "cifar10" / "train.zip", card), count, 0)
    batches = tasks.batches(dataset, range(count), tasks.prepare(card), 64, "image")
    modelmill.quantize(str(data / "models" / f"{MODEL}.onnx"), batches, target="ort_cpu")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    sys.exit(main())
