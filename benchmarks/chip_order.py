"""The order of the chips: what their formats cost, simulated.

    python benchmarks/chip_order.py [--images 300] [--calibrate 128] [--recipe plain] [--all]
        [--models NAME ...] [--write]

The claim, as MQBench's benchmarks and Dipoorlet have it: int8 symmetric with one scale per output
channel (TensorRT) loses least, asymmetric with one scale per tensor (SNPE) more, powers of two
(Vitis) most. Chips also differ in what they run on integers at all, so the three formats are
compared twice: each on its own chip, and under one set of rules, those of TensorRT.

Recipe plain: min-max ranges, nothing else, as in a published table of schemes. default: what
`modelmill build` does, without layers kept in float. The claim is about scores; those of some
hundred images are coarse, so the SQNR of the outputs against the float model stands beside them.
Exit code 1: by score the order does not hold.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as modelmill.cli.main, before torch loads

import numpy as np
import torch
from provenance import data_folder, passed, publish, table

from modelmill import executor, plugins, tasks
from modelmill.line.quantize import Recipe, Where, default_recipe, prepare_graph, quantize_all
from modelmill.line.source import Source, load_source
from modelmill.quant.calibrate import Calibrate
from modelmill.targets import Target, load_target

SOURCES = {  # model -> (data, calibration), below the data folder
    "mobilenetv1_025_imagenet": ("imagenet", "coco/images"),
    "fastestdet_coco": ("coco", "imagenet/images"),
}
CLAIM = ("tensorrt", "qnn", "vitis_dpu")  # from the least loss to the largest
BATCH = 50
Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Result:
    """What one format costs: score on the images, and SQNR (dB) of all outputs against float."""

    name: str
    score: float
    sqnr_db: float
    nodes: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--calibrate", type=int, default=128)
    parser.add_argument("--recipe", choices=("plain", "default"), default="plain")
    parser.add_argument("--all", action="store_true", help="every simulated chip")
    parser.add_argument("--models", nargs="*", default=list(SOURCES))
    parser.add_argument("--write", action="store_true", help="keep the table in docs/benchmarks")
    asked = parser.parse_args()
    body, fine = [], True
    for model in asked.models:
        float_score, found = measure(model, asked)
        rows = [(r.name, f"{r.score:.4f}", f"{r.sqnr_db:.2f}", r.nodes) for r in found]
        columns = ("target", "score", "SQNR dB", "integer + fused / float nodes")
        body += [f"## {model}, {asked.recipe} recipe, float {float_score:.4f}", ""]
        body += [table(columns, rows), ""]
        for suffix in ("", ", one set of rules"):
            by_name = {r.name: r for r in found}
            three = [by_name[f"{name}{suffix}"] for name in CLAIM]
            holds = all(a.sqnr_db >= b.sqnr_db for a, b in pairwise(three))
            scores = all(a.score >= b.score for a, b in pairwise(three))
            fine = fine and scores
            words = " >= ".join(CLAIM)
            body += [f"- {words}{suffix}: by score {passed(scores)}, by SQNR {passed(holds)}"]
        body += [""]
    publish(__file__, "Order of the chips", "\n".join(body), asked.write)
    return 0 if fine else 1


def measure(model: str, asked: argparse.Namespace) -> tuple[float, list[Result]]:
    """The float score, and one Result for each target."""
    data = data_folder()
    source = load_source(str(data / "models" / f"{model}.onnx"), None)
    images, calibration = (tasks.open_data(data / p, source.card) for p in SOURCES[model])
    if asked.images < len(images):
        images, _ = tasks.split(images, asked.images, 0)
    pool, _ = tasks.split(calibration, asked.calibrate, 0)
    batch = source.batch or BATCH
    whole = range(len(pool) - len(pool) % batch)
    prepare = tasks.prepare(source.card)
    batches = tasks.batches(pool, whole, prepare, batch, source.input_name)
    graph = prepare_graph(source.graph)
    reference: list[Outputs] = []
    module = executor.Module(graph)

    def run_float(feeds: Mapping[str, np.ndarray]) -> Outputs:
        with torch.inference_mode():
            reference.append({name: y.numpy() for name, y in module(feeds).items()})
        return reference[-1]

    float_score = score(source, images, batch, run_float)
    found = []
    for precision, chosen in by_precision(chips(asked.all)).items():
        made = quantize_all(graph, chosen, Where(precision), batches, recipe(asked, source))
        for name, quantized in made.items():
            compared = Compared(quantized.simulate(), iter(reference))
            value = score(source, images, batch, compared.run)
            runs = [v.runs for v in quantized.planned.verdicts]
            nodes = f"{runs.count('integer')} + {runs.count('fused')} / {runs.count('float')}"
            found.append(Result(name, value, compared.sqnr_db, nodes))
            print(found[-1], file=sys.stderr, flush=True)
    return float_score, sorted(found, key=lambda r: (-r.score, -r.sqnr_db))


def score(source: Source, images: tasks.Dataset, batch: int, run: Callable[..., Outputs]) -> float:
    """The task's primary metric."""
    name = source.input_name
    return float(tasks.evaluate(source.task, run, images, source.card, batch, name).value)


class Compared:
    """A simulation whose outputs are held against those of the float model, batch by batch."""

    def __init__(self, module, reference) -> None:  # type: ignore[no-untyped-def]
        self.module, self.reference, self.signal, self.noise = module, reference, 0.0, 0.0

    def run(self, feeds: Mapping[str, np.ndarray]) -> Outputs:
        found = {name: y.numpy() for name, y in self.module(feeds).items()}
        for name, x in next(self.reference).items():
            self.signal += float(np.square(x, dtype=np.float64).sum())
            self.noise += float(np.square(x - found[name], dtype=np.float64).sum())
        return found

    @property
    def sqnr_db(self) -> float:
        return 10 * math.log10(self.signal / self.noise) if self.noise else math.inf


def chips(everyone: bool) -> list[Target]:
    """The simulated targets, and the formats of the claim under the rules of the first of it."""
    names = plugins.names("modelmill.targets") if everyone else CLAIM
    found = [t for t in map(load_target, names) if t.runtime is None]
    rules = load_target(CLAIM[0])
    for name in CLAIM:
        formats = replace(load_target(name).scheme("w8a8"), bias=None)
        label = f"{name}, one set of rules"
        found.append(replace(rules, name=label, schemes=(formats,), export=()))
    return found


def by_precision(targets: list[Target]) -> dict[str, dict[str, Target]]:
    """First precision of each target -> those targets, by name."""
    found: dict[str, dict[str, Target]] = {}
    for target in targets:
        found.setdefault(target.schemes[0].precision, {})[target.name] = target
    return found


def recipe(asked: argparse.Namespace, source: Source) -> Recipe:
    """The recipe asked for, no layer kept in float."""
    if asked.recipe == "plain":
        plain = Calibrate("minmax", before_leaky="minmax", weights="minmax")
        return Recipe(equalize=None, calibrate=plain, bias_correction=None, protect=None)
    return replace(default_recipe(source.task.name), protect=None)


if __name__ == "__main__":
    sys.exit(main())
