"""What the pages say is what is in the database."""

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.records import Database, Latencies, Measurement, Platform
from modelmill.web import content, drawing, tally
from modelmill.web.reader import Reader
from modelmill.web.tally import Tally

MODELS, MORE, PAGE = 54, 20, 50  # as in conftest and in content


@pytest.fixture
def said(client):
    """said("/models", q="x") -> the JSON of that page"""

    def ask(path, **query):
        answer = client.get(f"{path}.json", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return ask


def walked(said, client, path, name, **query):
    """All rows of a list, page by page."""
    found, held = [], said(path, **query)
    while True:
        assert len(held[name]) <= PAGE
        found += held[name]
        if held["next"] is None:
            return found
        place, _, rest = held["next"].partition("?")
        held = client.get(f"{place}.json?{rest}").json()


def test_counts(said):
    home = said("/index")
    assert home["counts"] == {
        "models": MODELS, "platforms": 3, "measurements": MODELS + MORE + 1, "builds": 2,
        "records": 15 + 6 + 6 + 4,
    }  # fmt: skip
    assert [p["measurements"] for p in home["platforms"]] == [MODELS, MORE, 1]
    assert len(home["measurements"]) == 10


@pytest.mark.parametrize("sort", ["name", "-name"])
def test_models_come_in_order_and_once(said, client, sort):
    rows = walked(said, client, "/models", "models", sort=sort)
    names = [m["name"] for m in rows]
    assert len({m["structure"] for m in rows}) == MODELS
    assert names == sorted(names, reverse=sort == "-name")
    assert {m["measurements"] for m in rows} == {1, 2, 3}  # one was measured on all platforms


def test_models_by_family_and_words(said, client):
    vgg = walked(said, client, "/models", "models", family="vgg")
    assert {m["family"] for m in vgg} == {"vgg"} and len(vgg) == MODELS // 4
    assert [m["name"] for m in said("/models", q="NET-04")["models"]] == [
        "resnet-040", "resnet-044", "resnet-048", "squeezenet-042", "squeezenet-046",
    ]  # fmt: skip
    assert said("/models", q="%")["models"] == []  # a percent sign is no wildcard
    assert said("/models", q="' OR 1=1 --")["models"] == []


def test_a_model(said):
    held = said(f"/models/{5:064x}")
    assert held["model"]["facts"]["macs"] == 6e6
    assert sorted(m["p50_ms"] for m in held["measurements"]) == pytest.approx([0.3, 0.6])
    (prediction,) = held["predictions"]
    assert prediction["predicted_ms"] == pytest.approx(0.63)
    assert prediction["measured_ms"] == pytest.approx(0.6)
    assert prediction["error"] == pytest.approx(0.05)
    other = said(f"/models/{1:064x}")["predictions"]
    assert [p["measured_ms"] is None for p in other] == [True, False]  # newest first


def test_a_platform(said, client):
    by_name = {p["name"]: p for p in said("/platforms")["platforms"]}
    assert list(by_name) == ["openvino_cpu float", "ort_cpu float", "ort_cpu w8a8"]
    platform = by_name["ort_cpu float"]
    assert platform["measurements"] == MODELS
    assert platform["about_median_ms"] == pytest.approx((MODELS + 1) / 20, rel=0.06)
    assert platform["about_noise_p90"] == pytest.approx(0.01 + 0.9 * MODELS / 10_000, rel=0.06)
    path = f"/platforms/{platform['key']}"
    held = said(path)
    assert sum(held["latencies_ms"]["counts"]) == sum(held["noise"]["counts"]) == MODELS
    newest = walked(said, client, path, "measurements")
    assert [m["id"] for m in newest] == sorted((m["id"] for m in newest), reverse=True)
    for sort, falling in (("fastest", False), ("slowest", True)):
        times = [m["p50_ms"] for m in walked(said, client, path, "measurements", sort=sort)]
        assert times == sorted(times, reverse=falling) and len(times) == MODELS


def test_measurements(said, client):
    rows = walked(said, client, "/measurements", "measurements")
    assert len({m["id"] for m in rows}) == len(rows) == MODELS + MORE + 1
    key = said("/platforms")["platforms"][1]["key"]
    query = {"platform": key, "family": "resnet", "sort": "fastest"}
    some = walked(said, client, "/measurements", "measurements", **query)
    assert {(m["platform"], m["family"]) for m in some} == {(key, "resnet")}
    assert len(some) == 14


def test_a_measurement(said, client):
    by_id = {m["id"]: m for m in walked(said, client, "/measurements", "measurements")}
    kept = [id for id, m in by_id.items() if int(m["model"], 16) < 12]
    held = said(f"/measurements/{kept[0]}")
    assert [len(block) for block in held["measurement"]["samples_ms"]] == [40] * 8
    assert held["platform"]["key"] == held["measurement"]["platform"]
    page = client.get(f"/measurements/{kept[0]}").text
    assert page.count('class="sample"') == 320 and 'class="heap"' in page
    without = next(id for id in by_id if id not in kept)
    assert "were not kept" in client.get(f"/measurements/{without}").text


def test_the_name_of_a_prediction_is_that_under_which_it_is_stored():
    from modelmill.line.latency_query import PREDICTED

    assert content.PREDICTED == PREDICTED


def test_predictions(said, client):
    """5 % off ten times, made before the measurement; 30 % off four times, made after it."""
    held = said("/predictions")["platforms"]
    ort, openvino = held
    assert ort["all"] == {
        "n": 14, "mape": pytest.approx((10 * 0.05 + 4 * 0.3) / 14), "acc10": pytest.approx(10 / 14),
        "coverage": pytest.approx(10 / 14),
    }  # fmt: skip
    assert ort["blind"] == {"n": 10, "mape": pytest.approx(0.05), "acc10": 1.0, "coverage": 1.0}
    assert openvino["all"]["n"] == 0 and openvino["not_measured"] == 1
    page = client.get("/predictions").text
    assert page.count("<circle") == 14 and page.count('class="tenth"') == 2


def test_accuracy(said, client):
    (metric,) = said("/accuracy")["metrics"]
    assert metric["metric"] == "top1"
    assert [p["target"] for p in metric["points"]] == ["ort_cpu", "ort_cpu"]
    assert {(p["score"], p["p50_ms"], p["float_p50_ms"]) for p in metric["points"]} == {
        (0.89, 0.5, 1.0)
    }
    (one,) = said("/accuracy", model="elsewhere")["metrics"][0]["points"]
    assert one["build"] == "c0" * 8
    assert said("/accuracy", model="none")["metrics"] == []
    assert client.get("/accuracy").text.count('class="hollow s0"') == 2


def test_builds(said, client):
    held = said("/builds")
    assert {b["id"] for b in held["builds"]} >= {"b0" * 8} and len(held["builds"]) == 2
    assert [b["id"] for b in held["elsewhere"]] == ["c0" * 8]
    assert [b["folder"] for b in held["broken"]] == ["broken"]
    one = said(f"/builds/{'b0' * 8}")
    assert one["has_page"] and len(one["records"]) == 6 and one["report"]["float"] == 0.9
    assert said(f"/builds/{'c0' * 8}")["report"] is None
    report = client.get(f"/builds/{'b0' * 8}/report.html")
    assert report.text.endswith("hi") and "sandbox" in report.headers["content-security-policy"]
    without = next(b["id"] for b in held["builds"] if b["id"] != "b0" * 8)
    assert "report.html" not in client.get(f"/builds/{without}").text
    assert client.get(f"/builds/{without}/report.html").status_code == 404


def test_search(said):
    assert [m["name"] for m in said("/search", q="vgg-00")["models"]] == ["vgg-007"]
    assert said("/search", q="vgg")["families"] == ["vgg"]
    assert [p["name"] for p in said("/search", q="w8a8 ort")["platforms"]] == ["ort_cpu w8a8"]
    assert [m["structure"] for m in said("/search", q=f"{0x1F:064x}"[:64])["models"]] == [
        f"{0x1F:064x}"
    ]
    assert [b["id"] for b in said("/search", q="b0b0")["builds"]] == ["b0" * 8]
    nothing = said("/search", q="  ")
    assert not any(nothing[k] for k in ("models", "families", "platforms", "builds"))


def test_words_of_others_are_shown_as_words(client, said):
    hostile = next(m for m in said("/models", q="<script>")["models"])
    for path in (
        f"/models/{hostile['structure']}", "/models?q=<script>", "/search?q=<script>alert(1)",
        "/builds", f"/builds/{'b0' * 8}", "/accuracy", "/<script>", "/models/<script>",
        "/measurements?platform=<script>",
    ):  # fmt: skip
        page = client.get(path).text
        assert "<script" not in page and "&lt;script&gt;" in page, path


TIMES = st.lists(st.tuples(st.sampled_from("ab"), st.floats(1e-3, 1e4)), min_size=1, max_size=30)


@settings(max_examples=25)
@given(TIMES, TIMES)
def test_a_tally_is_a_count_of_all(first, second):
    database = Database("sqlite://")
    latencies, kept = Latencies(database), Tally(database)
    for number, part in enumerate((first, second)):
        latencies.add(
            Measurement(
                "m", Platform(target, "1", "cpu", "avx2"), ms, ms, ms, 1, 0.01,
                f"2026-01-0{number + 1}T00:00:{i:02}+00:00",
            )
            for i, (target, ms) in enumerate(part)
        )  # fmt: skip
        counts = {Platform(t, "1", "cpu", "avx2").key: t for t in "ab"}
        look = {counts[key]: held for key, held in kept.look().items()}
        everything = first if number == 0 else first + second
        for target in "ab":
            times = [ms for t, ms in everything if t == target]
            assert (look[target].n if times else 0) == len(times)
            if times:
                low = statistics.median_low(times)
                assert look[target].median_ms == pytest.approx(low, rel=0.06)
    again = Tally(database).look()
    for key, held in kept.look().items():
        assert held.n == again[key].n and (held.p50 == again[key].p50).all()


@given(st.lists(st.integers(0, len(tally.MS) - 2), min_size=1))
def test_a_histogram_keeps_every_count(bins):
    counts = np.bincount(bins, minlength=len(tally.MS) - 1)
    held = tally.histogram(tally.MS, counts)
    assert sum(held["counts"]) == len(bins) and len(held["counts"]) <= tally.MOST_BINS
    assert len(held["edges"]) == len(held["counts"]) + 1
    assert held["edges"] == sorted(held["edges"])
    assert held["edges"][0] <= tally.MS[min(bins) + 1] and held["edges"][-1] > tally.MS[max(bins)]
    assert drawing.heaps(held, "ms").count('class="heap"') == np.count_nonzero(held["counts"])


def test_a_measurement_whose_model_is_unknown(tmp_path):
    database = Database(tmp_path / "x.db")
    platform = Platform("t", "1", "cpu", "avx2")
    times = Measurement("00ff", platform, 1, 2, 3, 4, 0.0, "2026-01-01T00:00:00+00:00")
    Latencies(database).add([times])
    (row,) = Reader(database).measurements()
    assert (row["name"], row["family"], row["p50_ms"]) == ("", "", 1.0)
