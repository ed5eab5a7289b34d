"""What the page says of the search for bits: the Pareto front, and the bits of every layer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from modelmill.line import charts
from modelmill.line.charts import Mark, Spot
from modelmill.line.store import Json

KIB = 1024
HIGHEST_DB = 70.0  # beyond it lies only the float model


@dataclass(frozen=True)
class Searched:
    """One search: the front as a chart and its axis, in words, and bits of the candidate that was
    kept as (bits in words, names of layers). latency: milliseconds were made small, not bytes.
    """

    latency: bool
    chart: str
    axis: str
    words: str
    layers: tuple[tuple[str, tuple[str, ...]], ...]


def searched(target: str, held: Json | None, kept: int | None = None) -> Searched | None:
    """The section; None without a search.

    Args:
        target: its name.
        held: as JSON: `objective`, and the candidates `pareto`, `chosen`, `uniform` of a `Choice`.
        kept: number of the candidate in `pareto` that was deployed; None: `chosen`.
    """
    if held is None:
        return None
    deployed = held["chosen"] if kept is None else held["pareto"][kept]
    spots = points(held, deployed)
    if not spots:
        return None
    across = charts.span([s["cost"] for s in spots])
    up = charts.span([s["noise_db"] for s in spots])
    unit = spots[0]["unit"]
    drawn = [Spot(s["cost"], Mark(s["noise_db"], *_style(s))) for s in spots]
    texts = [f"{tick:g} dB" for tick in up.ticks()]
    label = f"predicted noise against {unit} of {target}, {len(spots)} assignments of bits"
    scale = charts.scale(across, [f"{tick:g}" for tick in across.ticks()], unit)
    latency = held["objective"] == "latency"
    what = "time" if latency else "size"
    words = (
        f"{len(held['pareto'])} assignments of bits of which none beats another both in {what} and "
        "in predicted noise"
    )
    chart = charts.scatter(across, up, drawn, texts, label)
    return Searched(latency, chart, scale, words, _bits(deployed))


def points(held: Json, deployed: Json) -> list[Json]:
    """The points of the chart as JSON rows: `cost` in `unit`, `noise_db`, `what` ("candidate",
    "uniform", "deployed"), and `words`. Those that are on the field are drawn in this order.
    """
    latency = held["objective"] == "latency"
    rows = [("candidate", c) for c in held["pareto"] if c != deployed]
    rows += [("uniform", held["uniform"]), ("deployed", deployed)]
    found = []
    for what, candidate in rows:
        cost = candidate["ms"] if latency else candidate["bytes"] / KIB
        if cost is None or candidate["noise_db"] > HIGHEST_DB:
            continue
        unit = "ms" if latency else "KiB"
        words = f"{what}: {cost:.3g} {unit}, {candidate['noise_db']:.1f} dB: {in_words(candidate)}"
        row = {"what": what, "cost": cost, "unit": unit, "noise_db": candidate["noise_db"]}
        found.append({**row, "words": words})
    return found


def in_words(candidate: Json) -> str:
    """How many layers have which bits."""
    return ", ".join(
        f"{len(names)} layer{'s' if len(names) > 1 else ''} {bits}"
        for bits, names in _bits(candidate)
    )


def _bits(candidate: Json) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Layers by their bits, the fewest bits first, float last."""
    count = Counter((w, a) for _, w, a in candidate["layers"])
    groups = [
        (f"w{w}a{a}", tuple(n for n, *bits in candidate["layers"] if bits == [w, a]))
        for w, a in sorted(count)
    ]
    if candidate["keep_float"]:
        groups.append(("float", tuple(candidate["keep_float"])))
    return tuple(groups)


def _style(row: Json) -> tuple[str, str, float]:
    """Class of the page, tooltip, radius in px."""
    kinds: dict[str, tuple[str, float]] = {
        "candidate": ("simulated", 4),
        "uniform": ("float", 6),
        "deployed": ("deployed", 7),
    }
    kind, radius = kinds[row["what"]]
    return kind, row["words"], radius
