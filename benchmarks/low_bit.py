"""Below eight bits: accuracy, seconds and peak memory of every algorithm, each row a process.

    python benchmarks/low_bit.py [--rows w2a4 w4a4 ...] [--seeds 0,1,2] [--iterations N]
                                 [--limit N] [--results FILE] [--write]

Simulated rows: the target `academic`, which is the setting of the papers (weights asymmetric per
channel, what layers read asymmetric per tensor, first and last layer 8 bit); 1,024 training images
drawn with the seed; scored by the executor with fake quantization, which is this target's own
arithmetic. Seconds in all: decoding the calibration images, observing and reconstructing; imports
and scoring are not timed. Deployed rows: `modelmill build -t ort_cpu`, scored by ONNX Runtime.

A row that FILE holds is not run again, so a killed run continues; delete FILE after a change of the
code. Exit code 1: something that must be reached was not. AIMET: see low_bit_aimet.py.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from build_all import SOURCES, build
from provenance import ROOT, data_folder, passed, publish, table, versions

Facts = dict[str, Any]
CALIBRATION = 1024
BATCH = 64
ALGORITHMS = ("round", "adaround", "brecq", "qdrop")
CIFAR, DEEP = "resnet20_cifar10", "resnet56_cifar10"
MOBILE, DETECTOR = "mobilenetv1_025_imagenet", "fastestdet_coco"


@dataclass(frozen=True)
class Row:
    """One measurement but for its seed.

    algorithm: float, one of ALGORITHMS. effort: as of `modelmill build`; iterations: per unit, in a
    rehearsal.
    ranges: how ranges are chosen before, mse or minmax. deployed: a build for ort_cpu, which takes
    ranges and iterations as they come. equalized: channels are rescaled first, as a build does.
    """

    model: str
    bits: str
    algorithm: str
    effort: str = "normal"
    iterations: int | None = None
    ranges: str = "mse"
    deployed: bool = False
    equalized: bool = False

    @property
    def label(self) -> str:
        ranges = f"{self.ranges} ranges, " if self.ranges != "mse" else ""
        where = "deployed" if self.deployed else "simulated"
        ranges += "equalised, " if self.equalized else ""
        effort = f" {self.effort}" if self.effort != "normal" else ""
        return f"{ranges}{self.algorithm}{effort}, {where}"


def _all(model: str, bits: str, *more: Row, effort: str = "normal") -> tuple[Row, ...]:
    learned = (Row(model, bits, a, effort) for a in ALGORITHMS[1:])
    return (Row(model, "float", "float"), Row(model, bits, "round"), *learned, *more)


W2A4, W2A4_HIGH = Row(CIFAR, "w2a4", "qdrop"), Row(CIFAR, "w2a4", "qdrop", "high")
W2A4_QUICK, W4A4_QUICK = (Row(CIFAR, bits, "qdrop", "quick") for bits in ("w2a4", "w4a4"))
W4A4 = Row(CIFAR, "w4a4", "qdrop")
EQUALIZED = Row(MOBILE, "w4a8", "qdrop", equalized=True)
SETS = {
    "goals": (W2A4, W4A4_QUICK, W4A4),
    "high": (W2A4_HIGH,),
    "collapse": (
        Row(MOBILE, "float", "float"),
        Row(MOBILE, "w4a8", "round", ranges="minmax"),
        EQUALIZED,
    ),
    "w2a4": _all(CIFAR, "w2a4", W2A4_QUICK, W2A4_HIGH),
    "w4a4": _all(CIFAR, "w4a4", W4A4_QUICK),
    "w3a3": _all(CIFAR, "w3a3", effort="quick"),
    "w2a2": _all(CIFAR, "w2a2", effort="quick"),
    "longer": (Row(CIFAR, "w3a3", "qdrop"), Row(CIFAR, "w2a2", "qdrop")),
    "resnet56": (*_all(DEEP, "w3a3", effort="quick"), *_all(DEEP, "w2a2", effort="quick")[1:]),
    "mobilenet": _all(
        MOBILE,
        "w4a8",
        Row(MOBILE, "w4a8", "round", ranges="minmax"),
        Row(MOBILE, "w4a8", "round", deployed=True),
        Row(MOBILE, "w4a8", "qdrop", deployed=True),
    ),
    "detector": (
        Row(DETECTOR, "w4a8", "round", deployed=True),
        Row(DETECTOR, "w4a8", "qdrop", deployed=True),
    ),
    "deployed": (
        Row(CIFAR, "w4a8", "round", deployed=True),
        Row(CIFAR, "w4a8", "qdrop", deployed=True),
    ),
}


@dataclass(frozen=True)
class Must:
    """What the mean over seeds must reach: a score and, where there is a bound, seconds in all.

    below_float: the score is at most so far below the float one of the same run.
    """

    row: Row
    score: float | None = None
    seconds: float | None = None
    below_float: float | None = None


MUSTS = (
    Must(W2A4, 85.96, 120),
    Must(W2A4_HIGH, 86.5, 600),
    Must(W4A4_QUICK, 87.14, 40),
    Must(W4A4, 87.5, 180),
    Must(Row(MOBILE, "w4a8", "qdrop"), below_float=1.5),
    Must(EQUALIZED, below_float=1.5),
    Must(Row(MOBILE, "w4a8", "qdrop", deployed=True), below_float=1.5),
    Must(Row(DETECTOR, "w4a8", "qdrop", deployed=True), 0.285),
)
PEER = (  # QDrop's code at its published settings, resnet20_cifar10
    ("w2a4", "0 (MSE rounding)", "27.31", "80", ""),
    ("w2a4", "1,000", "83.04", "80", "313"),
    ("w2a4", "4,000", "85.96", "99", "1,223"),
    ("w2a4, drop 1.0 (BRECQ with learned activation steps)", "1,000", "83.48", "80", "188"),
    ("w4a4", "0 (MSE rounding)", "85.36", "80", ""),
    ("w4a4", "1,000", "87.14", "80", "310"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=SETS, default=["w2a4", "w4a4"])
    parser.add_argument("--seeds", default="0", help="separated by commas")
    parser.add_argument("--iterations", type=int, help="of every simulated row; a rehearsal")
    parser.add_argument("--limit", type=int, help="images to score; a rehearsal")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "low_bit.json")
    parser.add_argument("--held", action="store_true", help="run nothing, tell what FILE holds")
    parser.add_argument("--write", action="store_true", help="keep the table in docs/benchmarks")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as modelmill.cli.main, before torch loads
    if asked.one is not None:
        job = json.loads(asked.one)
        print(json.dumps(measured(Row(**job["row"]), job["seed"], job["limit"])))
        return 0
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    results = Results(asked.results)
    found: dict[Row, list[Facts]] = {}
    for row in dict.fromkeys(row for name in asked.rows for row in SETS[name]):
        run = row
        if asked.iterations and row.algorithm in ALGORITHMS[1:] and not row.deployed:
            run = replace(row, iterations=asked.iterations)
        draws = seeds[:1] if row.algorithm == "float" else seeds
        held = [results.get(run, seed, asked.limit, not asked.held) for seed in draws]
        found[row] = [facts for facts in held if facts is not None]
    found = {row: facts for row, facts in found.items() if facts}
    verdicts = list(judge(found))
    rehearsed = asked.limit or asked.iterations
    publish(__file__, "Below eight bits", body(found, verdicts, bool(rehearsed)), asked.write)
    return 0 if all(verdict[-1] == passed(True) for verdict in verdicts) else 1


class Results:
    """Rows measured so far, in a JSON file: a list of objects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Facts] = json.loads(path.read_text()) if path.is_file() else []

    def get(self, row: Row, seed: int, limit: int | None, measure: bool) -> Facts | None:
        """The facts of a row, measured now where the file has none, None if that is not wanted."""
        job = {"row": asdict(row), "seed": seed, "limit": limit}
        for facts in self.rows:
            if facts["job"] == job:
                return facts
        if not measure:
            return None
        print(f"{row.model} {row.bits} {row.label}, seed {seed}", file=sys.stderr, flush=True)
        facts = deployed(row, seed, limit) if row.deployed else in_a_process(job)
        facts |= {"job": job, "versions": versions()}
        self.rows.append(facts)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.rows, indent=1), encoding="utf-8")
        part.replace(self.path)
        return facts


