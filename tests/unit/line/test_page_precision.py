"""The chart of a search for bits: what is on it, and where."""

import re

from modelmill.line.page_precision import in_words, points, searched

NAMES = ("a", "b", "c")


def candidate(bits, noise_db, size, ms=None):
    layers = [[n, w, 8] for n, w in zip(NAMES, bits, strict=True) if w < 32]
    kept = [n for n, w in zip(NAMES, bits, strict=True) if w == 32]
    return {
        "layers": layers, "keep_float": kept, "noise_db": noise_db, "bytes": size, "ms": ms,
    }  # fmt: skip


def held(objective="size", ms=(None, None, None)):
    front = [
        candidate((4, 4, 8), 11.0, 1024, ms[0]),
        candidate((4, 8, 8), 20.0, 2048, ms[1]),
        candidate((32, 32, 32), 200.0, 8192, ms[2]),
    ]
    uniform = candidate((8, 8, 8), 30.0, 4096, ms[2])
    return {"objective": objective, "pareto": front, "chosen": front[1], "uniform": uniform}


def test_every_candidate_is_a_dot_and_float_is_beyond():
    rows = points(held(), held()["chosen"])
    assert [(r["what"], r["cost"], r["noise_db"]) for r in rows] == [
        ("candidate", 1.0, 11.0),
        ("uniform", 4.0, 30.0),
        ("deployed", 2.0, 20.0),
    ]
    found = searched("chip", held())
    assert found is not None and not found.latency
    assert found.chart.count("<circle") == 3
    across = [float(x) for x in re.findall(r'cx="([\d.]+)%"', found.chart)]
    assert across[0] < across[2] < across[1]
    down = [float(y) for y in re.findall(r'cy="([\d.]+)"', found.chart)]
    assert down[1] < down[2] < down[0]  # less noise is higher
    assert "deployed: 2 KiB, 20.0 dB: 1 layer w4a8, 2 layers w8a8" in found.chart


def test_layers_by_their_bits():
    found = searched("chip", held(), kept=0)
    assert found is not None and found.layers == (("w4a8", ("a", "b")), ("w8a8", ("c",)))
    assert in_words(candidate((32, 8, 8), 1.0, 1)) == "2 layers w8a8, 1 layer float"


def test_latency_is_in_ms():
    found = searched("chip", held("latency", (0.5, 0.7, 0.9)))
    assert found is not None and found.latency and "axis: ms" in found.axis
    assert "0.7 ms" in found.chart


def test_without_a_search_or_without_times_there_is_no_chart():
    assert searched("chip", None) is None
    assert searched("chip", held("latency")) is None
