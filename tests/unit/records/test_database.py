"""The database: what goes in comes out, several writers lose nothing, bad files are explained."""

import dataclasses
import os
import sqlite3
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmill.records import Database, Record, Where, utc_now

HERE = Where("a cpu", "onnxruntime", "1.32.0", 2, "avx2", "0123abc")


def fact(what="top1", value=0.5, subject="abc", where=HERE, build="b1", extra=None):
    return Record(what, value, "fraction", subject, where, utc_now(), 10, 0.1, build, extra or {})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "records 100%?#.db"


def test_round_trip(path):
    facts = [
        fact(extra={"samples": [1.5, 2], "note": "ä\0\n", "deep": {"a": None, "b": True}}),
        dataclasses.replace(fact(), spread=None, n=2**40),
        fact(value=-1e-300),
    ]
    Database(path).add(facts)
    assert Database(path).query() == facts


@given(
    value=st.floats(allow_nan=False, allow_infinity=False),
    text=st.text(st.characters(exclude_categories=["Cs"])),
    n=st.integers(1, 2**62),
)
def test_any_fact_comes_back(value, text, n):
    record = Record("x", value, text, text, Where(text), utc_now(), n, None, text, {text: text})
    database = Database("sqlite://")
    database.add([record])
    assert database.query() == [record]


def test_numpy_numbers_are_stored_as_numbers(path):
    Database(path).add([dataclasses.replace(fact(), value=np.float32(0.25), n=np.int64(3))])
    assert Database(path).query()[0].value == 0.25 and Database(path).query()[0].n == 3


def test_query_by_any_combination(path):
    database = Database(path)
    other = dataclasses.replace(HERE, engine="openvino", device="another")
    facts = [fact(), fact("top5"), fact(subject="d"), fact(where=other), fact(build="b2")]
    database.add(facts)
    assert database.query(what="top1") == [facts[0], facts[2], facts[3], facts[4]]
    assert database.query(subject="d") == [facts[2]]
    assert database.query(engine="openvino", what="top1") == [facts[3]]
    assert database.query(device="another") == [facts[3]]
    assert database.query(build="b2") == [facts[4]]
    assert database.query(what="top1' OR 1=1 --") == []


def test_nothing_to_add(path):
    database = Database(path)
    database.add([])
    assert database.query() == []


FULL = """
import resource, signal, sys
from modelmill.records import Database
database = Database(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    database.add(database.query() * 5000)
except ValueError as error:
    assert "disk" in str(error) and "nothing of this call" in str(error), error
else:
    raise SystemExit("written")
"""


def test_all_or_none_when_no_more_can_be_written(path):
    Database(path).add([fact()])
    subprocess.run([sys.executable, "-c", FULL, path], check=True)
    assert len(Database(path).query()) == 1


WRITER = """
import sys
from modelmill.records import Database, Record, Where, utc_now
database = Database(sys.argv[1])
for i in range(25):
    database.add([Record("x", i, "", sys.argv[2], Where("cpu"), utc_now()) for _ in range(2)])
"""


def test_several_processes_write_at_once(path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, str(i)]) for i in range(4)]
    assert [w.wait(60) for w in writers] == [0] * 4
    for i in range(4):
        values = [r.value for r in Database(path).query(subject=str(i))]
        assert values == [v for v in range(25) for _ in range(2)]


def test_a_database_crosses_a_fork(path):
    code = """
        import os, sys
        from modelmill.records import Database, Record, Where, utc_now
        database = Database(sys.argv[1])
        record = Record("x", 1, "", "", Where("cpu"), utc_now())
        database.add([record])
        pid = os.fork()
        database.add([record])
        if pid == 0:
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), path], check=True)
    assert len(Database(path).query()) == 3


def test_not_a_database(path):
    path.write_text("this is a text file and was never anything else" * 100)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"records 100%\?#\.db: is not an SQLite database"):
        Database(path)
    assert path.read_bytes() == before


def test_damaged_file(path):
    Database(path).add([fact(subject=str(i)) for i in range(500)])
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 2 * 4096))
    with pytest.raises(ValueError, match=r"damaged|not an SQLite"):
        Database(path).query()


def test_truncated_file(path):
    Database(path).add([fact(subject=str(i)) for i in range(500)])
    whole = path.read_bytes()
    for size in (len(whole) // 2, 5000):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="damaged SQLite database; restore it"):
            Database(path).query()


def test_database_of_something_else(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (soup)")
    connection.close()
    with pytest.raises(ValueError, match=r"something else \(tables recipes\)"):
        Database(path)


def test_newer_version(path):
    Database(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE modelmill_schema SET version = 99")
    connection.close()
    with pytest.raises(ValueError, match=r"schema 99, this one knows 2.*pip install --upgrade"):
        Database(path)


def test_locked(path):
    database = Database(path, timeout_s=0.1)
    other = sqlite3.connect(path)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ValueError, match="held by another process"):
        database.add([fact()])
    assert database.query() == []  # reading goes on
    other.rollback()
    other.close()
    database.add([fact()])


def test_folder_and_missing_folder(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        Database(tmp_path)
    with pytest.raises(ValueError, match="check that the folder exists"):
        Database(tmp_path / "no" / "such.db")


def test_url_that_cannot_be_used():
    for url in ("nosuch://x", "postgresql+nosuch://host/x", "://"):
        with pytest.raises(ValueError, match="not a database URL"):
            Database(url)


def test_any_url(tmp_path):
    url = f"sqlite:///{tmp_path}/by_url.db"
    Database(url).add([fact()])
    assert len(Database(url).query()) == 1 == len(Database(tmp_path / "by_url.db").query())


READER = """
import os, sys
from modelmill.records import Database, Record, Where, utc_now
import sqlalchemy.dialects.sqlite
if os.getuid() == 0:
    os.setuid(65534)  # to root nothing is read-only
database = Database(sys.argv[1])
assert len(database.query()) == 1
try:
    database.add(database.query())
except ValueError as error:
    assert "is read-only" in str(error), error
else:
    raise SystemExit("written")
"""


def test_read_only(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    path = folder / "r.db"
    Database(path).add([fact()])
    path.chmod(0o444)
    folder.chmod(0o555)
    for up in [folder, *folder.parents][:-2]:
        if not os.stat(up).st_mode & 0o001:
            up.chmod(0o755)  # the temporary folders are ours alone
    try:
        subprocess.run([sys.executable, "-c", READER, path], check=True)
    finally:
        folder.chmod(0o755)


def test_import_is_cheap():
    code = "import sys, modelmill.records; sys.exit('sqlalchemy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_to_be_read(path):
    with pytest.raises(ValueError, match="no such database; next: modelmill"):
        Database(path, read_only=True)
    assert not path.exists()
    path.touch()
    with pytest.raises(ValueError, match="empty; next: modelmill"):
        Database(path, read_only=True)
    path.unlink()
    Database(path).add([fact()])
    shown = Database(path, read_only=True)
    assert len(shown.query()) == 1
    with pytest.raises(ValueError, match="read-only"):
        shown.add([fact()])
    Database(path).add([fact()])  # what others write meanwhile is seen
    assert len(shown.query()) == 2


def test_an_older_one_is_not_brought_up_to_date_by_reading(path):
    Database(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE modelmill_schema SET version = 1")
    connection.close()
    with pytest.raises(ValueError, match="of an older modelmill; next: modelmill"):
        Database(path, read_only=True)
