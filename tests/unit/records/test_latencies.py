"""Latencies: what goes in comes out, once, from many processes, in SQLite and in PostgreSQL."""

import dataclasses
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from modelmill.records import (
    Database,
    Latencies,
    Measurement,
    ModelFacts,
    Platform,
    Record,
    Where,
    utc_now,
)
from modelmill.records.latencies import Row, pack, unpack
from modelmill.records.tables import SCHEMA_VERSION, metadata

P = Platform("ort_cpu", "1.32.0", "AMD EPYC", "avx2")
Q = dataclasses.replace(P, precision="w8a8", threads=2, batch=4)
WHEN = "2026-11-20T12:00:00+00:00"


def measured(model="aa", platform=P, p50=1.5, when=WHEN, **more):
    fixed = {"p90_ms": 2 * p50, "p99_ms": 3 * p50, "n": 3, "noise": 0.02, "machine": "box"}
    return Measurement(model=model, platform=platform, p50_ms=p50, when=when, **{**fixed, **more})


FULL = measured(
    reference_ms=0.25, samples_ms=((1.0, 1.5), (), (0.000001,)), extra={"rounds": 2, "ä": None}
)


def test_round_trip(location):
    there = Latencies(Database(location))
    later = "2026-11-20T12:00:01+00:00"
    facts = [FULL, measured("bb"), measured("aa", Q, when=later)]
    assert there.add(facts) == 3
    again = Latencies(Database(location))
    assert again.find("aa", [P]) == [FULL]
    assert again.find("aa", [P, Q]) == again.find("aa") == [FULL, facts[2]]
    assert again.find("bb") == again.find("bb", [P]) == [facts[1]]
    assert again.find("bb", []) == again.find("cc") == []
    assert again.count() == len(again.find()) == 3
    assert again.platforms() == [P, Q]
    assert again.platforms(precision="w8a8") == again.platforms("ort_cpu", threads=2) == [Q]
    assert again.platforms("openvino_cpu") == again.platforms(batch=3) == []


def test_the_same_measurement_is_stored_once(location):
    there = Latencies(Database(location))
    assert there.add([FULL, FULL]) == 1
    bare = dataclasses.replace(
        FULL, samples_ms=(), extra={}
    )  # the copy of one, without its samples
    assert there.add([FULL, bare, measured(p50=1.6)]) == 1
    assert there.count() == 2 and there.find("aa")[0] == FULL
    assert there.add([]) == 0


def test_newest_last_whatever_the_zone(location):
    there = Latencies(Database(location))
    late, early = "2026-11-20T10:00:00-05:00", "2026-11-20T15:30:00+01:00"
    there.add([measured(when=late), measured(when=early)])
    assert [m.when for m in there.find("aa")] == [early, late]


def test_models_are_completed_and_never_overwritten(location):
    there = Latencies(Database(location))
    there.add_models([])
    there.add_models([ModelFacts("aa", "first"), ModelFacts("bb", family="vgg")])
    full = ModelFacts("aa", "second", "resnet", b"\0\1", {"macs": 5})
    there.add_models([full])
    there.add_models([ModelFacts("aa", "third", "vgg", b"x", {"macs": 6})])
    assert there.models() == [
        dataclasses.replace(full, name="first", facts={"macs": 5.0}),
        ModelFacts("bb", family="vgg"),
    ]
    assert [m.structure for m in there.models(family="vgg")] == ["bb"]
    assert [m.structure for m in there.models(structures=["aa", "zz"])] == ["aa"]


def test_rows_for_training(location):
    there = Latencies(Database(location))
    there.add_models([ModelFacts("aa", family="resnet")])
    there.add([measured("aa")])
    there.add([measured("bb", Q, 2.5)])  # of a model that nobody described
    expected = [Row("aa", "resnet", P.key, 1.5, 0.02), Row("bb", "", Q.key, 2.5, 0.02)]
    assert there.rows() == expected
    assert there.rows([Q]) == expected[1:]


def test_predictors_have_versions(location):
    there = Latencies(Database(location))
    with pytest.raises(ValueError, match=r"no predictor 'gnn'; there: none\. Next: modelmill"):
        there.load_predictor("gnn")
    assert there.save_predictor("gnn", b"one", {"mape": 0.04}) == 1
    assert there.save_predictor("trees", b"t", {}) == 1
    assert there.save_predictor("gnn", b"two\0", {"mape": 0.03}) == 2
    newest, first = there.load_predictor("gnn"), there.load_predictor("gnn", 1)
    assert (newest.version, newest.data, newest.facts) == (2, b"two\0", {"mape": 0.03})
    assert first.data == b"one"
    with pytest.raises(ValueError, match="version 3; there: gnn 1, gnn 2, trees 1"):
        there.load_predictor("gnn", 3)
    assert [(p.name, p.version, p.data) for p in there.predictors()] == [
        ("gnn", 1, b""), ("gnn", 2, b""), ("trees", 1, b""),
    ]  # fmt: skip