def in_a_process(job: Facts) -> Facts:
    """What a process of its own measures, so that peak memory is that of the row."""
    command = [sys.executable, __file__, "--one", json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{job}: ended with exit code {done.returncode}")
    facts: Facts = json.loads(done.stdout.splitlines()[-1])
    return facts


def measured(row: Row, seed: int, limit: int | None) -> Facts:
    """One simulated row, in this process."""
    import torch

    from modelmill import executor, ir, plugins, tasks
    from modelmill.line.quantize import prepare_graph

    data = data_folder()
    images, calibration = SOURCES[row.model]
    card = tasks.load_card(data / "models" / f"{row.model}.json")
    scored = tasks.open_data(data / images, card)
    graph = prepare_graph(ir.load(str(data / "models" / f"{row.model}.onnx")))
    name = next(iter(ir.inputs(graph)))
    if row.algorithm == "float":
        facts, module = {"threads": torch.get_num_threads()}, executor.Module(graph)
    else:
        facts, module = _quantized(row, seed, graph, drawn(data / calibration, card, seed, name))
    if limit is not None and limit < len(scored):
        scored, _ = tasks.split(scored, limit, 0)

    def run(feeds: Facts) -> Facts:
        with torch.inference_mode():
            return {name: y.numpy() for name, y in module(feeds).items()}

    task = plugins.load("modelmill.tasks", card.task)
    score = tasks.evaluate(task, run, scored, card, BATCH, name)
    return facts | {"score": 100 * next(iter(score.metrics.values())), "images": len(scored)}


def drawn(path: Path, card: Any, seed: int, name: str) -> Iterable[Facts]:
    """The calibration images, as a build draws them."""
    from modelmill import tasks

    pool = tasks.open_data(path, card)
    if len(pool) > CALIBRATION:
        pool, _ = tasks.split(pool, CALIBRATION, seed)
    return tasks.batches(pool, range(len(pool)), tasks.prepare(card), BATCH, name)


def _quantized(row: Row, seed: int, graph: Any, batches: Iterable[Facts]) -> tuple[Facts, Any]:
    """What quantizing took, and the network as it is then."""
    import torch

    from modelmill import executor
    from modelmill.ir import Plan
    from modelmill.line.attempt import learned_by
    from modelmill.line.quantize import Where
    from modelmill.quant.adaround import AdaRound
    from modelmill.quant.brecq import Brecq
    from modelmill.quant.calibrate import Calibrate, activation_names, encode
    from modelmill.quant.equalize import Equalize
    from modelmill.quant.observe import observe
    from modelmill.quant.qdrop import QDrop
    from modelmill.targets import at_precision, load_target

    target = at_precision(load_target("academic"), row.bits)
    start = time.perf_counter()
    held = list(batches)
    decoded = time.perf_counter()
    if row.equalized:
        graph, _ = Equalize()(graph, Plan(), held)
    planned = Where(row.bits).plan(graph, target).plan
    statistics = observe(graph, activation_names(graph, planned), held)
    plan = encode(graph, planned, statistics, Calibrate(row.ranges, row.ranges, row.ranges))
    observed = time.perf_counter()
    facts: Facts = {"decode_s": decoded - start, "observe_s": observed - decoded}
    facts["calibration"] = sum(len(next(iter(feeds.values()))) for feeds in held)
    if row.algorithm != "round":
        kind = {"adaround": AdaRound, "brecq": Brecq, "qdrop": QDrop}[row.algorithm]
        step = learned_by(kind, row.effort, seed)
        step = step if row.iterations is None else replace(step, iterations=row.iterations)
        made = step.run(graph, plan, held)
        graph, plan = made.graph, made.plan
        facts |= {
            "iterations": step.iterations,
            "reconstruct_s": time.perf_counter() - observed,
            "cache_mib": made.cache_mib,
            "spilled_mib": made.spilled_mib,
            "units": len(made.units),
            "kept": sum(unit.kept for unit in made.units),
        }
    facts["seconds"] = time.perf_counter() - start
    facts["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    facts["threads"] = torch.get_num_threads()
    return facts, executor.Module(graph, plan)


def deployed(row: Row, seed: int, limit: int | None) -> Facts:
    """One build, with the score of the engine."""
    more = ["--precision", row.bits, "--algorithm", row.algorithm, "--seed", str(seed)]
    more += ["--calibrate", str(CALIBRATION)]
    with tempfile.TemporaryDirectory() as folder:
        simulate = min(limit or 1000, 1000)
        data = data_folder()
        report = build(row.model, data, Path(folder), limit, simulate, ("ort_cpu",), more)
    (d,) = report["deployments"]
    if d["failed"] is not None:
        sys.exit(f"{row.model} {row.bits}: {d['failed']}")
    points = 1 if report["metric"].startswith("ap") else 100
    made = d["reconstruction"] or {}
    return {
        "score": points * d["score"]["deployed"],
        "simulated": points * d["score"]["simulated"],
        "float": points * report["float"]["score"],
        "images": d["score"]["n"],
        "agreement": d["agreement"],
        "bytes": d["bytes"],
        "latency": d["latency_ms"]["p50"] / d["float_latency_ms"]["p50"],
        "seconds": report["wall_s"],
        "reconstruct_s": made.get("seconds"),
        "cache_mib": made.get("cache_mib"),
        "spilled_mib": made.get("spilled_mib"),
        "units": made.get("units"),
        "kept": len(made.get("kept_rounding", ())),
        "peak_mib": report["peak_memory_mib"],
    }


# -------------------------------------------------------------------------------- telling


def body(found: dict[Row, list[Facts]], verdicts: Sequence[Sequence[str]], rehearsed: bool) -> str:
    """Everything below the provenance."""
    heads = ("model", "bits", "algorithm", "iterations", "score", "least .. most, seeds")
    heads += ("seconds in all", "reconstruction s", "peak MiB", "cached MiB", "on disk MiB")
    lines = ["Rehearsal: few images or iterations.", ""] if rehearsed else []
    simulated = {row: facts for row, facts in found.items() if not row.deployed}
    lines += _section(
        "Must reach, mean over seeds:",
        ("row", "iterations", "what", "must", "measured", "verdict"),
        verdicts,
    )
    lines += _section(
        "Simulated: score is top-1 in %, mean over seeds, on all test images but in a rehearsal; "
        "seconds in all are decoding, observing and reconstructing; peak memory is that of the "
        "process until then. " + _conditions(simulated),
        (*heads, "units that kept rounding"),
        (_simulated(row, facts) for row, facts in simulated.items()),
    )
    lines += _section(
        "Deployed on ONNX Runtime (`modelmill build`); score is top-1 in % or AP50; seconds of the "
        "whole command:",
        (*heads, "units that kept rounding", "float", "simulation", "differing codes",
         "file, bytes", "int / float p50"),
        (_deployed(row, facts) for row, facts in found.items() if row.deployed),
    )  # fmt: skip
    lines += _section(
        "Order found, best first:", ("model", "bits", "effort", "order"), _orders(simulated)
    )
    lines += _section(
        "For comparison, QDrop's own code on the same files, 1,024 images, measured earlier on "
        "another machine with two cores (one seed):",
        ("bits", "iterations per unit", "top-1 %", "observers s", "reconstruction s"),
        PEER,
    )
    stated = sorted({facts["versions"] for held in found.values() for facts in held})
    return "\n".join([*lines, *(["Rows were measured with:", *stated] if len(stated) > 1 else [])])


def _section(text: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    held = list(rows)
    return [text, "", table(heads, held), ""] if held else []


def _conditions(found: dict[Row, list[Facts]]) -> str:
    counts: dict[str, set[str]] = {}
    for row, held in found.items():
        for facts in held:
            if "calibration" in facts:
                said = f"{facts['calibration']:,} calibration images, {facts['images']:,} scored"
                counts.setdefault(row.model, set()).add(f"{said}, {facts['threads']} thread(s)")
    return "; ".join(f"{model}: {' / '.join(sorted(said))}" for model, said in counts.items())


def _common(row: Row, facts: list[Facts]) -> Iterator[object]:
    places = 4 if row.model == DETECTOR else 2
    scores = [f["score"] for f in facts]
    yield from (row.model, row.bits, row.label)
    yield facts[0].get("iterations", "as built" if row.deployed and facts[0]["units"] else "")
    yield f"{mean(scores):.{places}f}"
    yield f"{min(scores):.{places}f} .. {max(scores):.{places}f}, {len(scores)}"
    for key, digits in (("seconds", 1), ("reconstruct_s", 1), ("peak_mib", 0), ("cache_mib", 0)):
        yield _mean(facts, key, digits)
    yield _mean(facts, "spilled_mib", 0)
    units = facts[0].get("units")
    yield f"{mean(f['kept'] for f in facts):.1f} of {units}" if units else ""


def _simulated(row: Row, facts: list[Facts]) -> tuple[object, ...]:
    return tuple(_common(row, facts))


def _deployed(row: Row, facts: list[Facts]) -> tuple[object, ...]:
    places = 4 if row.model == DETECTOR else 2
    a = facts[0]["agreement"]
    codes = f"{a['mismatched']:,} of {a['elements']:,}, by {a['max_codes']} at most"
    return (
        *_common(row, facts),
        _mean(facts, "float", places),
        _mean(facts, "simulated", places),
        codes,
        f"{facts[0]['bytes']:,}",
        _mean(facts, "latency", 2),
    )


def _mean(facts: list[Facts], key: str, digits: int) -> str:
    held = [f[key] for f in facts if f.get(key) is not None]
    return f"{mean(held):,.{digits}f}" if held else ""


def judge(found: dict[Row, list[Facts]]) -> Iterator[tuple[str, ...]]:
    """A row for everything that must be reached and was measured."""
    floats = {row.model: f[0]["score"] for row, f in found.items() if row.algorithm == "float"}
    floats |= {row.model: f[0]["float"] for row, f in found.items() if row.deployed}
    for must in MUSTS:
        facts = found.get(must.row)
        if not facts:
            continue
        name = f"{must.row.model} {must.row.bits} {must.row.label}"
        head = name, str(facts[0].get("iterations", ""))
        score, seconds = mean(f["score"] for f in facts), mean(f["seconds"] for f in facts)
        if must.score is not None:
            fine = passed(score >= must.score)
            yield (*head, "score", f">= {must.score:g}", f"{score:.4g}", fine)
        if must.seconds is not None:
            fine = passed(seconds <= must.seconds)
            yield (*head, "seconds in all", f"<= {must.seconds:g}", f"{seconds:.1f}", fine)
        if must.below_float is not None:
            drop = floats[must.row.model] - score
            fine = passed(drop <= must.below_float + 1e-9)
            yield (*head, "points below float", f"<= {must.below_float:g}", f"{drop:.2f}", fine)


def _orders(found: dict[Row, list[Facts]]) -> Iterator[tuple[str, ...]]:
    """The algorithms of one effort, and rounding, by mean score."""
    groups: dict[tuple[str, str, str], list[tuple[float, str]]] = {}
    rounded: dict[tuple[str, str], float] = {}
    for row, facts in found.items():
        if row.ranges == "mse" and not row.equalized and row.algorithm in ALGORITHMS:
            score = mean(f["score"] for f in facts)
            if row.algorithm == "round":
                rounded[row.model, row.bits] = score
            else:
                key = row.model, row.bits, row.effort
                groups.setdefault(key, []).append((score, row.algorithm))
    for (model, bits, effort), held in groups.items():
        if len(held) > 1:
            held += [(rounded[model, bits], "round")] if (model, bits) in rounded else []
            order = sorted(held, reverse=True)
            yield model, bits, effort, ", ".join(f"{name} {score:.2f}" for score, name in order)


if __name__ == "__main__":
    sys.exit(main())
