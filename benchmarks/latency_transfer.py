"""A new device from ten measurements, on the public latency tables of HELP.

OMP_NUM_THREADS=1 python benchmarks/latency_transfer.py            # one core, about ten minutes
OMP_NUM_THREADS=1 python benchmarks/latency_transfer.py --seeds 1

Devices are split as in HELP (Lee et al., NeurIPS 2021): nine known, four on which the scales in
latency/prior.py and latency/transfer.py were chosen, and the new ones, scored here. Two settings.
"encoder": of each known device only a random subset of the models is known (NAS-Bench-201 900 and
FBNet 4,000, as HELP trains; FBNet also with 900), the same for all devices. "table": all are.
"""

import argparse
import gzip
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import provenance
from scipy.stats import spearmanr

from modelmill.latency.prior import learn
from modelmill.latency.select import choose_prior
from modelmill.latency.transfer import Adapted, adapt_prior

OTHERS = ("silver_4114", "silver_4210r", "samsung_a50", "pixel3", "essential_ph_1", "samsung_s7")
HELP = {
    "NAS-Bench-201": {
        "titan_rtx_256": 0.987,
        "gold_6226": 0.989,
        "pixel2": 0.802,
        "raspi4": 0.890,
        "eyeriss": 0.940,
        "fpga": 0.985,
    },
    "FBNet": {"raspi4": 0.887, "eyeriss": 0.943, "fpga": 0.892},
}
MUST = {"NAS-Bench-201": 0.95, "FBNet": 0.93}
# HELP's code scores on these models alone, less the fastest and the slowest tenth of them
QUERIES = {"NAS-Bench-201": (900, 1900), "FBNet": (4000, 5000)}


@dataclass(frozen=True)
class Space:
    """A search space: amounts of work of its N models, and N latencies in ms per device."""

    name: str
    features: np.ndarray
    ms: dict[str, np.ndarray]
    known: tuple[str, ...]
    valid: tuple[str, ...]

    @property
    def new(self) -> tuple[str, ...]:
        return tuple(HELP[self.name])