def test_records_in_either_kind(location):
    record = Record("top1", 0.5, "fraction", "abc", Where("a cpu"), utc_now(), 2**40)
    Database(location).add([record])
    assert Database(location).query(what="top1") == [record]


WRITER = """
import sys
sys.path.insert(0, sys.argv[3])
from test_latencies import measured, P, Q, ModelFacts
from modelmill.records import Database, Latencies
location, me = sys.argv[1], int(sys.argv[2])
there = Latencies(Database(location))  # four of these make the tables at once
for i in range(10):
    own = [measured(f"own {me} {i} {k}", (P, Q)[k % 2]) for k in range(3)]
    shared = [measured(f"shared {i} {k}", (P, Q)[k % 2]) for k in range(3)]
    there.add([*own, *shared] if me % 2 else [*shared, *own])
    there.add_models([ModelFacts(f"m{(me + i * k) % 7}", "x") for k in range(4)])
    there.save_predictor("p", b"", {})
"""


def test_several_processes_write_at_once(location):
    here = str(Path(__file__).parent)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, location, str(i), here]) for i in range(4)
    ]
    assert [w.wait(120) for w in writers] == [0] * 4
    there = Latencies(Database(location))
    assert sum(m.model.startswith("own") for m in there.find()) == 4 * 10 * 3
    assert sum(m.model.startswith("shared") for m in there.find()) == 10 * 3
    assert [p.version for p in there.predictors()] == [*range(1, 41)]
    assert len(there.models()) == 7


@given(st.lists(st.lists(st.integers(1, 10**12)), max_size=5))
def test_samples_are_kept_to_the_nanosecond(blocks):
    samples = tuple(tuple(ns / 1e6 for ns in block) for block in blocks)
    assert unpack(pack(samples)) == samples


def test_samples_are_small():
    chance = random.Random(0)
    samples = tuple(tuple(chance.gauss(1.2, 0.01) for _ in range(50)) for _ in range(20))
    assert len(pack(samples)) < 1000 * 8 / 2


# ---------------------------------------------------------------- versions of the schema


def test_a_file_of_version_1_loses_nothing(tmp_path):
    """version_1.db was written by the last commit whose schema had version 1."""
    path = tmp_path / "records.db"
    shutil.copy(Path(__file__).with_name("version_1.db"), path)
    with sqlite3.connect(path) as connection:
        before = connection.execute("SELECT * FROM modelmill_records ORDER BY id").fetchall()
        assert connection.execute("SELECT version FROM modelmill_schema").fetchall() == [(1,)]
    connection.close()
    there = Database(path)
    assert [(r.what, r.value, r.n) for r in there.query()] == [
        ("top1", 0.8794, 10_000), ("latency_p50_ms", 0.667, 2000), ("layer_p50_ms", 1e-300, 2**40)
    ]  # fmt: skip
    assert Latencies(there).add([FULL]) == 1
    with sqlite3.connect(path) as connection:
        assert (
            connection.execute("SELECT * FROM modelmill_records ORDER BY id").fetchall() == before
        )
        version = connection.execute("SELECT version FROM modelmill_schema").fetchall()
    connection.close()
    assert version == [(SCHEMA_VERSION,)]
    assert Latencies(Database(path)).find() == [FULL]


def test_several_processes_bring_one_file_up_to_date(tmp_path):
    path = tmp_path / "records.db"
    shutil.copy(Path(__file__).with_name("version_1.db"), path)
    code = "import sys; from modelmill.records import Database; Database(sys.argv[1])"
    openers = [subprocess.Popen([sys.executable, "-c", code, path]) for _ in range(4)]
    assert [o.wait(60) for o in openers] == [0] * 4
    assert len(Database(path).query()) == 3


def test_migrations_make_what_the_tables_say(location):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with Database(location).reading() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "include_name": lambda name, kind, parent: name != "modelmill_revision",
            },
        )
        assert compare_metadata(context, metadata()) == []
        assert context.get_current_revision() is None  # its table has a name of its own
        revision = connection.execute(sa.text("SELECT version_num FROM modelmill_revision"))
        assert revision.scalars().all() == [str(SCHEMA_VERSION)]


def test_newer_version(location):
    there = Database(location)
    with there.writing() as connection:
        connection.execute(sa.text("UPDATE modelmill_schema SET version = 99"))
    with pytest.raises(ValueError, match=r"schema 99, this one knows 2.*pip install --upgrade"):
        Database(location)
