"""What cannot be stored now waits and is delivered later, exactly once."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelmill.records import (
    Database,
    Latencies,
    Measurement,
    ModelFacts,
    Platform,
    UnreachableError,
    default_location,
    deliver,
)
from modelmill.records.spool import spool_path

P = Platform("ort_cpu", "1.32.0", "AMD EPYC", "avx2")


def measured(model, p50=1.5):
    return Measurement(model, P, p50, 2.0, 3.0, 3, 0.1, "2026-11-20T12:00:00+00:00",
                       samples_ms=((1.5, 2.0),))  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MODELMILL_DB", raising=False)
    return tmp_path / "home" / "modelmill"


def models(location):
    return sorted(m.model for m in Latencies(Database(location)).find())


def test_where_nothing_is_wrong_nothing_waits(tmp_path, home):
    there = tmp_path / "r.db"
    done = deliver(there, [measured("aa")], [ModelFacts("aa", family="vgg")])
    assert (done.stored, done.waiting, done.warning) == (1, 0, "")
    assert Latencies(Database(there)).rows()[0].family == "vgg"
    assert not home.exists()


def test_the_default_location_makes_its_folder(home):
    assert deliver(default_location(), [measured("aa")]).stored == 1
    assert models(home / "records.db") == ["aa"]


def test_locked_then_delivered(tmp_path):
    path = tmp_path / "r.db"
    Database(path)
    other = sqlite3.connect(path)
    other.execute("BEGIN IMMEDIATE")
    facts = ModelFacts("aa", "net", "vgg", b"\0s", {"macs": 1.0})
    done = deliver(path, [measured("aa"), measured("bb")], [facts], timeout_s=0.1)
    assert (done.stored, done.waiting) == (0, 2)
    assert "held by another process" in done.warning and str(spool_path(path)) in done.warning
    assert deliver(path, [measured("cc")], timeout_s=0.1).waiting == 3
    other.rollback()
    other.close()
    assert deliver(path, []).stored == 3
    assert deliver(path, []).stored == 0
    assert models(path) == ["aa", "bb", "cc"]
    there = Latencies(Database(path))
    assert there.models()[0] == facts and there.find("aa") == [measured("aa")]


def test_each_database_has_its_own(tmp_path):
    absent = tmp_path / "no folder" / "r.db"
    assert deliver(absent, [measured("aa")]).waiting == 1
    assert deliver(tmp_path / "other.db", [measured("bb")]).stored == 1
    absent.parent.mkdir()
    assert deliver(absent, [measured("cc")]).stored == 2
    assert models(absent) == ["aa", "cc"]
    assert models(tmp_path / "other.db") == ["bb"]


def test_postgresql_down_then_up(postgresql):
    url = postgresql.new_url()
    assert deliver(url, [measured("aa")]).stored == 1
    postgresql.stop()
    try:
        done = deliver(url, [measured("bb")], timeout_s=2)
        assert done.waiting == 1 and "cannot be reached" in done.warning
        with pytest.raises(UnreachableError, match="cannot be reached; check that the server runs"):
            deliver(url, [], timeout_s=2)
    finally:
        postgresql.start()
    assert deliver(url, [measured("cc")]).stored == 2
    assert models(url) == ["aa", "bb", "cc"]


def test_postgresql_that_holds_a_lock_or_is_read_only(postgresql):
    import psycopg

    url = postgresql.new_url()
    Database(url)
    name = url.split("/")[3].split("?")[0]
    with psycopg.connect(host=str(postgresql.folder), user="postgres", dbname=name) as other:
        other.execute("LOCK TABLE modelmill_measurements IN ACCESS EXCLUSIVE MODE")
        done = deliver(url, [measured("aa")], timeout_s=0.2)
        assert done.waiting == 1 and "held by another process" in done.warning
        other.rollback()
    postgresql.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    done = deliver(url, [measured("bb")])
    assert done.waiting == 2 and "is read-only" in done.warning
    postgresql.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
    assert deliver(url, []).stored == 2


def test_a_password_is_never_written_or_shown():
    url = "postgresql://me:secret@127.0.0.1:1/x"
    done = deliver(url, [measured("aa")], timeout_s=2)
    assert done.waiting == 1 and "secret" not in done.warning and "me:***@" in done.warning
    assert b"secret" not in spool_path(url).read_bytes()
    assert spool_path(url) == spool_path("postgresql://me:other@127.0.0.1:1/x")


def test_wrong_input_is_not_a_reason_to_wait(tmp_path, home):
    path = tmp_path / "r.db"
    path.write_text("no database at all" * 100)
    with pytest.raises(ValueError, match="is not an SQLite database") as caught:
        deliver(path, [measured("aa")])
    assert not isinstance(caught.value, UnreachableError)
    path.unlink()
    Database(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE modelmill_schema SET version = 99")
    connection.close()
    with pytest.raises(ValueError, match="newer modelmill"):
        deliver(path, [measured("aa")])
    assert not home.exists()


def test_damaged_lines_are_set_aside(tmp_path):
    folder = tmp_path / "later"
    path = folder / "r.db"
    for name in ("aa", "bb"):
        deliver(path, [measured(name)])
    spool = spool_path(path)
    spool.write_bytes(spool.read_bytes()[:-10])  # a writer was killed
    deliver(path, [measured("cc")])
    folder.mkdir()
    done = deliver(path, [])
    assert done.stored == 2 and "1 line(s)" in done.warning and ".damaged" in done.warning
    assert models(path) == ["aa", "cc"]
    assert spool.with_suffix(".damaged").read_bytes().count(b"\n") == 1
    assert deliver(path, []).warning == ""


FULL = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from test_spool import measured
from modelmill.records import deliver
deliver(sys.argv[1], [measured("aa")])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)  # bytes that a file may have
try:
    done = deliver(sys.argv[1], [measured(f"m{i}", 1 + i / 1e6) for i in range(1000)])
except ValueError as error:
    print(error)
else:
    print(done.waiting, done.warning)
"""


