"""Which calibration method suits this model? The same model under several recipes.

modelmill demo && python examples/sweep_recipes.py [FOLDER]
"""

import sys
from dataclasses import replace
from pathlib import Path

import modelmill
from modelmill import ir, tasks
from modelmill.line.quantize import DEFAULT
from modelmill.quant.calibrate import Calibrate


def main(folder: Path) -> None:
    card = tasks.load_card(folder / "digits.json")
    images = tasks.open_data(folder / "train.npz", card)
    graph = ir.load(folder / "digits.onnx")
    (name,) = ir.inputs(graph)
    batches = tasks.batches(images, range(256), tasks.prepare(card), 64, name)

    recipes = {
        method: replace(DEFAULT, calibrate=Calibrate(activations=method))
        for method in ("mse", "percentile", "minmax", "kl")
    } | {"percentile, no equalisation": replace(DEFAULT, equalize=None)}
    lowest = {}
    for label, recipe in recipes.items():
        quantized = modelmill.quantize(graph, batches, target="ort_cpu", recipe=recipe)
        lowest[label] = min(layer.sqnr_db for layer in quantized.quality)
        print(f"{lowest[label]:5.1f} dB at the weakest tensor: {label}")
    print("best:", max(lowest, key=lambda label: lowest[label]))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-build"))