def nasbench201() -> Space:
    """Cells of six edges between four nodes (Dong and Yang, ICLR 2020).

    Features: how often each operation occurs, and where; the same over edges that lie on a way from
    input to output (an engine may drop the others); and whether there is such a way.
    """
    folder = provenance.data_folder() / "latency"
    with gzip.open(folder / "help_nasbench201_archs.txt.gz", "rt") as file:
        cells = [re.findall(r"(\w+)~\d", line) for line in file.read().split()]
    edges = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    rows = []
    for cell in cells:
        before, behind = {0}, {3}
        for (a, b), op in zip(edges, cell, strict=True):
            before |= {b} if op != "none" and a in before else set()
        for (a, b), op in reversed(list(zip(edges, cell, strict=True))):
            behind |= {a} if op != "none" and b in behind else set()
        rows.append([a in before and b in behind for a, b in edges])
    names = ("skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    ops = np.array(cells)
    every = np.stack([ops == name for name in names], 1).astype(float)  # cell, op, edge
    alive = every * np.array(rows)[:, None]
    counts = np.concatenate([every.sum(2), alive.sum(2), alive.any((1, 2))[:, None]], 1)
    places = np.concatenate([every.reshape(len(ops), -1), alive.reshape(len(ops), -1)], 1)
    return Space(
        name="NAS-Bench-201",
        features=np.concatenate([counts, places], 1),
        ms=_latencies("help_nasbench201_latency_ms.npz"),
        known=("1080ti_1", "1080ti_32", "1080ti_256", *OTHERS),
        valid=("titanx_1", "titanx_32", "titanx_256", "gold_6240"),
    )


def fbnet() -> Space:
    """Chains of 22 blocks, nine choices each (Wu et al., FBNet, CVPR 2019, tables 1 and 2).

    Features: multiplications (pointwise, depthwise 3x3 and 5x5), weights, bytes and layers of the
    whole network; how often each choice occurs, in all, per stage and per block.
    """
    folder = provenance.data_folder() / "latency"
    with gzip.open(folder / "help_fbnet_archs.json.gz", "rt") as file:
        choices = np.array(json.load(file))
    stage = np.repeat(np.arange(7), (1, 4, 4, 4, 4, 4, 1))
    blocks = list(_fbnet_blocks())
    work = np.array([[_fbnet_work(block, choice) for choice in range(9)] for block in blocks])
    totals = work[np.arange(22), choices].sum(1)
    every = np.stack([choices == choice for choice in range(9)], 1).astype(float)
    stages = np.stack([every[:, :, stage == s].sum(2) for s in range(7)], 2)
    flat = [part.reshape(len(choices), -1) for part in (every.sum(2), stages, every)]
    return Space(
        name="FBNet",
        features=np.concatenate([totals, *flat], 1),
        ms=_latencies("help_fbnet_latency_ms.npz"),
        known=("1080ti_1", "1080ti_32", "1080ti_64", *OTHERS),
        valid=("titanx_1", "titanx_32", "titanx_64", "gold_6240"),
    )


def _fbnet_blocks() -> Iterator[tuple[int, int, int, int]]:
    """Channels in and out, side of the input, stride."""
    channels, side = 16, 112
    plan = ((16, 1, 1), (24, 4, 2), (32, 4, 2), (64, 4, 2), (112, 4, 1), (184, 4, 2), (352, 1, 1))
    for out, repeats, stride in plan:
        for repeat in range(repeats):
            step = stride if repeat == 0 else 1
            yield channels, out, side, step
            channels, side = out, side // step


def _fbnet_work(block: tuple[int, int, int, int], choice: int) -> tuple[float, ...]:
    """Pointwise, depthwise 3x3 and 5x5 multiplications, weights, elements moved, layers."""
    ins, outs, side, stride = block
    before, after = side**2, (side // stride) ** 2
    if choice == 8:
        if ins == outs and stride == 1:
            return (0.0,) * 6
        return (ins * outs * after, 0.0, 0.0, ins * outs, ins * before + outs * after, 1.0)
    kernel = (3, 5)[choice // 4]
    expansion, groups = ((1, 1), (1, 2), (3, 1), (6, 1))[choice % 4]
    middle = ins * expansion
    depthwise = float(middle * kernel**2 * after)
    return (
        (ins * middle * before + middle * outs * after) / groups,
        depthwise if kernel == 3 else 0.0,
        depthwise if kernel == 5 else 0.0,
        (ins + outs) * middle / groups + middle * kernel**2,
        float((ins + 2 * middle) * before + (2 * middle + outs) * after),
        3.0,
    )


def _latencies(name: str) -> dict[str, np.ndarray]:
    with np.load(provenance.data_folder() / "latency" / name) as file:
        return {device: file[device].astype(float) for device in file.files}


@dataclass(frozen=True)
class Score:
    """One device, one seed: what the models not measured say."""

    rank: float  # Spearman over all models not measured
    rank_help: float  # the same over the models HELP scores on
    mean_error: float
    median_error: float
    covered: float  # share of latencies in the 90 % interval

    @staticmethod
    def of(ms: np.ndarray, found: Adapted, rows: list[int], queries: np.ndarray) -> "Score":
        log_ms, spread = found.log_ms, found.spread
        unseen = np.ones(len(ms), bool)
        unseen[rows] = False
        error = np.abs(np.exp(log_ms) / ms - 1)[unseen]
        queries = queries[np.argsort(ms[queries], kind="stable")]
        queries = queries[len(queries) // 10 : -(len(queries) // 10)]
        queries = queries[unseen[queries]]
        inside = np.abs(np.log(ms) - log_ms) < 1.645 * spread
        return Score(
            rank=float(spearmanr(log_ms[unseen], ms[unseen])[0]),
            rank_help=float(spearmanr(log_ms[queries], ms[queries])[0]),
            mean_error=float(error.mean()),
            median_error=float(np.median(error)),
            covered=float(inside[unseen].mean()),
        )


@dataclass(frozen=True)
class Setting:
    """What is known of the known devices, and which models are measured on the new one."""

    name: str
    models: int  # of each known device; 0 = all
    samples: int
    chosen: bool = True


def run(space: Space, models: int, settings: list[Setting], seed: int) -> tuple[list, float, float]:
    """Scores {device} of every setting with this many known models; seconds to learn, to adapt."""
    count = len(space.features)
    source = np.log(np.stack([space.ms[device] for device in space.known], 1))
    if models:
        unknown = np.random.default_rng(seed).permutation(count)[models:]
        source[unknown] = np.nan
    start = time.perf_counter()
    prior = learn(space.features, source, seed)
    learned, adapted, found = time.perf_counter() - start, [], []
    for setting in settings:
        rows = choose_prior(prior, setting.samples, seed)
        if not setting.chosen:
            rows = [int(r) for r in np.random.default_rng(100 + seed).permutation(count)]
            rows = rows[: setting.samples]
        scores = {}
        for device in (*space.valid, *space.new) if setting is settings[0] else space.new:
            ms = space.ms[device]
            start = time.perf_counter()
            result = adapt_prior(prior, {row: float(ms[row]) for row in rows})
            adapted.append(time.perf_counter() - start)
            scores[device] = Score.of(ms, result, rows, np.arange(*QUERIES[space.name]))
        found.append(scores)
    return found, learned, max(adapted)


def ceiling(space: Space, device: str) -> float:
    """Spearman of a sum over the features fitted to the whole table of the device itself."""
    work = np.column_stack([space.features, np.ones(len(space.features))])
    ms = space.ms[device]
    return float(spearmanr(work @ np.linalg.lstsq(work, ms, rcond=None)[0], ms)[0])


def report(space: Space, settings: list[Setting], seeds: int) -> str:
    """All tables of one search space."""
    scores: dict[Setting, list[dict[str, Score]]] = {setting: [] for setting in settings}
    seconds = []
    for models in sorted({setting.models for setting in settings}):
        same = [setting for setting in settings if setting.models == models]
        for seed in range(seeds if models else 1):  # nothing of a whole table is drawn
            found, learned, adapted = run(space, models, same, seed)
            seconds.append((learned, adapted))
            for setting, one in zip(same, found, strict=True):
                scores[setting].append(one)
            print(space.name, models or "all", "seed", seed, f"{learned:.0f} s", file=sys.stderr)
    worst = [max(column) for column in zip(*seconds, strict=True)]
    return "\n\n".join(
        [
            f"## {space.name}",
            "Spearman over all models not measured, mean over seeds (standard deviation).",
            _ranks(space, settings, scores),
            _verdict(space, settings[0], scores[settings[0]]),
            "Error in ms (MAPE %, median %) and share of latencies in the 90 % interval.",
            _errors(space, settings, scores),
            f"Slowest: {worst[0]:.1f} s to learn from the known devices, {worst[1]:.2f} s per new "
            f"device for {len(space.features):,} models, one core.",
        ]
    )


def _ranks(space: Space, settings: list[Setting], scores: dict) -> str:
    published = HELP[space.name]
    rows = [["HELP, published", 10, *(f"{v:.3f}" for v in published.values())]]
    rows[0].append(f"{np.mean(list(published.values())):.3f}")
    top = [ceiling(space, device) for device in space.new]
    for setting in settings:
        cells = [[one[device].rank for one in scores[setting]] for device in space.new]
        line = [f"{np.mean(c):.4f} ({np.std(c):.4f})" for c in cells]
        rows.append([setting.name, setting.samples, *line, f"{np.mean(cells):.4f}"])
    cells = [[one[device].rank_help for one in scores[settings[0]]] for device in space.new]
    line = [f"{np.mean(c):.4f}" for c in cells]
    name, fitted = f"{settings[0].name}, on HELP's test models", f"{np.mean(top):.4f}"
    rows.append([name, settings[0].samples, *line, f"{np.mean(cells):.4f}"])
    name = "a sum over the features, fitted to the new device's whole table"
    rows.append([name, len(space.features), *(f"{v:.4f}" for v in top), fitted])
    return provenance.table(["setting", "samples", *space.new, "mean"], rows)


def _verdict(space: Space, setting: Setting, scores: list[dict[str, Score]]) -> str:
    means = {d: float(np.mean([one[d].rank for one in scores])) for d in space.new}
    mean = float(np.mean(list(means.values())))
    valid = float(np.mean([[one[d].rank for d in space.valid] for one in scores]))
    below = [
        f"{d} {means[d]:.4f} < {value}" for d, value in HELP[space.name].items() if means[d] < value
    ]
    return (
        f"{setting.name}, {setting.samples} samples: mean {mean:.4f}, must >= "
        f"{MUST[space.name]}: {provenance.passed(mean >= MUST[space.name])}. Below HELP's value: "
        f"{', '.join(below) or 'none'}. Validation devices: {valid:.4f}."
    )


def _errors(space: Space, settings: list[Setting], scores: dict) -> str:
    rows = []
    for setting in settings:
        line = []
        for device in space.new:
            mean, median, covered = (
                100 * np.mean([getattr(one[device], name) for one in scores[setting]])
                for name in ("mean_error", "median_error", "covered")
            )
            line.append(f"{mean:.1f}, {median:.1f}; {covered:.0f}")
        rows.append([setting.name, setting.samples, *line])
    return provenance.table(["setting", "samples", *space.new], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="keep it in docs/benchmarks")
    arguments = parser.parse_args()
    cells = [
        Setting("encoder, 900", 900, 10),
        Setting("encoder, 900, random samples", 900, 10, chosen=False),
        Setting("table, one seed", 0, 10),
        Setting("encoder, 900", 900, 32),
        Setting("table, one seed", 0, 32),
    ]
    chains = [
        Setting("encoder, 4,000", 4000, 10),
        Setting("encoder, 4,000, random samples", 4000, 10, chosen=False),
        Setting("encoder, 900", 900, 10),
        Setting("table, one seed", 0, 10),
        Setting("encoder, 4,000", 4000, 32),
        Setting("table, one seed", 0, 32),
    ]
    body = "\n\n".join(
        [
            __doc__.split("\n\n")[2].strip(),
            report(nasbench201(), cells, arguments.seeds),
            report(fbnet(), chains, arguments.seeds),
        ]
    )
    title = "A new device from ten measurements"
    provenance.publish(__file__, title, body, arguments.write)


if __name__ == "__main__":
    main()
