import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmill.line import charts
from modelmill.line.charts import Axis, Mark

SVG = "{http://www.w3.org/2000/svg}"


def parsed(text: str) -> ET.Element:
    return ET.fromstring(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def test_positions_are_proportional() -> None:
    axis = Axis(-1, 3)
    assert [axis.at(v) for v in (-1, 0, 1, 3)] == [0, 25, 50, 100]
    assert [axis.at(v) for v in (-9, 9)] == [0, 100]
    assert Axis(1, 100, log=True).at(10) == pytest.approx(50)


def test_ticks_are_round_numbers() -> None:
    assert Axis(0, 10).ticks() == [0, 2, 4, 6, 8, 10]
    assert Axis(0.9, 11, log=True).ticks() == pytest.approx([1, 2, 5, 10])
    assert Axis(1e-6, 1e3, log=True).ticks(10) == pytest.approx([10.0**e for e in range(-6, 4)])


@given(st.floats(-1e6, 1e6), st.floats(1e-5, 1e6), st.booleans())
def test_ticks_lie_inside(low: float, length: float, log: bool) -> None:
    axis = Axis(abs(low) + 1e-6, abs(low) + 1e-6 + length, True) if log else Axis(low, low + length)
    ticks = axis.ticks()
    assert all(axis.low * (1 - 1e-9) <= abs(t) if log else math.isfinite(t) for t in ticks)
    assert all(0 <= axis.at(t) <= 100 for t in ticks)
    if not log:
        slack = 1e-9 * max(abs(axis.low), abs(axis.high))
        assert 1 <= len(ticks) <= 7
        assert axis.low - slack <= ticks[0] and ticks[-1] <= axis.high + slack


def test_span_holds_what_is_finite() -> None:
    axis = charts.span([0.0, math.nan, -2.0, math.inf])
    assert axis.low < -2 and 0 < axis.high < 1
    assert charts.span([]).low < charts.span([]).high
    assert charts.span([5.0, 5.0]).low < 5 < charts.span([5.0]).high


def test_a_mark_outside_becomes_an_arrow() -> None:
    marks = [Mark(0.5, "deployed", "in"), Mark(-7, "simulated", "far <below>")]
    root = parsed(charts.differences(Axis(-1, 1), -0.5, marks))
    assert [c.get("cx") for c in root.iter(f"{SVG}circle")] == ["75.00%"]
    assert [t.text for t in root.iter(f"{SVG}text")] == ["◀"]
    assert root.get("aria-label") == "in; far <below>"
    refused = next(root.iter(f"{SVG}rect"))
    assert refused.get("width") == "25.00%"


def test_columns_stand_on_zero() -> None:
    axis = Axis(-10, 40)
    marks = [Mark(v, "quantized", str(v)) for v in (40, 0, -10)]
    texts = [f"{t:g}" for t in axis.ticks()]
    root = parsed(charts.columns(axis, marks, texts, "three", limit=10))
    columns = [r for r in root.iter(f"{SVG}rect") if r.get("class") == "quantized"]
    tops = [float(r.get("y", "")) for r in columns]
    heights = [float(r.get("height", "")) for r in columns]
    assert tops[0] + heights[0] == pytest.approx(tops[2], abs=0.2)  # both end on the zero line
    assert heights[0] == pytest.approx(4 * heights[2], rel=0.01)
    assert heights[1] == 1
    assert [t.text for t in root.iter(f"{SVG}text")] == [*texts, "1", "2", "3"]


def test_durations_draw_every_sample_inside() -> None:
    samples = np.array([1.0, 1.0, 1.0, 3.0, 99.0])
    marks = [Mark(1.0, "p50", "median"), Mark(99.0, "p99", "slow")]
    root = parsed(charts.durations(Axis(0, 4), samples, marks, "float"))
    heights = [float(r.get("height", "")) for r in root.iter(f"{SVG}rect")]
    assert heights == pytest.approx(
        [charts.DURATION, charts.DURATION, charts.DURATION / 3], abs=0.1
    )
    assert next(r.get("width") for r in root.iter(f"{SVG}rect")) == "25.00%"
    assert [t.text for t in root.iter(f"{SVG}text")] == ["▶"]


def test_parts_fill_the_bar() -> None:
    root = parsed(charts.parts([("a", 0.75, "three"), ("b", 0.25, "one")], "bar"))
    assert [(r.get("x"), r.get("width")) for r in root] == [
        ("0.00%", "75.00%"),
        ("75.00%", "25.00%"),
    ]


def test_a_scatter_has_strokes_whiskers_and_links() -> None:
    axis = Axis(1, 100, log=True)
    spots = [
        charts.Spot(10, Mark(10, "a", "x<y"), whisker=(1, 100), link="/m?a=1&b=2"),
        charts.Spot(1, Mark(100, "b", "plain")),
    ]
    texts = [f"{t:g}" for t in axis.ticks()]
    root = parsed(
        charts.scatter(axis, axis, spots, texts, "s", [charts.Stroke("d", (1, 1), (100, 100))])
    )
    lines = {line.get("class"): line for line in root.iter(f"{SVG}line")}
    diagonal, whisker = lines["d"], lines["whisker a"]
    assert (diagonal.get("x1"), diagonal.get("x2")) == ("0.00%", "100.00%")
    assert float(diagonal.get("y1", "")) > float(diagonal.get("y2", ""))
    assert whisker.get("x1") == whisker.get("x2") == "50.00%"
    assert {whisker.get("y1"), whisker.get("y2")} == {diagonal.get("y1"), diagonal.get("y2")}
    (link,) = root.iter(f"{SVG}a")
    assert link.get("href") == "/m?a=1&b=2"
    assert [c.get("cx") for c in root.iter(f"{SVG}circle")] == ["50.00%", "0.00%"]


def test_heaps_are_as_high_as_their_counts() -> None:
    root = parsed(charts.heaps(Axis(0, 4), [0, 1, 2, 4], [10, 0, 5], "float", ["a", "b", "c"]))
    bars = list(root.iter(f"{SVG}rect"))
    assert [(b.get("x"), b.get("width")) for b in bars] == [
        ("0.000%", "25.000%"),
        ("50.000%", "50.000%"),
    ]
    assert float(bars[0].get("height", "")) == 2 * float(bars[1].get("height", ""))
    assert charts.heaps(Axis(0, 1), [0, 1], [0], "float", ["a"]).count("<rect") == 0
