"""Quantize a model to values instead of files, and ask which tensors lost most.

modelmill demo && python examples/quantize_in_memory.py [FOLDER]
"""

import sys
from pathlib import Path

import modelmill
from modelmill import ir, tasks


def main(folder: Path) -> None:
    card = tasks.load_card(folder / "digits.json")
    images = tasks.open_data(folder / "train.npz", card)
    graph = ir.load(folder / "digits.onnx")
    (name,) = ir.inputs(graph)
    batches = tasks.batches(images, range(256), tasks.prepare(card), 64, name)

    quantized = modelmill.quantize(graph, batches, target="ort_cpu")
    ir.save(quantized.to_qdq(), folder / "in_memory.onnx")

    worst = sorted(quantized.quality, key=lambda layer: layer.sqnr_db)[:3]
    for layer in worst:
        print(f"{layer.sqnr_db:5.1f} dB  {layer.op} {layer.node}")
    print(f"{len(quantized.plan)} points quantized, written to {folder / 'in_memory.onnx'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-build"))
