"""latency export, import, merge, and the database of bench: what they print, store and refuse."""

import csv
import json

import pytest

from modelmill.records import Database, Latencies, Measurement, ModelFacts, Platform

P = Platform("ort_cpu", "1.32.0", "AMD EPYC", "avx2")
WHEN = "2026-11-20T12:00:00+00:00"


def measured(model):
    return Measurement(model, P, 1.5, 2.0, 3.0, 3, 0.1, WHEN, samples_ms=((1.5, 2.0), (1.0,)))


@pytest.fixture
def filled(tmp_path):
    path = tmp_path / "filled.db"
    there = Latencies(Database(path))
    there.add_models([ModelFacts("aa", "net", "resnet")])
    there.add([measured("aa"), measured("bb")])
    return path


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_from_one_database_to_another(run, filled, tmp_path, suffix):
    file, other = tmp_path / f"all.{suffix}", tmp_path / "other.db"
    result = run("latency", "export", file, "--db", filled)
    assert (result.exit_code, result.stdout) == (0, f"2 measurements in {file}\n")
    result = run("latency", "import", file, "--db", other)
    assert result.stdout == f"2 new measurements in {other}\n"
    result = run("latency", "import", file, file, "--db", other, "--format", "json")
    assert json.loads(result.stdout) == {"database": str(other), "new": 0}
    assert Latencies(Database(other)).find("aa") == [measured("aa")]


def test_export_without_samples(run, filled, tmp_path):
    result = run("latency", "export", tmp_path / "a.csv", "--db", filled, "--no-samples",
                 "--format", "json")  # fmt: skip
    assert json.loads(result.stdout) == {"file": str(tmp_path / "a.csv"), "measurements": 2}
    with (tmp_path / "a.csv").open(newline="") as file:
        assert {row["samples_ms"] for row in csv.DictReader(file)} == {"[]"}


def test_merge(run, filled, tmp_path):
    other = tmp_path / "other.db"
    Latencies(Database(other)).add([measured("bb"), measured("cc")])
    result = run("latency", "merge", filled, other, "--db", tmp_path / "all.db")
    said = f"3 new measurements and 0 new records of builds in {tmp_path / 'all.db'}\n"
    assert (result.exit_code, result.stdout) == (0, said)
    result = run("latency", "merge", filled, "--db", tmp_path / "all.db", "--format", "json")
    assert json.loads(result.stdout)["new"] == 0


def test_the_variable_names_the_database(run, filled, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELMILL_DB", str(filled))
    assert run("latency", "export", tmp_path / "a.csv").stdout.startswith("2 measurements")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["export", "{}/a.json", "--db", "{}/filled.db"], r"must end in .csv or .parquet"),
        (["export", "{}/a.csv", "--db", "{}/absent.db"], "no such database; next: modelmill"),
        (["export", "{}/filled.csv", "--db", "{}/filled.db"], "is there already"),
        (["import", "{}/absent.csv", "--db", "{}/x.db"], "no such file"),
        (["import", "{}/filled.csv", "--db", "{}/x.db"], "missing column(s)"),
        (["import", "{}/filled.csv", "--db", "{}"], "is a folder"),
        (["merge", "{}/filled.csv", "--db", "{}/x.db"], "is not an SQLite database"),
        (["merge", "{}/absent.db", "--db", "{}/x.db"], "no such database"),
        (["merge", "{}/filled.db", "--db", "postgresql://127.0.0.1:1/x"], "cannot be reached"),
        (["merge", "{}/filled.db", "--db", "nosuch://x"], "not a database URL"),
        (["merge"], "Missing argument"),
    ],
)
def test_wrong_input(run, filled, tmp_path, args, said):
    (tmp_path / "filled.csv").write_text("mine, and no measurements of anything\n")
    result = run("latency", *(a.replace("{}", str(tmp_path)) for a in args))
    assert result.exit_code == 2 and said in result.stderr
    assert (tmp_path / "filled.csv").read_text().startswith("mine")


@pytest.mark.parametrize("command", ["export", "import", "merge"])
def test_help_has_an_example(run, command):
    result = run("latency", command, "--help")
    assert f"modelmill latency {command} " in result.stdout and "--db" in result.stdout


def test_bench_keeps_what_it_measured(run, tiny, tmp_path, monkeypatch):
    db = tmp_path / "mine.db"
    result = run("bench", tiny.model, "-t", "ort_cpu", "--db", db)
    assert result.exit_code == 0 and f"stored in {db}\n" in result.stdout
    result = run("bench", tiny.model, "-t", "ort_cpu", "--db", db, "--format", "json")
    assert json.loads(result.stdout)["database"] == str(db)
    assert Latencies(Database(db)).count() == 2
    monkeypatch.setenv("MODELMILL_DB", str(tmp_path / "mine too.db"))
    assert "mine too.db" in run("bench", tiny.model, "-t", "ort_cpu").stdout
    assert "stored" not in run("bench", tiny.model, "-t", "ort_cpu", "--db", "none").stdout
    assert Latencies(Database(tmp_path / "mine too.db")).count() == 1


def test_bench_tells_where_its_measurements_wait(run, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    db = tmp_path / "no folder" / "mine.db"
    result = run("bench", tiny.model, "-t", "ort_cpu", "--db", db)
    assert result.exit_code == 0 and "p50 ms" in result.stdout
    assert "1 measurement(s) wait in" in result.stderr and "stored in" not in result.stdout
    db.parent.mkdir()
    assert run("bench", tiny.model, "-t", "ort_cpu", "--db", db).exit_code == 0
    assert Latencies(Database(db)).count() == 2
