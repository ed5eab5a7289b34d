"""Charts as inline SVG text that follows the width of the page without shrinking its letters.

Horizontal positions are per cent of the width, vertical ones are pixels, and there is no viewBox:
at any width the page lays the same chart out anew, and text keeps its size. Percentages exist for
lines, rectangles, circles and text, so these four are all a chart is made of. Colours are CSS
classes of the page. Every mark carries a `<title>`, which browsers show as a tooltip.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

ROW = 30  # px, height of one row of `differences`
DURATION = 34  # px, height of one row of `durations`
COLUMNS = 150  # px, height of the field of `columns`
SCATTER = 220  # px, height of `scatter`
HEAPS = 110  # px, height of `heaps`
BINS = 100


@dataclass(frozen=True)
class Axis:
    """A range of numbers laid over a length; log needs low > 0. Positions are per cent of it."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        assert self.low < self.high and (self.low > 0 or not self.log), self

    def at(self, value: float) -> float:
        """Position of a value; values outside are put on the edge."""
        value = min(max(value, self.low), self.high)
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return 100 * (value - low) / (high - low)

    def ticks(self, most: int = 7) -> list[float]:
        """Round numbers inside the range, at most so many (on a log axis: decades at least)."""
        if self.log:
            for steps in ((1, 2, 5), (1, 3), (1,)):
                found = [t for t in _decades(self, steps) if self.low <= t <= self.high]
                if len(found) <= most:
                    break
            return found
        magnitude = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        for factor in (1, 2, 5, 10, 20):
            step = factor * magnitude
            first, last = math.ceil(self.low / step), math.floor(self.high / step)
            if last - first < most:
                break
        return [i * step for i in range(first, last + 1)]


def _decades(axis: Axis, steps: Sequence[int]) -> Iterable[float]:
    for exponent in range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1):
        yield from (step * 10.0**exponent for step in steps)


def span(values: Iterable[float], margin: float = 0.08) -> Axis:
    """A linear axis that holds all finite values, with some air at both ends."""
    finite = [v for v in values if math.isfinite(v)] or [0.0]
    air = (max(finite) - min(finite)) * margin or max(abs(finite[0]) * margin, 1e-3)
    return Axis(min(finite) - air, max(finite) + air)


def svg(label: str, height: int, marks: Iterable[str]) -> str:
    """The element; label is read aloud in place of the picture."""
    return (
        f'<svg class="chart" role="img" aria-label="{escape(label)}" width="100%" '
        f'height="{height}">{"".join(marks)}</svg>'
    )


def scale(axis: Axis, texts: Sequence[str], label: str) -> str:
    """The numbers under a chart: one text per tick of the axis."""
    marks = []
    for value, text in zip(axis.ticks(), texts, strict=True):
        x = axis.at(value)
        marks += [_line(x, 0, x, 5, "axis"), _text(x, 18, text, "tick")]
    return svg(f"axis: {label}", 22, [_line(0, 0, 100, 0, "axis"), *marks])


@dataclass(frozen=True)
class Mark:
    """A value to show, how (a CSS class of the page), and in words; radius of a dot in px."""

    value: float
    kind: str
    title: str
    radius: float = 5


def differences(axis: Axis, limit: float, marks: Sequence[Mark]) -> str:
    """One row: where values lie against zero, and against a limit below which they are refused.

    A mark outside the axis becomes an arrow at the edge.
    """
    middle = ROW / 2
    edge = axis.at(limit)
    drawn = [
        f'<rect class="refused" x="0" y="0" width="{edge:.2f}%" height="{ROW}"/>',
        _line(0, middle, 100, middle, "grid"),
        _line(edge, 0, edge, ROW, "limit"),
        _line(axis.at(0), 0, axis.at(0), ROW, "axis"),
    ]
    for mark in marks:
        title = f"<title>{escape(mark.title)}</title>"
        if axis.low <= mark.value <= axis.high:
            x = axis.at(mark.value)
            drawn.append(
                f'<circle class="{mark.kind}" cx="{x:.2f}%" cy="{middle}" r="{mark.radius}">'
                f"{title}</circle>"
            )
        else:
            x, arrow = (0, "◀") if mark.value < axis.low else (100, "▶")
            drawn.append(_text(x, middle + 5, arrow, f"arrow {mark.kind}", title))
    return svg("; ".join(mark.title for mark in marks), ROW, drawn)


