"""Export and import give back what was stored; merging stores everything once."""

import csv
import dataclasses
import json

import pyarrow.parquet as pq
import pytest

from modelmill.records import Database, Latencies, Measurement, ModelFacts, Platform, Record, Where
from modelmill.records.exchange import export, merge, take_in

P = Platform("ort_cpu", "", 'AMD, "EPYC"\n2', "avx2")
WHEN = "2026-11-20T12:00:00+00:00"
FULL = Measurement(
    "aa", P, 1.1, 2.2, 3.3, 3, 0.1, WHEN, "bóx", 0.3, ((1.1, 2.2), (), (3.3,)), {"ä": [1, None]}
)  # fmt: skip
BARE = Measurement("bb", dataclasses.replace(P, precision="w8a8", threads=2), 1 / 3, 2.0, 3.0, 9,
                   0.0, WHEN)  # fmt: skip
MODEL = ModelFacts("aa", "net, 1", "resnet", b"\0\xff skeleton", {"macs": 1e9})


@pytest.fixture
def filled(location):
    there = Latencies(Database(location))
    there.add_models([MODEL])
    there.add([FULL, BARE])
    return there


@pytest.fixture
def empty(other):
    return Latencies(Database(other))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_there_and_back(filled, empty, tmp_path, suffix):
    path = tmp_path / f"measured{suffix}"
    told = []
    assert export(filled, path, advance=told.append) == 2 == told[-1]
    assert take_in(empty, path) == 2
    assert {m.key: m for m in empty.find()} == {m.key: m for m in (FULL, BARE)}
    assert empty.models() == [MODEL, ModelFacts("bb")]
    assert take_in(empty, path) == 0 and empty.count() == 2


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_without_samples_it_is_the_same_measurement(filled, empty, tmp_path, suffix):
    path = tmp_path / f"measured{suffix}"
    export(filled, path, samples=False)
    assert take_in(empty, path) == 2
    assert empty.find("aa") == [dataclasses.replace(FULL, samples_ms=())]
    assert take_in(filled, path) == 0


def test_other_programs_can_read_it(filled, tmp_path):
    export(filled, tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(newline="") as file:
        row = next(r for r in csv.DictReader(file) if r["model"] == "aa")
    assert (row["device"], float(row["p50_ms"]), row["family"]) == (P.device, 1.1, "resnet")
    assert json.loads(row["samples_ms"]) == [[1.1, 2.2], [], [3.3]]
    export(filled, tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet").to_pylist()
    row = next(r for r in table if r["model"] == "aa")
    assert (row["p50_ms"], row["samples_ms"][0], row["threads"]) == (1.1, [1.1, 2.2], 1)


def test_more_than_a_page(filled, empty, tmp_path, monkeypatch):
    monkeypatch.setattr("modelmill.records.exchange.PAGE", 7)
    facts = [dataclasses.replace(FULL, n=n) for n in range(1, 51)]
    filled.add(facts)
    assert export(filled, tmp_path / "m.csv") == 51  # FULL itself is one of them
    assert take_in(empty, tmp_path / "m.csv") == 51
    assert {m.n for m in empty.find("aa")} == {*range(1, 51)}


RECORD = Record("top1", 0.5, "fraction", "abc", Where("a cpu"), WHEN, extra={"a": 1})


def test_merge_stores_everything_once(filled, empty):
    empty.add([FULL])
    empty.database.add([RECORD])
    filled.database.add([RECORD, dataclasses.replace(RECORD, value=0.6)])
    filled.add_models([ModelFacts("cc", "never measured")])
    filled.save_predictor("p", b"", {})
    assert merge(empty.database, filled.database) == (1, 1)
    assert merge(empty.database, filled.database) == (0, 0)
    assert merge(empty.database, empty.database) == (0, 0)
    assert {m.key for m in empty.find()} == {FULL.key, BARE.key}
    assert [r.value for r in empty.database.query()] == [0.5, 0.6]
    assert [m.structure for m in empty.models()] == ["aa", "bb", "cc"]
    assert empty.predictors() == []


def test_what_cannot_be_imported(filled, tmp_path):
    there = Latencies(Database(tmp_path / "fresh.db"))
    bad = tmp_path / "bad.csv"
    with pytest.raises(ValueError, match=r"must end in \.csv or \.parquet"):
        take_in(there, tmp_path / "x.json")
    bad.write_text("a,b\n1,2\n")
    with pytest.raises(
        ValueError, match=r"no measurements of latency; missing column.*device, isa"
    ):
        take_in(there, bad)
    bad.write_bytes(b"\xff\xfe\0a")
    with pytest.raises(ValueError, match="not a CSV file"):
        take_in(there, bad)
    parquet = tmp_path / "bad.parquet"
    export(filled, parquet)
    parquet.write_bytes(parquet.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a Parquet file, or a damaged one"):
        take_in(there, parquet)
    export(filled, tmp_path / "good.csv")
    text = (tmp_path / "good.csv").read_text()
    for old, new, said in [
        ("0.3,3,2026", "0.3,3,yesterday 2026", "not ISO 8601"),
        (",1.1,", ",fast,", "could not convert"),
        (",1.1,", ",,", r"nothing in column\(s\) p50_ms"),
        ("resnet", "resnet,", "row"),
    ]:
        assert old in text
        bad.write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=rf"bad\.csv, row \d: .*{said}|{said}"):
            take_in(there, bad)
    assert there.count() == 0


def test_nothing_is_overwritten_and_nothing_half_is_left(filled, tmp_path, monkeypatch):
    path = tmp_path / "m.csv"
    path.write_text("mine")
    with pytest.raises(ValueError, match="is there already"):
        export(filled, path)
    assert path.read_text() == "mine"

    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(filled, tmp_path / "half.csv", advance=stop)
    assert [p.name for p in tmp_path.glob("*half*")] == []