@pytest.mark.parametrize(("room", "said"), [
    (1_000_000, "1000 .*could not be written|1000 .*met an error of the disk"),
    (200_000, "and they cannot wait in .* either.*--db"),
])  # fmt: skip
def test_a_full_disk(tmp_path, room, said):
    path = tmp_path / "r.db"
    Database(path)
    ballast = sqlite3.connect(path)  # while it is open, its megabyte stays in the log
    with ballast:
        ballast.execute("CREATE TABLE ballast (x)")
        ballast.execute("INSERT INTO ballast VALUES (zeroblob(1200000))")
    command = [sys.executable, "-c", FULL, path, str(Path(__file__).parent), str(room)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    ballast.close()
    assert re.search(said, done.stdout, re.DOTALL), done.stdout
    waiting = 1000 if room == 1_000_000 else 0
    assert deliver(path, []).stored == waiting
    assert len(models(path)) == 1 + waiting


READER = """
import os, sys
sys.path.insert(0, sys.argv[2])
from test_spool import measured
from modelmill.records import Database, Latencies, deliver
import alembic.command, alembic.config, sqlalchemy.dialects.sqlite, numpy
if os.getuid() == 0:
    os.setuid(65534)  # to root nothing is read-only
done = deliver(sys.argv[1], [measured("aa")])
assert done.waiting == 1 and "is read-only" in done.warning, done
there = Database(sys.argv[1])  # of version 1: its records can be read, though nothing be written
assert len(there.query()) == 3
try:
    Latencies(there).find()
except ValueError as error:
    assert "made by an older modelmill and is read-only" in str(error), error
else:
    raise SystemExit("read")
"""


def test_a_read_only_file_of_an_older_version(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    path = folder / "r.db"
    shutil.copy(Path(__file__).with_name("version_1.db"), path)
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o777)
    path.chmod(0o444)
    folder.chmod(0o555)
    for up in [folder, *folder.parents][:-2]:
        if not os.stat(up).st_mode & 0o001:
            up.chmod(0o755)  # the temporary folders are ours alone
    try:
        command = [sys.executable, "-c", READER, path, str(Path(__file__).parent)]
        subprocess.run(command, check=True)
    finally:
        folder.chmod(0o755)
    path.chmod(0o644)
    assert deliver(path, []).stored == 1


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from test_spool import measured
from modelmill.records import deliver
for i in range(20):
    deliver(sys.argv[1], [measured(f"{sys.argv[3]} {i}")], timeout_s=20)
"""


def test_several_processes_while_the_database_comes_and_goes(tmp_path):
    path = tmp_path / "later" / "r.db"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, str(Path(__file__).parent), str(i)])
        for i in range(3)
    ]
    deadline = time.monotonic() + 60
    while not spool_path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    path.parent.mkdir()
    assert [w.wait(120) for w in writers] == [0] * 3
    deliver(path, [])
    assert len(models(path)) == 60
