"""Seconds to calibrate and quantize resnet20: modelmill, ONNX Runtime and NNCF take turns.

    pip install nncf==3.4.0      # optional: the last side is left out, clearly, if it is absent
    python benchmarks/quantize_speed.py [--images 512] [--repeats 9] [--write]

Every side starts from the float ONNX file and the same images, decoded and normalised in memory,
and ends with a quantized model file. Imports are not timed: each side runs once on few images
first. Batches: 64 images for modelmill and ONNX Runtime, 1 for NNCF, whose calibration counts
batches and takes its statistics per image. Each engine uses the threads it likes; PyTorch's do not
spin while they wait, as in the commands. Exit code 1: over 2 s on 512 images, or not the fastest.
"""

import argparse
import gc
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from provenance import data_folder, passed, publish, table

LIMIT_S = 2.0
BATCH = 64
MODEL = "resnet20_cifar10"
Side = Callable[[str, np.ndarray, str], None]  # (float model, images NCHW, file to write)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="keep the table in docs/benchmarks")
    asked = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as modelmill.cli.main, before torch loads
    data = data_folder()
    model = str(data / "models" / f"{MODEL}.onnx")
    images = load_images(data, asked.images)
    sides = all_sides()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out.onnx")
        for side in sides.values():
            side(model, images[:BATCH], out)
        for repeat in range(asked.repeats):
            order = list(sides) if repeat % 2 == 0 else list(sides)[::-1]
            for name in order:
                gc.collect()  # each side pays for its own garbage, not for that of the one before
                start = time.perf_counter()
                sides[name](model, images, out)
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    own = medians["modelmill.quantize"]
    rows = [
        (
            name,
            f"{medians[name]:.2f}",
            f"{min(t):.2f} .. {max(t):.2f}",
            f"{medians[name] / own:.2f}",
        )
        for name, t in seconds.items()
    ]
    quick, fastest = own <= LIMIT_S, own == min(medians.values())
    absent = [] if find_spec("nncf") else ["", "NNCF is not installed: that side was left out."]
    body = "\n".join(
        [
            f"{MODEL}, {len(images)} calibration images, {asked.repeats} repeats in turns.",
            "",
            table(("side", "median s", "range s", "times modelmill"), rows),
            "",
            f"- at most {LIMIT_S:g} s: {passed(quick)}",
            f"- faster than the others, side by side: {passed(fastest)}",
            *absent,
        ]
    )
    publish(__file__, "Calibrate and quantize", body, asked.write)
    return 0 if quick and fastest else 1


def load_images(data: Path, count: int) -> np.ndarray:
    """The first images of a seeded draw, as the network takes them, (count, 3, 32, 32)."""
    from modelmill import tasks

    card = tasks.load_card(data / "models" / f"{MODEL}.json")
    dataset, _ = tasks.split(tasks.open_data(data / "cifar10" / "train.zip", card), count, 0)
    prepare = tasks.prepare(card)
    return np.stack([prepare(dataset.sample(i).image) for i in range(count)])


def all_sides() -> dict[str, Side]:
    """The sides that can run here, by name; what they need is imported by their first call."""
    sides: dict[str, Side] = {
        "modelmill.quantize": modelmill_side,
        "onnxruntime quantize_static, defaults": partial(ort_side, u8s8=False),
        "onnxruntime quantize_static, U8S8 per channel": partial(ort_side, u8s8=True),
    }
    if find_spec("nncf"):
        sides["nncf.quantize"] = nncf_side
    return sides


def modelmill_side(model: str, images: np.ndarray, out: str) -> None:
    """The default recipe: equalisation, MSE ranges, bias correction."""
    import modelmill
    from modelmill import ir

    batches = [{"image": images[i : i + BATCH]} for i in range(0, len(images), BATCH)]
    ir.save(modelmill.quantize(model, batches, target="ort_cpu").to_qdq(), out)


class Reader:
    """What ONNX Runtime's calibration asks for its batches."""

    def __init__(self, images: np.ndarray) -> None:
        self.batches: Iterator[np.ndarray] = iter(
            np.split(images, range(BATCH, len(images), BATCH))
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


def ort_side(model: str, images: np.ndarray, out: str, u8s8: bool) -> None:
    """Min-max ranges, its default."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    CalibrationDataReader.register(Reader)  # it is only asked for get_next
    logging.disable(logging.WARNING)  # it recommends a preprocessing step at every call
    activation = QuantType.QUInt8 if u8s8 else QuantType.QInt8
    quantize_static(model, out, Reader(images), per_channel=u8s8, activation_type=activation)
    logging.disable(logging.NOTSET)


def nncf_side(model: str, images: np.ndarray, out: str) -> None:
    """Its defaults."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nncf
        import openvino as ov

        nncf.set_log_level(logging.ERROR)
        batches = nncf.Dataset([images[i : i + 1] for i in range(len(images))])
        quantized = nncf.quantize(ov.Core().read_model(model), batches, subset_size=len(images))
        ov.save_model(quantized, out.replace(".onnx", ".xml"))


if __name__ == "__main__":
    sys.exit(main())