def spread(
    axis: Axis, limit: float | None, marks: Sequence[Mark], whisker: tuple[float, float] | None
) -> str:
    """One row: values against zero, a line over the interval of one of them, and a dashed line at a
    limit. Values outside the axis are put on its edge.
    """
    middle = ROW / 2
    drawn = [_line(0, middle, 100, middle, "grid"), _line(axis.at(0), 0, axis.at(0), ROW, "axis")]
    if limit is not None:
        drawn.append(_line(axis.at(limit), 0, axis.at(limit), ROW, "limit"))
    if whisker is not None:
        low, high = (axis.at(end) for end in whisker)
        drawn.append(_line(low, middle, high, middle, "whisker deployed"))
    drawn += [
        f'<circle class="{mark.kind}" cx="{axis.at(mark.value):.2f}%" cy="{middle}" '
        f'r="{mark.radius}"><title>{escape(mark.title)}</title></circle>'
        for mark in marks
    ]
    return svg("; ".join(mark.title for mark in marks), ROW, drawn)


def durations(axis: Axis, samples: np.ndarray, marks: Sequence[Mark], kind: str) -> str:
    """One row: a pale bar from zero to the first mark, and how samples (N,) are spread around it.

    The fullest bin is as high as the row. Marks are lines; one beyond the axis becomes an arrow.
    """
    counts, _ = np.histogram(samples, np.linspace(axis.low, axis.high, BINS + 1))
    width = 100 / BINS
    drawn = [
        f'<rect class="{kind} pale" x="0" y="0" width="{axis.at(marks[0].value):.2f}%" '
        f'height="{DURATION}"/>'
    ]
    for i in np.flatnonzero(counts):
        height = max(1.0, DURATION * counts[i] / counts.max())
        drawn.append(
            f'<rect class="{kind}" x="{i * width:.2f}%" y="{DURATION - height:.1f}" '
            f'width="{width:.2f}%" height="{height:.1f}"/>'
        )
    for mark in marks:
        title, x = f"<title>{escape(mark.title)}</title>", axis.at(mark.value)
        if mark.value <= axis.high:
            drawn.append(_line(x, 0, x, DURATION, mark.kind, title))
        else:
            drawn.append(_text(100, DURATION / 2 + 5, "▶", f"arrow {kind}", title))
    return svg("; ".join(mark.title for mark in marks), DURATION, drawn)


def columns(
    axis: Axis, marks: Sequence[Mark], texts: Sequence[str], label: str, limit: float | None = None
) -> str:
    """One column per mark, in order; texts are those of the axis' ticks; limit is a line across.

    On a linear axis columns stand on zero, on a log axis on its lower end.
    """
    height = COLUMNS

    def y(value: float) -> float:
        return 8 + (height - 8) * (1 - axis.at(value) / 100)

    drawn = []
    for value, text in zip(axis.ticks(), texts, strict=True):
        drawn += [_line(0, y(value), 100, y(value), "grid"), _text(0, y(value) + 4, text, "left")]
    width = 100 / max(len(marks), 1)
    foot = y(axis.low if axis.log else 0)
    for i, mark in enumerate(marks):
        top, bottom = sorted((y(mark.value), foot))
        # The whole height takes the pointer, so that a short column has a tooltip too.
        drawn.append(
            f'<g class="column"><title>{escape(mark.title)}</title>'
            f'<rect class="{mark.kind}" x="{(i + 0.12) * width:.3f}%" y="{top:.1f}" '
            f'width="{0.76 * width:.3f}%" height="{max(bottom - top, 1):.1f}"/>'
            f'<rect class="touch" x="{i * width:.3f}%" y="0" width="{width:.3f}%" '
            f'height="{height}"/></g>'
        )
    drawn.append(_line(0, foot, 100, foot, "axis"))
    if limit is not None:
        drawn.append(_line(0, y(limit), 100, y(limit), "limit"))
    every = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**6) if len(marks) <= 8 * s)
    for i in sorted({0, *range(every - 1, len(marks), every)} if marks else ()):
        drawn.append(_text((i + 0.5) * width, height + 16, str(i + 1), "tick"))
    return svg(label, height + 20, drawn)


