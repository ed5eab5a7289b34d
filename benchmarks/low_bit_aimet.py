"""AdaRound by AIMET beside ours: the same file, the same 1,024 images, the same points.

    python -m venv build/aimet                # an environment of its own, 2 GB
    echo torch==2.13.0 > build/aimet.txt      # the PyTorch that is here, not the newest
    build/aimet/bin/python -m pip install -c build/aimet.txt aimet-onnx==2.42.0
    python benchmarks/low_bit_aimet.py --python build/aimet/bin/python [--bits w4a8 w4a4 w2a4]
                                       [--iterations 10000] [--limit N] [--seed N] [--write]

AIMET's QuantizationSimModel, made to quantize what the papers do and no more: weights asymmetric
per channel, what a layer reads asymmetric per tensor, first and last layer 8 bit; its SQNR ranges
("tf_enhanced"); then its apply_adaround with its default of 10,000 iterations per layer (it advises
15,000 below 8 bits). Batches of 32. It is scored by its own simulation on ONNX Runtime, ours by the
executor. Seconds: ranges and reconstruction, images in memory, without imports and scoring; ours
also decode. Without an interpreter that has AIMET the benchmark says so and ends with code 0.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

Facts = dict[str, Any]
MODEL = "resnet20_cifar10"
INSTALL = (
    "python -m venv build/aimet && echo torch==2.13.0 > build/aimet.txt && "
    "build/aimet/bin/python -m pip install -c build/aimet.txt aimet-onnx==2.42.0"
)
BATCH = 32
LAYERS = ("Conv", "Gemm", "MatMul")
FIRST_LAST_BITS = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, help="an interpreter that has aimet_onnx")
    parser.add_argument("--bits", nargs="+", default=["w4a8", "w4a4", "w2a4"])
    parser.add_argument("--iterations", type=int, default=10_000, help="of AIMET, per layer")
    parser.add_argument("--limit", type=int, help="images to score; a rehearsal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="keep the table in docs/benchmarks")
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "BITS"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one is not None:
        folder, bits = asked.one
        print(json.dumps(aimet(Path(folder), bits, asked.iterations, asked.seed)))
        return 0
    missing = why_missing(asked.python)
    if missing:
        print(f"AIMET is left out: {missing}. To install it:\n    {INSTALL}", file=sys.stderr)
        return 0
    side_by_side(asked)
    return 0


def why_missing(python: Path | None) -> str | None:
    """Why AIMET cannot run, None where it can."""
    if python is None:
        return "no interpreter was given with --python"
    command = [str(python), "-c", "import aimet_onnx"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{python}: {error.strerror}"
    last = done.stderr.strip().splitlines()[-1:] or ["it ended without a word"]
    return f"{python} cannot import aimet_onnx: {last[0]}" if done.returncode else None


def side_by_side(asked: argparse.Namespace) -> None:
    """Both, bits by bits, and the table."""
    from low_bit import Results, Row
    from provenance import ROOT, publish, table

    heads = ("bits", "side", "iterations per layer", "rounding, top-1 %", "AdaRound, top-1 %")
    rows: list[tuple[object, ...]] = []
    own = Results(ROOT / "build" / "low_bit.json")
    with tempfile.TemporaryDirectory() as folder:
        hand_over(Path(folder), asked.seed, asked.limit)
        for bits in asked.bits:
            print(f"{MODEL} {bits}, AIMET", file=sys.stderr, flush=True)
            command = [str(asked.python), __file__, "--one", folder, bits]
            command += ["--iterations", str(asked.iterations), "--seed", str(asked.seed)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            theirs = json.loads(done.stdout.splitlines()[-1])
            rows.append((bits, f"AIMET {theirs['version']}", asked.iterations, *_cells(theirs)))
            plain = own.get(Row(MODEL, bits, "round"), asked.seed, asked.limit)
            ours = own.get(Row(MODEL, bits, "adaround"), asked.seed, asked.limit)
            ours = ours | {"rounded": plain["score"]}
            rows.append((bits, "modelmill", ours["iterations"], *_cells(ours)))
    lines = [f"Rehearsal: {asked.limit} images.\n"] if asked.limit else []
    lines += [
        f"{MODEL}, 1,024 calibration images, seed {asked.seed}. Ranges before AdaRound: AIMET's "
        "SQNR search, our MSE search.",
        "",
        table((*heads, "seconds in all", "AdaRound s", "peak MiB"), rows),
    ]
    publish(__file__, "AdaRound beside AIMET's", "\n".join(lines), asked.write)


def _cells(facts: Facts) -> tuple[str, ...]:
    return (
        f"{facts['rounded']:.2f}",
        f"{facts['score']:.2f}",
        f"{facts['seconds']:.1f}",
        f"{facts['reconstruct_s']:.1f}",
        f"{facts['peak_mib']:.0f}",
    )


def hand_over(folder: Path, seed: int, limit: int | None) -> None:
    """The model and the images that our side takes, as files."""
    from build_all import SOURCES
    from low_bit import drawn
    from provenance import data_folder

    from modelmill import tasks

    data = data_folder()
    images, calibration = SOURCES[MODEL]
    card = tasks.load_card(data / "models" / f"{MODEL}.json")
    held = drawn(data / calibration, card, seed, "x")
    np.save(folder / "calibration.npy", np.concatenate([feeds["x"] for feeds in held]))
    scored = tasks.open_data(data / images, card)
    if limit is not None and limit < len(scored):
        scored, _ = tasks.split(scored, limit, 0)
    batches = tasks.batches(scored, range(len(scored)), tasks.prepare(card), BATCH, "x")
    np.save(folder / "images.npy", np.concatenate([feeds["x"] for feeds in batches]))
    truths = [scored.sample(i).truth for i in range(len(scored))]
    np.save(folder / "truths.npy", np.array(truths))
    (folder / "model.onnx").write_bytes((data / "models" / f"{MODEL}.onnx").read_bytes())


# -------------------------------------------------------------------- inside AIMET's environment


def aimet(folder: Path, bits: str, iterations: int, seed: int) -> Facts:
    """Its top-1 (%) with plain rounding and after AdaRound, and what that took."""
    import aimet_onnx
    import onnx
    import torch
    from aimet_onnx import QuantizationSimModel, apply_adaround, qtype

    np.random.seed(seed)
    torch.manual_seed(seed)
    weight_bits, activation_bits = map(int, bits[1:].split("a"))
    images = np.load(folder / "calibration.npy")
    model = onnx.load(folder / "model.onnx")
    name = model.graph.input[0].name
    batches = [{name: images[i : i + BATCH]} for i in range(0, len(images), BATCH)]
    start = time.perf_counter()
    sim = QuantizationSimModel(
        model,
        param_type=qtype.int(weight_bits),
        activation_type=qtype.int(activation_bits),
        quant_scheme="tf_enhanced",
    )
    as_in_the_papers(sim)
    sim.compute_encodings(batches)
    observed = time.perf_counter()
    rounded = top1(sim.session, name, folder)
    begun = time.perf_counter()
    apply_adaround(sim, batches, iterations)
    reconstruct_s = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "version": aimet_onnx.__version__,
        "rounded": rounded,
        "score": top1(sim.session, name, folder),
        "seconds": observed - start + reconstruct_s,
        "reconstruct_s": reconstruct_s,
        "peak_mib": peak,
    }


def as_in_the_papers(sim: Any) -> None:
    """Quantize weights and what layers read, nothing else; ends of the network at 8 bits."""
    quantizers = sim.qc_quantize_op_dict
    layers = [n for n in sim.model.model.graph.node if n.op_type in LAYERS]
    producers = {o: n for n in sim.model.model.graph.node for o in n.output}
    reads = [_quantized_at(layer.input[0], producers, quantizers) for layer in layers]
    weights = [layer.input[1].removesuffix("_qdq") for layer in layers]
    weights = [producers[w].input[0] if w in producers else w for w in weights]
    for name, quantizer in quantizers.items():
        if name in sim.activation_names:
            quantizer.enabled = name in reads
            quantizer.use_symmetric_encodings = False
        elif name in weights:
            quantizer.use_symmetric_encodings = False
    for name in (reads[0], weights[0], reads[-1], weights[-1]):
        quantizers[name].set_bitwidth(FIRST_LAST_BITS)
    lacking = [name for name in (*reads, *weights) if not quantizers[name].enabled]
    if lacking:
        sys.exit(f"AIMET does not quantize {lacking[0]!r}, which a layer reads")


def _quantized_at(value: str, producers: Facts, quantizers: Facts) -> str:
    """The value with a quantizer that a layer's input comes from, past reshapes."""
    while value not in quantizers or value not in producers or not quantizers[value].enabled:
        node = producers[value]
        value = node.input[0]
        if node.op_type == "QcQuantizeOp" and quantizers[value].enabled:
            return value
    return value


def top1(session: Any, name: str, folder: Path) -> float:
    """In percent, on the images handed over."""
    images, truths = np.load(folder / "images.npy"), np.load(folder / "truths.npy")
    right = 0
    for at in range(0, len(images), 10 * BATCH):
        (logits,) = session.run(None, {name: images[at : at + 10 * BATCH]})
        right += int((logits.argmax(1) == truths[at : at + 10 * BATCH]).sum())
    return 100 * right / len(truths)


if __name__ == "__main__":
    sys.exit(main())
