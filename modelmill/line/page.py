"""The page of a build for people: all that report.json says, in one file with no outside resource.

Words and numbers are made here and in `templates/report.html`, drawings in `charts`. Beside the
report it reads what lies in the folder already: `details/TARGET.json` (raw samples, every tensor,
every kernel) and `manifest.json` (machine, versions, inputs). What is absent is left out.
"""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modelmill.line import charts, figures
from modelmill.line.charts import Axis, Mark
from modelmill.line.figures import Unit
from modelmill.line.findings import WEAK_LAYER_DB
from modelmill.line.options import SEARCHED
from modelmill.line.page_cross import matrix
from modelmill.line.page_precision import Searched, searched
from modelmill.line.page_reconstruct import Learned, learned
from modelmill.line.report import Deployment, Finding, Report
from modelmill.line.store import Json, Store
from modelmill.line.templating import environment

if TYPE_CHECKING:
    import jinja2
from modelmill.records.machine import has_vnni

TEMPLATES = Path(__file__).parent / "templates"
FELL_BACK = "operators fell back to float"
LOUD = frozenset({"deployment failed", "accuracy drop above the limit", FELL_BACK})  # these refuse
TELLING_FLAGS = (
    "sse4_1", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16",
    "amx_int8", "amx_tile", "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip
KINDS = ("integer", "float", "conversion", "other")
HIGHEST_DB = 70.0  # the chart ends here; a value above is as good as lossless at 8 bits


def render(report: Report, store: Store, logs: Mapping[str, Json]) -> str:
    """The page as HTML.

    Args:
        report: the concluded report.
        store: the folder that holds its details and its manifest.
        logs: per target what quantization logged: `layers` and `verdicts`.
    """
    unit = Unit(report.metric)
    templates = templates_for(unit)
    templates.filters.update(
        ms=figures.ms,
        si=figures.si,
        size=figures.size,
        times=figures.times,
        metric=figures.metric,
    )
    templates.filters.update(share=_share, capitalize_first=_capitalized)
    # Beside a failed deployment may lie the details of an earlier build that did not fail.
    details = {
        d.target: _held(store, f"details/{d.target}.json") if d.failed is None else {}
        for d in report.deployments
    }
    manifest = _held(store, "manifest.json")
    return templates.get_template("report.html").render(
        report=report,
        unit=unit,
        headline=headline(report, unit),
        speed=_speed(report),
        measured=_measured(store, report),
        float_bytes=_bytes(store, "artifacts/float.onnx"),
        accuracy=_accuracy(report, unit),
        latency=_latency(report, details),
        sections=[
            _section(d, logs.get(d.target, {}), details[d.target]) for d in report.deployments
        ],
        findings=[(f, tone(f), *next_step(f.next)) for f in sorted(report.findings, key=_urgency)],
        environment=_environment(manifest, report, details),
        recipes=_recipes(manifest),
        again=_again(report),
        cross=matrix(report.cross_agreement),
        version=manifest.get("versions", {}).get("modelmill", ""),
    )


def templates_for(unit: Unit) -> jinja2.Environment:
    """The templates, and what all pages write alike: scores in their unit, and drawn charts."""
    import jinja2

    found = environment(TEMPLATES)
    found.filters.update(score=unit.score, delta=unit.delta)
    found.filters["markup"] = jinja2.filters.do_mark_safe  # only for text made by `charts`
    return found


# Words and numbers


def headline(report: Report, unit: Unit) -> str:
    """Why the build is accepted or not, in one sentence."""
    drops = {d.target: report.drop(d) for d in report.deployments if d.score is not None}
    allowed = f"{unit.amount(report.max_drop)} may be lost"
    base = f"float ({unit.score(report.float_score['score'])} {unit.label})"
    if not report.accepted:
        reasons = [f"{d.target} failed" for d in report.deployments if d.failed is not None]
        far = [
            f"{t} loses {unit.amount(x)}" for t, x in drops.items() if x > report.max_drop + 1e-9
        ]
        if far:
            reasons.append(f"{' and '.join(far)} against {base}, where {allowed}")
        # With --allow-fallback there may be such operators, but no finding that refuses them.
        refused = {f.where for f in report.findings if f.what == FELL_BACK}
        reasons += [
            f"{d.target} runs {_count(len(d.fallback_ops), 'planned integer operator')} in float"
            for d in report.deployments
            if d.target in refused
        ]
        return f"{'; '.join(reasons)}."
    if not drops:
        return "No deployment was asked for."
    worst = max(drops, key=lambda target: drops[target])
    if drops[worst] <= 0:
        return f"On every target the score is not below {base}."
    if len(drops) == 1:
        return f"{worst} loses {unit.amount(drops[worst])} against {base}; {allowed}."
    return f"The largest loss against {base} is {unit.amount(drops[worst])}, on {worst}; {allowed}."


def _speed(report: Report) -> str:
    """What became of the latency, in one sentence; empty if nothing was timed."""
    said, threads = [], 1
    for d in report.deployments:
        if d.speedup is None or d.latency_ms is None:
            continue
        threads = d.latency_ms.threads
        told = {
            "faster": f"{d.speedup.ratio:.2f} times as fast as float on {d.target}",
            "slower": f"slower than float on {d.target} ({d.speedup.ratio:.2f} times as fast)",
        }
        said.append(told.get(d.speedup.verdict, f"not measurably faster or slower on {d.target}"))
    where = "one thread" if threads == 1 else f"{threads} threads"
    return f"On {where} the quantized model is {' and '.join(said)}." if said else ""


def tone(finding: Finding) -> str:
    """`bad` for what refuses a deployment, `note` for a note, `remark` for the rest."""
    if finding.what in LOUD:
        return "bad"
    return "note" if finding.what == "note" else "remark"


def _urgency(finding: Finding) -> int:
    return ("bad", "remark", "note").index(tone(finding))


def next_step(text: str) -> tuple[str, str]:
    """(command, words after it): a step that starts with `modelmill` is a command up to a comma."""
    if not text.startswith("modelmill "):
        return "", text
    command, comma, words = text.partition(", ")
    return command, comma + words


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


# What lies in the folder


def _held(store: Store, name: str) -> Json:
    """A JSON file of the folder; empty if it is absent."""
    path = store.path(name)
    held: Json = json.loads(path.read_bytes()) if path.exists() else {}
    return held


def _bytes(store: Store, name: str) -> int | None:
    path = store.path(name)
    return path.stat().st_size if path.exists() else None


def _measured(store: Store, report: Report) -> str:
    """When the last deployment was measured (the time of its details file)."""
    done = [d.target for d in report.deployments if d.failed is None]
    paths = [store.path(f"details/{target}.json") for target in done]
    times = [path.stat().st_mtime for path in paths if path.exists()]
    return f"{datetime.fromtimestamp(max(times), UTC):%Y-%m-%d %H:%M} UTC" if times else ""


def _again(report: Report) -> str:
    manifest = shlex.quote(str(Path(report.folder) / "manifest.json"))
    return f"modelmill build --manifest {manifest} -o NEW"


def _environment(
    manifest: Json, report: Report, details: Mapping[str, Json]
) -> list[tuple[str, str]]:
    """What the numbers depend on, as (name, words)."""
    machine = manifest.get("machine", {})
    found: list[tuple[str, str]] = []
    if machine:
        flags = [flag for flag in TELLING_FLAGS if flag in machine["flags"]]
        vnni = "with" if has_vnni(machine["flags"]) else "without"
        memory = f", {machine['memory_mib'] / 1024:.1f} GiB memory" if machine["memory_mib"] else ""
        found += [
            (
                "Processor",
                f"{machine['cpu']} ({machine['arch']}), {machine['cores']} cores{memory}",
            ),
            ("Instructions", f"{' '.join(flags) or 'unknown'} ({vnni} VNNI)"),
            ("System", f"{machine['os']}, Python {machine['python']}"),
        ]
    asked = manifest.get("options", {})
    if asked.get("flags") is not None:
        stated = [flag for flag in TELLING_FLAGS if flag in asked["flags"]]
        found.append(("Planned for", f"a processor with {' '.join(stated) or 'none of the above'}"))
    timed = next((d for d in report.deployments if d.latency_ms is not None), None)
    if timed is not None and timed.latency_ms is not None:
        latency = timed.latency_ms
        warmup = details[timed.target].get("warmup", {}).get("quantized")
        found.append(
            (
                "Timing",
                f"{_count(latency.threads, 'thread')}, batch {latency.batch}, float and int8 "
                f"in turns on one engine{f' after {warmup} runs of warm-up' if warmup else ''}; "
                "interval of the speed-up: 95 %, block bootstrap",
            )
        )
    inputs = manifest.get("inputs", {})
    for name in ("calibration", "evaluation"):
        if name in inputs:
            held = inputs[name]
            words = f"{held['images']:,} images, sha256 {held['sha256'][:16]}…"
            found.append((f"{name.capitalize()} data", words))
    versions = manifest.get("versions", {})
    if versions:
        found.append(("Versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    return found


def _recipes(manifest: Json) -> list[tuple[str, str]]:
    """The steps of quantization in words, and for each target that took others those."""
    base = manifest.get("recipe", {})
    attempts = manifest.get("attempts", {}).items()
    others = [(f"Recipe of {name}", a["recipe"]) for name, a in attempts if a["recipe"] != base]
    found = [(name, _in_words(steps)) for name, steps in (("Recipe", base), *others)]
    return [(name, words) for name, words in found if words]


def _in_words(recipe: Json) -> str:
    words = []
    for step, options in recipe.items():
        if not isinstance(options, dict):  # left out, or no step: the effort is in the step's own
            continue
        listed = ", ".join(f"{k} {v}" for k, v in options.items())
        words.append(f"{step.replace('_', ' ')}{f' ({listed})' if listed else ''}")
    return "; ".join(words)


# Charts


@dataclass(frozen=True)
class Row:
    """One row of a chart: its name, and its values in words, each with the class of its mark."""

    name: str
    words: tuple[tuple[str, str], ...]
    svg: str


@dataclass(frozen=True)
class Chart:
    """Rows over one axis."""

    rows: tuple[Row, ...]
    scale: str


def _accuracy(report: Report, unit: Unit) -> Chart | None:
    """Deployed and simulated scores as differences from float.

    The simulation saw the first images only, so its difference from the engine on these same images
    is put beside the engine's difference from float on all.
    """
    scored = [(d, d.score) for d in report.deployments if d.score is not None]
    if not scored:
        return None
    drops = [-report.drop(d) for d, _ in scored]
    axis = charts.span([0.0, -report.max_drop, report.max_drop / 4, *drops])
    rows = []
    for (d, score), drop in zip(scored, drops, strict=True):
        if score.deployed is None or score.deployed_same is None:
            simulated = f"simulated {unit.score(score.simulated)} ({unit.delta(drop)})"
            ring = [Mark(drop, "simulated", f"{d.target}: {simulated}", radius=9)]
            svg = charts.differences(axis, -report.max_drop, ring)
            rows.append(Row(d.target, (("simulated", simulated),), svg))
            continue
        apart = score.simulated - score.deployed_same
        deployed = f"deployed {unit.score(score.deployed)} ({unit.delta(drop)})"
        simulated = f"simulated {unit.score(score.simulated)} (Δ {unit.delta(apart)})"
        # The simulation is a ring around the dot, so that both are seen where they agree.
        marks = [
            Mark(drop, "deployed", f"{d.target}: {deployed}"),
            Mark(drop + apart, "simulated", f"{d.target}: {simulated}", radius=9),
        ]
        words = (("deployed", deployed), ("simulated", simulated))
        rows.append(Row(d.target, words, charts.differences(axis, -report.max_drop, marks)))
    texts = [unit.delta(t) for t in axis.ticks()]
    label = f"{unit.label} minus float{', points' if unit.percent else ''}"
    return Chart(tuple(rows), charts.scale(axis, texts, label))


def _latency(report: Report, details: Mapping[str, Json]) -> Chart | None:
    """Raw samples of float and quantized per engine, on one axis from zero."""
    samples: list[tuple[str, str, np.ndarray]] = []
    for d in report.deployments:
        held = details[d.target].get("latency_samples_ms", {})
        for kind in ("float", "quantized"):
            flat = np.array([t for block in held.get(kind, ()) for t in block])
            if flat.size:
                samples.append((d.target, kind, flat))
    if not samples:
        return None
    # A few slow inferences must not press everything else against the left edge.
    quantiles = [np.quantile(flat, (0.5, 0.9, 0.99)).tolist() for _, _, flat in samples]
    axis = Axis(0.0, 1.08 * min(max(q[2] for q in quantiles), 2 * max(q[0] for q in quantiles)))
    rows = []
    for (target, kind, flat), values in zip(samples, quantiles, strict=True):
        named = list(zip(("p50", "p90", "p99"), values, strict=True))
        marks = [Mark(v, name, f"{target} {kind}: {name} {figures.ms(v)} ms") for name, v in named]
        words = f"{' · '.join(f'{name} {figures.ms(v)}' for name, v in named)} ms"
        svg = charts.durations(axis, flat, marks, kind)
        rows.append(Row(f"{target} {kind}", ((kind, words),), svg))
    return Chart(tuple(rows), charts.scale(axis, [f"{t:g}" for t in axis.ticks()], "ms"))


@dataclass(frozen=True)
class Section:
    """What one target adds below the summary; parts without data are empty."""

    deployment: Deployment
    quality: str
    quality_words: str
    quality_n: int
    codes: str
    codes_words: str
    codes_n: int
    kernels: str
    kernels_words: tuple[tuple[str, str], ...]
    executed: Sequence[Json]
    counts: str
    nodes: tuple[tuple[Json, Json, Json], ...]  # verdict, layer, tensor
    learned: Learned | None
    searched: Searched | None


def _section(d: Deployment, log: Json, details: Json) -> Section:
    layers, tensors = log.get("layers", []), details.get("tensors", [])
    verdicts = log.get("verdicts", [])
    by_node = {layer["node"]: layer for layer in layers}
    codes_by_node = {tensor["node"]: tensor for tensor in tensors}
    nodes = tuple(
        (v, by_node.get(v["node"], {}), codes_by_node.get(v["node"], {})) for v in verdicts
    )
    runs = Counter(v["runs"] for v in verdicts)
    words = {"integer": "on integers", "fused": "fused into one of these", "float": "in float"}
    counts = ", ".join(f"{runs[kind]} {text}" for kind, text in words.items() if runs[kind])
    executed = details.get("executed", [])
    return Section(
        d, *_quality(d.target, layers), len(layers), *_codes(d.target, tensors), len(tensors),
        *_kernels(d.target, executed), executed, counts, nodes,
        learned(d.target, log.get("reconstruction")), _searched(d, log.get("search")),
    )  # fmt: skip


def _searched(d: Deployment, held: Json | None) -> Searched | None:
    """The search for bits, where what is deployed came out of it, or is where it started."""
    if held is not None and held["kept"] is None:
        held = {**held, "chosen": held["uniform"]} if d.precision == SEARCHED else None
    return searched(d.target, held, held["kept"] if held is not None else None)


def _quality(target: str, layers: Sequence[Json]) -> tuple[str, str]:
    """The SQNR chart, and its worst values in words."""
    known = [layer for layer in layers if math.isfinite(layer["sqnr_db"])]
    if not known:
        return "", ""
    values = [float(layer["sqnr_db"]) for layer in known]
    axis = Axis(min(0.0, *values), max(2 * WEAK_LAYER_DB, min(max(values) * 1.05, HIGHEST_DB)))
    marks = [
        Mark(
            float(layer["sqnr_db"]),
            "weak" if layer["sqnr_db"] < WEAK_LAYER_DB else "quantized",
            f"{_named(layer)}: {layer['sqnr_db']:.1f} dB",
        )
        for layer in known
    ]
    worst = sorted(known, key=lambda layer: float(layer["sqnr_db"]))[:3]
    listed = ", ".join(f"{_named(layer)} {layer['sqnr_db']:.1f} dB" for layer in worst)
    words = f"Median {np.median(values):.1f} dB; lowest: {listed}."
    label = f"SQNR per quantized value of {target}. {words}"
    texts = [f"{t:g}" for t in axis.ticks()]
    return charts.columns(axis, marks, texts, label, WEAK_LAYER_DB), words


def _codes(target: str, tensors: Sequence[Json]) -> tuple[str, str]:
    """The chart of codes that differ, log scale, and the first in words; no chart if none."""
    shares = [t["mismatched"] / max(t["elements"], 1) for t in tensors]
    apart = [share for share in shares if share > 0]
    if not apart:
        total = sum(t["elements"] for t in tensors)
        return "", f"All {total:,} codes are those of the simulation." if total else ""
    # Half a decade of air below the smallest share keeps its column visible.
    low, high = math.log10(min(apart)) - 0.5, math.log10(max(apart)) + 0.1
    axis = Axis(10**low, 10**high, log=True)
    marks = [
        Mark(
            share or axis.low,
            "apart" if share else "equal",
            f"{_named(t)}: {t['mismatched']:,} of {t['elements']:,} codes differ"
            + (f", by at most {t['max_codes']}" if share else ""),
        )
        for t, share in zip(tensors, shares, strict=True)
    ]
    first = next(t for t in tensors if t["mismatched"])
    words = (
        f"{len(apart)} of {len(tensors)} tensors differ somewhere; in graph order the first is "
        f"{_named(first)}: {_share(first['mismatched'], first['elements'])}."
    )
    texts = [f"{100 * t:g} %" for t in axis.ticks()]
    return charts.columns(axis, marks, texts, f"codes that differ on {target}. {words}"), words


def _named(row: Json) -> str:
    """The node and its operator, or the value where it is an input of the graph."""
    return f"{row['node']} ({row['op']})"


def _share(part: int, whole: int) -> str:
    """1 in 953: a share that reads at any size."""
    return f"1 code in {whole / part:,.0f}" if part * 2 <= whole else f"{100 * part / whole:.0f} %"


def _kernels(target: str, executed: Sequence[Json]) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Where one inference spends its time: a bar by kind of kernel, and its legend."""
    total = sum(op["us"] or 0.0 for op in executed)
    if not total > 0:
        return "", ()
    shares, words = [], []
    for kind in KINDS:
        ops = [op["us"] or 0.0 for op in executed if op["kind"] == kind]
        if ops:
            text = f"{kind} {100 * sum(ops) / total:.0f} % ({_count(len(ops), 'kernel')})"
            shares.append((f"kind-{kind}", sum(ops) / total, text))
            words.append((f"kind-{kind}", text))
    label = f"time of the kernels of {target}: {', '.join(text for _, text in words)}"
    return charts.parts(shares, label), tuple(words)
