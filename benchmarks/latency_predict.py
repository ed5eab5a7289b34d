"""How well latencies are predicted: unseen families, unseen models, a new platform, intervals.

    python benchmarks/latency_predict.py --db FILE [--workers 2] [--seeds 0] [--steps N]
        [--layers N] [--folds N] [--groups N] [--only family,random,platform,speed] [--write]

FILE is a database that `modelmill latency measure --zoo all` filled; models measured on only some
of the platforms count there. Methods: a line in FLOPs and bytes; gradient-boosted trees on
whole-graph features; a sum of kernels with boosted trees, in the style of nn-Meter; and the
predictor, an ensemble of graph neural networks. A family left out whose operators no other family
has is refused by the predictor: it is listed, and counts neither as right nor as wrong.

MAPE is the mean of |predicted / measured - 1|; Acc the part of models that are off by at most 10 %.
What a held-out model was measured at is brought to the machine's usual state by the reference that
was measured beside it, with the power that the models trained on show; "as measured" is without.
Exit code 1: something that must be reached was not.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from provenance import passed, publish, table

from modelmill import ir
from modelmill.latency.features import features
from modelmill.latency.gnn_train import train
from modelmill.latency.kernels import fit_kernels
from modelmill.latency.predictor import Effort, Predictor, UnknownOperatorError, fit, from_bytes
from modelmill.latency.regress import fit_line, fit_trees
from modelmill.latency.select import choose, work
from modelmill.latency.table import Errors, Table, errors, folds
from modelmill.latency.transfer import adapt
from modelmill.line.latency_query import NAME, read_table
from modelmill.records import Database, Latencies, Measurement, Platform, utc_now

METHODS = ("line", "trees", "kernel sum", "predictor")
SAMPLES = 32
PARTS = 5  # of which one is held out where models are left out at random
FAMILY, RANDOM, TRANSFER = (0.08, 0.75), (0.04, 0.95), 0.08
COVER = (0.87, 0.93)
WARM_MS, COLD_S, BATCH_S = 20.0, 2.0, 10.0
MAIN = "from modelmill.cli.main import main; main(prog_name='modelmill')"


@dataclass(frozen=True)
class Data:
    """What was measured, and how the predictor is trained."""

    models: Table
    platforms: list[Platform]
    effort: Effort
    seeds: tuple[int, ...]
    db: str


@dataclass(frozen=True)
class Intervals:
    """Over models and platforms: part of intervals that hold the truth, median of high / p50 - 1,
    part that is trusted, part that was refused.
    """

    covered: float
    width: float
    trusted: float
    refused: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--db", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, help="of training, in place of the default")
    parser.add_argument("--layers", type=int, help="of message passing, in place of the default")
    parser.add_argument("--folds", type=int, help="networks of the ensemble")
    parser.add_argument("--groups", type=int, help="of families, for the intervals")
    parser.add_argument("--only", default="random,family,platform,speed")
    parser.add_argument("--write", action="store_true", help="keep the tables in docs/benchmarks")
    asked = parser.parse_args()
    effort = Effort(workers=asked.workers)
    given = {name: getattr(asked, name) for name in ("steps", "layers")}
    changed = {name: number for name, number in given.items() if number is not None}
    effort = replace(effort, settings=replace(effort.settings, **changed))
    effort = replace(effort, folds=asked.folds or effort.folds)
    effort = replace(effort, groups=effort.groups if asked.groups is None else asked.groups)
    models, platforms, _ = read_table(Latencies(Database(asked.db)))
    seeds = tuple(int(s) for s in asked.seeds.split(","))
    data = Data(models, platforms, effort, seeds, asked.db)
    parts = {"random": at_random, "family": by_family, "platform": new_platform, "speed": speed}
    counts = ", ".join(f"{f} {models.families.count(f)}" for f in sorted(set(models.families)))
    body, fine = [f"{len(models)} models: {counts}"], True
    for name in asked.only.split(","):
        start = time.perf_counter()
        text, good = parts[name](data)
        body += ["", text, "", f"({time.perf_counter() - start:.0f} s)"]
        fine = fine and good
        print("\n".join(body[-4:]), file=sys.stderr)
    publish(__file__, "Predicted latencies", "\n".join(body), asked.write)
    return 0 if fine else 1


# ---------------------------------------------------------------- held-out models


def at_random(data: Data) -> tuple[str, bool]:
    """One fifth of each family held out, per seed."""
    found = {method: [] for method in METHODS}
    truth, raw, held = [], [], []
    for seed in data.seeds:
        test = folds(data.models, PARTS, seed + 100) == 0
        answers, one, calm = compared(data, ~test, test, seed)
        for method in METHODS:
            found[method].append(answers[method])
        truth.append(calm)
        raw.append(data.models.log_ms[test])
        held.append(one)
    measured = np.concatenate(truth)
    rows, verdict = [], False
    for method in METHODS:
        predicted = np.concatenate(found[method])
        each = [errors(p, m) for p, m in zip(predicted.T, measured.T, strict=True)]
        whole = errors(predicted, measured)
        rows.append((method, *(cell(e) for e in each), cell(whole)))
        verdict = whole.mape <= RANDOM[0] and whole.within >= RANDOM[1]
    each = [errors(p, m) for p, m in zip(predicted.T, np.concatenate(raw).T, strict=True)]
    whole = errors(predicted, np.concatenate(raw))
    rows.append(("predictor, as measured", *(cell(e) for e in each), cell(whole)))
    covered = float(np.mean([h.covered for h in held]))
    good = COVER[0] <= covered <= COVER[1]
    lines = [
        "## Models left out at random",
        "",
        table(("method", *data.models.platforms, "all"), rows),
        "",
        "MAPE / Acc(10 %). " + " ".join(described(h) for h in held),
        "",
        f"- predictor: MAPE at most {RANDOM[0]:.0%}, Acc at least {RANDOM[1]:.0%}: "
        f"{passed(verdict)}",
        f"- 90 % intervals cover {covered:.1%}, {COVER[0]:.0%} .. {COVER[1]:.0%}: {passed(good)}",
    ]
    return "\n".join(lines), verdict and good


def by_family(data: Data) -> tuple[str, bool]:
    """Each family held out as a whole."""
    models, seed = data.models, data.seeds[0]
    rows, means = [], {method: [] for method in METHODS}
    for family in sorted(set(models.families) - {""}):
        test = np.array([f == family for f in models.families])
        answers, held, truth = compared(data, ~test, test, seed)
        each = {method: errors(answers[method], truth) for method in METHODS}
        for method, e in each.items():
            if e.n:
                means[method].append((e.mape, e.within))
        columns = [cell(errors(p, m)) for p, m in zip(answers["predictor"].T, truth.T, strict=True)]
        rows.append((family, *(cell(each[m]) for m in METHODS), *columns, described(held)))
        print(rows[-1], file=sys.stderr, flush=True)
    whole = {m: np.mean(v, axis=0) if v else np.full(2, np.nan) for m, v in means.items()}
    rows.append(("mean", *(f"{a:.1%} / {b:.0%}" for a, b in whole.values())))
    mape, within = whole["predictor"]
    good = bool(mape <= FAMILY[0] and within >= FAMILY[1])
    columns = ("family", *METHODS, *(f"predictor, {p}" for p in models.platforms), "intervals")
    rows[-1] += ("",) * (len(columns) - len(rows[-1]))
    lines = [
        "## A family left out",
        "",
        table(columns, rows),
        "",
        f"- predictor: MAPE at most {FAMILY[0]:.0%}, Acc at least {FAMILY[1]:.0%}, mean over the "
        f"{len(means['predictor'])} families it answers: {passed(good)}",
    ]
    return "\n".join(lines), good


def compared(
    data: Data, train: np.ndarray, test: np.ndarray, seed: int
) -> tuple[dict[str, np.ndarray], Intervals, np.ndarray]:
    """(M, P) log ms by each method for the models of `test`, intervals, and the truth."""
    known, asked = data.models.at(np.flatnonzero(train)), data.models.at(np.flatnonzero(test))
    found = fit(known, data.platforms, data.effort, seed)
    calm = known.calm(found.slopes)
    answers = {
        "line": fit_line(calm).log_ms(asked.graphs),
        "trees": fit_trees(calm, seed).log_ms(asked.graphs),
        "kernel sum": fit_kernels(calm, seed).log_ms(asked.graphs),
    }
    asked = asked.calm(found.slopes)
    answers["predictor"], held = intervals(found, asked, data.platforms)
    return answers, held, asked.log_ms


def intervals(
    found: Predictor, asked: Table, platforms: Sequence[Platform]
) -> tuple[np.ndarray, Intervals]:
    """(M, P) log ms of the predictor, nan where it refuses; and how its intervals do."""
    log_ms = np.full(asked.log_ms.shape, np.nan)
    covered, width, trusted, refused = [], [], [], 0
    for row, graph in enumerate(asked.graphs):
        for column, platform in enumerate(platforms):
            truth = asked.log_ms[row, column]
            if not np.isfinite(truth):
                continue
            try:
                answer = found.predict(graph, platform)
            except UnknownOperatorError:
                refused += 1
                continue
            log_ms[row, column] = np.log(answer.p50_ms)
            covered.append(answer.low_ms <= np.exp(truth) <= answer.high_ms)
            width.append(answer.high_ms / answer.p50_ms - 1)
            trusted.append(answer.trusted)
    n = max(len(covered) + refused, 1)
    if not covered:
        return log_ms, Intervals(np.nan, np.nan, 0.0, refused / n)
    means = (float(np.mean(covered)), float(np.median(width)), float(np.mean(trusted)))
    return log_ms, Intervals(*means, refused / n)


# ---------------------------------------------------------------- a new platform


def new_platform(data: Data) -> tuple[str, bool]:
    """Each platform in turn from a few models that `latency measure --choose` would measure there,
    the others being measured on all; by `latency fit`, and by the prior of `latency.transfer`.
    """
    amounts = np.stack([work(graph) for graph in data.models.graphs])
    calm = data.models.calm(train(data.models, data.effort.settings).slopes)
    there = np.flatnonzero(np.isfinite(calm.log_ms).all(axis=1))
    effort = replace(data.effort, folds=4, groups=0)
    rows, mapes = [], []
    for column, name in enumerate(calm.platforms):
        others = np.delete(calm.log_ms[there], column, axis=1)
        chosen = there[choose(amounts[there], others, SAMPLES)]
        rest = np.setdiff1d(there, chosen)
        found = fit(hidden(calm, rest, column), data.platforms, effort, data.seeds[0])
        graphs = [calm.graphs[i] for i in rest]
        told = errors(found.log_ms_of(graphs)[:, column], calm.log_ms[rest, column])
        places = {int(row): place for place, row in enumerate(there)}
        samples = {places[int(i)]: float(np.exp(calm.log_ms[i, column])) for i in chosen}
        adapted = adapt(amounts[there], others, samples).log_ms
        prior = errors(adapted[[places[int(i)] for i in rest]], calm.log_ms[rest, column])
        rows.append((name, cell(told), cell(prior), told.n))
        print(rows[-1], file=sys.stderr, flush=True)
        mapes.append(told.mape)
    good = bool(mapes) and float(np.mean(mapes)) <= TRANSFER
    lines = [
        f"## A new platform from {SAMPLES} chosen models",
        "",
        table(("platform", "fit with the others", "prior of transfer.py", "models"), rows),
        "",
        f"MAPE / Acc(10 %). Mean MAPE {np.mean(mapes):.1%}, at most {TRANSFER:.0%}: {passed(good)}",
    ]
    return "\n".join(lines), good


def hidden(models: Table, rows: np.ndarray, column: int) -> Table:
    """The table without what is known of these models on one platform."""
    log_ms = models.log_ms.copy()
    log_ms[rows, column] = np.nan
    gone = set(rows.tolist())
    profiles = tuple(
        tuple(None if i in gone and p == column else held for p, held in enumerate(row))
        for i, row in enumerate(models.profiles)
    )
    return replace(models, log_ms=log_ms, profiles=profiles)


# ---------------------------------------------------------------- speed


def speed(data: Data) -> tuple[str, bool]:
    """One prediction in this process and in one of its own, and a thousand.

    The predictor is trained for a few steps only: what it says does not change how long it takes.
    """
    settings = replace(data.effort.settings, steps=20)
    start = time.perf_counter()
    content = fit(data.models, data.platforms, replace(data.effort, settings=settings)).to_bytes()
    fitted = time.perf_counter() - start
    found, platform, seconds = from_bytes(content), data.platforms[0], []
    stored = Latencies(Database(data.db)).models(structures=data.models.structures[:100])
    graphs = [ir.outline(model.skeleton) for model in stored]
    usable = {label for label, n in zip(found.labels, found.seen[:, 0], strict=True) if n}
    graphs = [graph for graph in graphs if set(features(graph).labels) <= usable]
    usual = ir.from_skeleton(stored[0].skeleton)
    for graph in graphs:
        start = time.perf_counter()
        found.predict(graph, platform)
        seconds.append(time.perf_counter() - start)
    cold_s = cold(content, platform, usual)
    warm_ms, thousand_s = 1e3 * float(np.median(seconds)), 1e3 * float(np.mean(seconds))
    goods = warm_ms <= WARM_MS, cold_s <= COLD_S, thousand_s <= BATCH_S
    lines = [
        "## Speed",
        "",
        f"- graph to answer, warm: {warm_ms:.1f} ms (median), at most {WARM_MS:g}: "
        f"{passed(goods[0])}",
        f"- the command in a process of its own: {cold_s:.2f} s, at most {COLD_S:g}: "
        f"{passed(goods[1])}",
        f"- 1,000 models, from the mean: {thousand_s:.1f} s, at most {BATCH_S:g}: "
        f"{passed(goods[2])}",
        f"- the predictor: {len(content) / 1e3:.0f} kB; {fitted:.0f} s with 20 steps of training",
    ]
    return "\n".join(lines), all(goods)


def cold(content: bytes, platform: Platform, graph: ir.Graph) -> float:
    """Median seconds of `modelmill latency predict`, of five processes."""
    with tempfile.TemporaryDirectory() as folder:
        base = str(Path(folder) / "cold.db")
        latencies = Latencies(Database(base))
        fact = Measurement(ir.structure(graph), platform, 1.0, 1.0, 1.0, 1, 0.0, utc_now())
        latencies.add([fact])  # a database without any measurement has no answer
        latencies.save_predictor(NAME, content, {})
        path = Path(folder) / "model.onnx"
        ir.save(graph, path)
        command = [sys.executable, "-c", MAIN, "latency", "predict", str(path)]
        command += ["-t", platform.target, "--precision", platform.precision, "--db", base]
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def cell(e: Errors) -> str:
    return f"{e.mape:.1%} / {e.within:.0%}" if e.n else "refused"


def described(held: Intervals) -> str:
    if np.isnan(held.covered):
        return "refused"
    refused = f", refused {held.refused:.0%}" if held.refused else ""
    return f"cover {held.covered:.0%}, width {held.width:.0%}, trusted {held.trusted:.0%}{refused}"


if __name__ == "__main__":
    sys.exit(main())
