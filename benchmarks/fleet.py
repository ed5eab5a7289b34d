"""One model, eight engines: deployed, scored, timed and compared with the simulation.

    python benchmarks/fleet.py [--models NAME ...] [--limit N] [--keep FOLDER] [--write]

Each model is one `modelmill build` for all engines, in a process of its own. Latencies of float and
int8 on one engine come from turns in one run; those of different engines were taken one after the
other and compare less well. Needs all engines: make engines.
Exit code 1: something that must be reached was not.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from build_all import Facts, Must, build, codes, drop, facts, judge, score, seconds, share, top
from provenance import data_folder, passed, publish, table

ENGINES = (
    "ort_cpu",
    "openvino_cpu",
    "ncnn",
    "mnn",
    "litert",
    "executorch",
    "tvm",
    "iree",
)
MODELS = ("resnet20_cifar10", "mobilenetv1_025_imagenet", "fastestdet_coco")
MUSTS = (
    Must("resnet20_cifar10", "deployed top-1, %", top, low=87.8),
    Must("fastestdet_coco", "deployed AP50", score, low=0.29),
    Must("mobilenetv1_025_imagenet", "deployed drop, points", drop, high=1.5),
    *(Must(name, "share of differing codes", share, high=1e-4) for name in MODELS),
    *(Must(name, "largest difference, codes", codes, high=1) for name in MODELS),
    Must("resnet20_cifar10", "whole build, s", seconds, high=360, whole=True),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--limit", type=int, help="images to score; default: all")
    parser.add_argument("--simulate", type=int, default=1000)
    parser.add_argument("--keep", type=Path, help="folder for the builds; default: thrown away")
    parser.add_argument("--write", action="store_true", help="keep the table in docs/benchmarks")
    asked = parser.parse_args()
    data = data_folder()
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.keep or Path(scratch)
        reports = {
            name: build(name, data, folder / name, asked.limit, asked.simulate, ENGINES)
            for name in asked.models
        }
    verdicts = list(judge(reports, MUSTS))
    parts = [f"Rehearsal: only {asked.limit} images were scored.\n"] if asked.limit else []
    parts += [table(("model", "target", "what", "must", "measured", "verdict"), verdicts), ""]
    parts += ["All that was measured, latency on one thread, batch 1:", "", measured(reports), ""]
    for name, report in reports.items():
        took = f"{report['wall_s']:.0f} s, {report['peak_memory_mib']:.0f} MiB in the build itself"
        parts += [f"{name}: {took}. Share of images with the same answer:", "", alike(report), ""]
    publish(__file__, "One model, eight engines", "\n".join(parts).rstrip(), asked.write)
    return 0 if all(row[-1] == passed(True) for row in verdicts) else 1


def measured(reports: dict[str, Facts]) -> str:
    """A row for every deployment, with the seconds its conversion took."""
    heads = ("model", "target", "metric", "float", "deployed", "simulated", "same images")
    heads += ("differing codes", "int8 ms", "float ms", "int8 / float", "verdict")
    return table((*heads, "nodes left in float", "worker MiB", "convert s"), _rows(reports))


def _rows(reports: dict[str, Facts]) -> Iterator[tuple[object, ...]]:
    for name, report in reports.items():
        for row, d in zip(facts(name, report), report["deployments"], strict=True):
            yield (*row, f"{d['seconds'].get('convert', 0):.1f}")


def alike(report: Facts) -> str:
    """The matrix of cross-engine agreement: the row's answers with the column's as truth."""
    found = report["cross_agreement"]
    rows = (
        (name, *("" if share is None else f"{share:.4f}" for share in row))
        for name, row in zip(found["names"], found["rows"], strict=True)
    )
    return table((found["metric"], *found["names"]), rows)


if __name__ == "__main__":
    sys.exit(main())
