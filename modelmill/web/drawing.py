"""The charts of the pages, drawn by `line.charts` from what their JSON says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jinja2.filters import do_mark_safe

from modelmill.line import charts
from modelmill.line.charts import Axis, Mark, Spot, Stroke
from modelmill.line.figures import Unit, ms

Json = dict[str, Any]
COLOURS = 8
MOST_DOTS = 600  # in one chart; the page says how many of them were left out
MOST_WHISKERS = 150
MOST_SAMPLES = 1_500


def colour(index: int) -> str:
    """The CSS class of the index-th series; the ninth looks like the first."""
    return f"s{index % COLOURS}"


def thinned(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many, evenly from all."""
    if len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]


def heaps(held: Json, unit: str) -> str:
    """A histogram {edges, counts} over a log axis; unit "ms", or "%" of what is a fraction."""
    edges, counts = held["edges"], held["counts"]
    if not counts:
        return ""

    def words(value: float) -> str:
        return f"{100 * value:.2g} %" if unit == "%" else f"{ms(value)} ms"

    axis = Axis(edges[0], edges[-1], log=True)
    titles = [
        f"{words(low)} to {words(high)}: {count:,}"
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
    factor = 100 if unit == "%" else 1
    texts = [f"{factor * t:g}" for t in axis.ticks()]
    return _field(charts.heaps(axis, edges, counts, "heap", titles), axis, texts, unit, wide=False)


def strip(measurement: Json) -> str:
    """How the samples of one measurement are spread, with p50, p90 and p99."""
    flat = np.array([t for block in measurement["samples_ms"] for t in block])
    if not flat.size:
        return ""
    p50, p90, p99 = (measurement[f"{p}_ms"] for p in ("p50", "p90", "p99"))
    # A few slow samples must not press all others together.
    axis = charts.span([min(float(flat.min()), p50), min(p99, 3 * p50)], 0.1)
    bins = min(charts.BINS, round(4 * math.sqrt(flat.size)))
    counts, edges = np.histogram(flat, np.linspace(axis.low, axis.high, bins + 1))
    pairs = zip(edges, edges[1:], counts, strict=False)
    titles = [f"{low:.4g} to {high:.4g} ms: {count:,}" for low, high, count in pairs]
    named = (("p50", p50), ("p90", p90), ("p99", p99))
    marks = [Mark(v, name, f"{name} {ms(v)} ms") for name, v in named if v <= axis.high]
    texts = [f"{t:g}" for t in axis.ticks()]
    drawn = charts.heaps(axis, edges.tolist(), counts.tolist(), "heap", titles, marks)
    beyond = int((flat > axis.high).sum())
    label = f"ms; slower, beyond the right edge: {beyond:,}" if beyond else "ms"
    return _field(drawn, axis, texts, label, wide=False)


def course(measurement: Json) -> str:
    """Samples in the order they were taken; lines part the blocks."""
    blocks = [block for block in measurement["samples_ms"] if block]
    flat = [(i, t) for i, t in enumerate((t for block in blocks for t in block), 1)]
    if len(flat) < 2:
        return ""
    low, high = min(t for _, t in flat), max(t for _, t in flat)
    up = _fit(low, high)
    across = Axis(0.0, len(flat) + 1.0)
    ends = np.cumsum([len(block) for block in blocks])[:-1].tolist()
    strokes = [Stroke("grid", (e + 0.5, up.low), (e + 0.5, up.high)) for e in thinned(ends, 60)]
    spots = [
        Spot(i, Mark(t, "sample", f"sample {i:,}: {ms(t)} ms", 2))
        for i, t in thinned(flat, MOST_SAMPLES)
    ]
    label = f"{len(flat):,} samples in {len(blocks)} blocks, in the order they were taken"
    drawn = charts.scatter(across, up, spots, _numbers(up), label, strokes)
    return _field(drawn, across, [f"{t:,.0f}" for t in across.ticks()], "samples")


def predicted(platform: Json, index: int) -> str:
    """Measured (across) and predicted (up) of one platform, with the lines of 0 and 10 % error."""
    points = platform["points"]
    if not points:
        return ""
    values = [p[k] for p in points for k in ("measured_ms", "predicted_ms")]
    axis = _fit(min(values), max(values))
    ends = ((axis.low, axis.low), (axis.high, axis.high))
    strokes = [Stroke("diagonal", *ends)]
    for factor in (0.9, 1.1):
        low, high = axis.low / min(factor, 1), axis.high / max(factor, 1)
        strokes.append(Stroke("tenth", (low, low * factor), (high, high * factor)))
    shown = thinned(points, MOST_DOTS)
    whiskers = len(shown) <= MOST_WHISKERS
    spots = [
        Spot(
            p["measured_ms"],
            Mark(p["predicted_ms"], colour(index), _pair(p), 4),
            (p["low_ms"], p["high_ms"]) if whiskers and p["low_ms"] is not None else None,
            f"/models/{p['model']}",
        )
        for p in shown
    ]
    label = f"predicted over measured latency on {platform['platform_name']}, both in ms"
    drawn = charts.scatter(axis, axis, spots, _numbers(axis), label, strokes)
    return _field(drawn, axis, _numbers(axis), "ms measured")


def _pair(point: Json) -> str:
    name = point["name"] or point["model"][:12]
    between = (
        f" ({ms(point['low_ms'])} to {ms(point['high_ms'])})" if point["low_ms"] is not None else ""
    )
    return (
        f"{name}: predicted {ms(point['predicted_ms'])} ms{between}, "
        f"measured {ms(point['measured_ms'])} ms, {100 * point['error']:+.1f} %"
    )


def series(points: Iterable[Json]) -> dict[str, str]:
    """The colour of each target among the points of an accuracy chart."""
    names = sorted({p["target"] for p in points})
    return {name: colour(i) for i, name in enumerate(names)}


def accuracies(metric: Json) -> str:
    """Score over latency; a ring is the float model of the deployment in the same colour."""
    points, unit = thinned(metric["points"], MOST_DOTS), Unit(metric["metric"])
    if not points:
        return ""
    colours = series(metric["points"])
    times = [p[k] for p in points for k in ("p50_ms", "float_p50_ms") if p[k]]
    across = _fit(min(times), max(times))
    up = charts.span([p[k] for p in points for k in ("score", "float_score")])
    rings: dict[tuple[str, str, float], Spot] = {}
    dots = []
    for p in points:
        kind = colours[p["target"]]
        link = f"/builds/{p['build']}"
        said = f"{p['name']} on {p['target']}"
        if p["float_p50_ms"]:
            words = f"{said}, float: {unit.score(p['float_score'])}, {ms(p['float_p50_ms'])} ms"
            ring = Mark(p["float_score"], f"hollow {kind}", words, 5)
            place = (p["name"], p["target"], p["float_p50_ms"])
            rings[place] = Spot(p["float_p50_ms"], ring, None, link)
        words = f"{said}, {p['precision']}: {unit.score(p['score'])}, {ms(p['p50_ms'])} ms"
        dots.append(Spot(p["p50_ms"], Mark(p["score"], kind, words, 5), None, link))
    texts = [unit.score(t) for t in up.ticks()]
    label = f"{unit.label} over latency of {len(points)} deployments"
    drawn = charts.scatter(across, up, [*rings.values(), *dots], texts, label)
    return _field(drawn, across, _numbers(across), "ms")


def _fit(low: float, high: float) -> Axis:
    """An axis with some air around positive numbers: log where they differ much."""
    if high < 4 * low:
        return charts.span([low, high])
    air = (high / low) ** 0.06
    return Axis(low / air, high * air, log=True)


def _numbers(axis: Axis) -> list[str]:
    return [f"{t:g}" for t in axis.ticks()]


def _field(drawn: str, axis: Axis, texts: Sequence[str], label: str, wide: bool = True) -> str:
    """A chart over its scale, with room on the left for the numbers of its height."""
    inner = f'{drawn}{charts.scale(axis, texts, label)}<p class="unit">{label}</p>'
    return do_mark_safe(f'<div class="field wide">{inner}</div>' if wide else f"<div>{inner}</div>")
