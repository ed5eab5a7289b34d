"""What the page says of how a target was quantized: the attempts, and what was learned in each unit
of a reconstruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelmill.line import charts
from modelmill.line.charts import Axis, Mark
from modelmill.line.store import Json


@dataclass(frozen=True)
class Learned:
    """One reconstruction: its units as rows, a chart of their losses, and what is said of all."""

    rows: Sequence[Json]
    chart: str
    words: str
    notes: tuple[str, ...]


def learned(target: str, held: Json | None) -> Learned | None:
    """The section; None where weights are rounded to the nearest."""
    if held is None or not held["units"]:
        return None
    units = held["units"]
    kept = [unit["unit"] for unit in units if unit["kept"]]
    words = (
        f"{held['algorithm']} in {len(units)} units, {held['seconds']:.0f} s; values kept in "
        f"memory: at most {held['cache_mib']:.0f} MiB"
    )
    if held["spilled_mib"]:
        words += f", {held['spilled_mib']:.0f} MiB on disk"
    if kept:
        words += f". {len(kept)} became worse and kept plain rounding"
    return Learned(units, _chart(target, units), f"{words}.", tuple(held["notes"]))


def _chart(target: str, units: Sequence[Json]) -> str:
    """A column for each unit: the loss that is left, of what plain rounding loses."""
    shares = [_share(unit) for unit in units]
    axis = Axis(0.0, 1.1 * max(1.0, *shares))
    marks = [
        Mark(
            share,
            "weak" if unit["kept"] else "quantized",
            f"{unit['unit']}: {100 * share:.0f} % of the loss of plain rounding",
        )
        for unit, share in zip(units, shares, strict=True)
    ]
    texts = [f"{100 * tick:.0f} %" for tick in axis.ticks()]
    label = f"loss that is left in each unit of {target}, of that of plain rounding"
    return charts.columns(axis, marks, texts, label, 1.0)


def _share(unit: Json) -> float:
    before, after = unit["loss_before"], unit["loss_after"]
    return after / before if before and after is not None else 1.0