@dataclass(frozen=True)
class Spot:
    """A mark in a field: its value along the width, the mark's own is its height; whisker:
    the ends of a line through it; link: where a click on it leads.
    """

    across: float
    mark: Mark
    whisker: tuple[float, float] | None = None
    link: str = ""


@dataclass(frozen=True)
class Stroke:
    """A straight line in a field, from (across, up) to (across, up), in values."""

    kind: str
    start: tuple[float, float]
    end: tuple[float, float]


def scatter(
    across: Axis,
    up: Axis,
    spots: Sequence[Spot],
    texts: Sequence[str],
    label: str,
    strokes: Sequence[Stroke] = (),
) -> str:
    """Dots in a field, the later ones above; texts are those of the ticks of `up`. The scale under
    it is `scale(across, ...)`. The ends of strokes are put on the edge where they lie outside.
    """
    height = SCATTER

    def y(value: float) -> float:
        return 8 + (height - 16) * (1 - up.at(value) / 100)

    drawn = []
    for value, text in zip(up.ticks(), texts, strict=True):
        drawn += [_line(0, y(value), 100, y(value), "grid"), _text(0, y(value) + 4, text, "left")]
    for stroke in strokes:
        (x1, y1), (x2, y2) = stroke.start, stroke.end
        drawn.append(_line(across.at(x1), y(y1), across.at(x2), y(y2), stroke.kind))
    for spot in spots:
        mark, x = spot.mark, across.at(spot.across)
        if spot.whisker is not None:
            low, high = spot.whisker
            drawn.append(_line(x, y(low), x, y(high), f"whisker {mark.kind}"))
        dot = (
            f'<circle class="{mark.kind}" cx="{x:.2f}%" '
            f'cy="{y(mark.value):.1f}" r="{mark.radius}"><title>{escape(mark.title)}</title>'
            "</circle>"
        )
        drawn.append(f'<a href="{escape(spot.link)}">{dot}</a>' if spot.link else dot)
    return svg(label, height, drawn)


def heaps(
    axis: Axis,
    edges: Sequence[float],
    counts: Sequence[int],
    kind: str,
    titles: Sequence[str],
    marks: Sequence[Mark] = (),
) -> str:
    """A histogram that was counted already: counts (N,) between edges (N + 1,); marks are lines.

    The fullest bin is as high as the field, and a bin with anything in it is seen.
    """
    height, most = HEAPS, max(counts, default=0)
    drawn = [_line(0, height, 100, height, "axis")]
    for low, high, count, title in zip(edges, edges[1:], counts, titles, strict=False):
        if count:
            x, tall = axis.at(low), max(2.0, (height - 4) * count / most)
            drawn.append(
                f'<rect class="{kind}" x="{x:.3f}%" y="{height - tall:.1f}" '
                f'width="{axis.at(high) - x:.3f}%" height="{tall:.1f}"><title>{escape(title)}'
                "</title></rect>"
            )
    for mark in marks:
        x, title = axis.at(mark.value), f"<title>{escape(mark.title)}</title>"
        drawn.append(_line(x, 0, x, height, mark.kind, title))
    return svg(f"histogram of {sum(counts):,} values", height, drawn)


def parts(shares: Sequence[tuple[str, float, str]], label: str) -> str:
    """One bar cut into (class, share of 1, title)."""
    drawn, x = [], 0.0
    for kind, share, title in shares:
        drawn.append(
            f'<rect class="{kind}" x="{x:.2f}%" y="0" width="{100 * share:.2f}%" height="16">'
            f"<title>{escape(title)}</title></rect>"
        )
        x += 100 * share
    return svg(label, 16, drawn)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str, inner: str = "") -> str:
    return (
        f'<line class="{kind}" x1="{x1:.2f}%" y1="{y1:.1f}" x2="{x2:.2f}%" y2="{y2:.1f}">'
        f"{inner}</line>"
    )


def _text(x: float, y: float, text: str, kind: str, inner: str = "") -> str:
    """Text at x per cent; near an edge it is anchored so that it stays inside."""
    anchor = "start" if x < 4 else "end" if x > 96 else "middle"
    return (
        f'<text class="{kind}" x="{x:.2f}%" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(text)}{inner}</text>"
    )
