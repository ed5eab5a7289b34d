"""The folder of a build: whole files or none, and steps that are done once."""

import json
import os
import resource
import subprocess
import sys

import pytest

from modelmill.line.store import OutputError, Store, check_folder, file_hash


def compute(calls, files=None, result=None):
    def run():
        calls.append(1)
        return result or {"answer": 42}, files or {"artifacts/a.bin": b"bytes"}

    return run


def test_a_step_is_done_once(tmp_path):
    calls = []
    first = Store(tmp_path / "out", resume=False)
    assert first.step("s", {"in": 1}, compute(calls)) == {"answer": 42}
    assert (first.redone, first.reused) == (["s"], [])
    again = Store(tmp_path / "out", resume=True)
    assert again.step("s", {"in": 1}, compute(calls)) == {"answer": 42}
    assert (again.redone, again.reused, len(calls)) == ([], ["s"], 1)


def test_other_inputs_are_another_step(tmp_path):
    calls = []
    Store(tmp_path / "out", False).step("s", {"in": 1, "more": [1, 2]}, compute(calls))
    store = Store(tmp_path / "out", True)
    store.step("s", {"more": [1, 2], "in": 1}, compute(calls))  # the order does not matter
    assert len(calls) == 1
    store.step("s", {"in": 2, "more": [1, 2]}, compute(calls))
    store.step("t", {"in": 1, "more": [1, 2]}, compute(calls))
    assert len(calls) == 3


def alter(path):
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [alter, shorten, os.unlink])
def test_a_damaged_artifact_is_made_again(tmp_path, damage):
    calls = []
    store = Store(tmp_path / "out", False)
    store.step("s", {}, compute(calls))
    damage(store.path("artifacts/a.bin"))
    store = Store(tmp_path / "out", True)
    store.step("s", {}, compute(calls))
    assert len(calls) == 2 and store.path("artifacts/a.bin").read_bytes() == b"bytes"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"files": {}}', '{"files": 3, "result": 1}']
)
def test_a_damaged_entry_is_not_believed(tmp_path, text):
    calls = []
    store = Store(tmp_path / "out", False)
    store.step("s", {}, compute(calls))
    (entry,) = store.path("cache").glob("s-*.json")
    entry.write_text(text)
    Store(tmp_path / "out", True).step("s", {}, compute(calls))
    assert len(calls) == 2 and json.loads(entry.read_text())["result"] == {"answer": 42}


def test_an_earlier_build_needs_resume(tmp_path):
    Store(tmp_path / "out", False)
    with pytest.raises(OutputError, match="--resume"):
        Store(tmp_path / "out", False)
    with pytest.raises(OutputError, match="--resume"):
        check_folder(tmp_path / "out", False)
    check_folder(tmp_path / "new", False)
    assert not (tmp_path / "new").exists()


def test_files_of_others_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    Store(tmp_path, False)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        Store(tmp_path / "out", False)
    with pytest.raises(OutputError, match="cannot make"):
        Store(tmp_path / "out" / "below", False)


def test_a_step_that_fails_leaves_no_trace(tmp_path):
    store = Store(tmp_path / "out", False)

    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        store.step("s", {}, fail)
    assert not list(store.path("cache").glob("s-*"))
    calls = []
    Store(tmp_path / "out", True).step("s", {}, compute(calls))
    assert calls == [1]


FULL = """
import resource, signal, sys
from pathlib import Path
from modelmill.line.store import OutputError, Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
store = Store(Path(sys.argv[1]), True)
try:
    store.step("s", {}, lambda: ({"answer": 1}, {"artifacts/a.bin": b"x" * 200_000}))
except OutputError as error:
    print(error)
else:
    print("written")
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file size here")
def test_a_disk_that_takes_no_more(tmp_path):
    """The system refuses to write on after 100,000 bytes: neither half a file nor a finished
    step."""
    calls = []
    old = Store(tmp_path / "out", False)
    old.write("artifacts/a.bin", b"the file before")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "cannot write" in done.stdout and "--resume" in done.stdout, done.stdout
    assert old.path("artifacts/a.bin").read_bytes() == b"the file before"
    assert not list((tmp_path / "out").rglob("*.part"))
    assert not list(old.path("cache").glob("s-*"))
    Store(tmp_path / "out", True).step("s", {}, compute(calls))
    assert calls == [1]


KILLED = """
import os, signal, sys
from pathlib import Path
from modelmill.line.store import Store
store = Store(Path(sys.argv[1]), True)
os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
store.step("s", {}, lambda: ({"answer": 1}, {"artifacts/a.bin": b"x" * 1000}))
"""


def test_killed_before_the_name_is_given(tmp_path):
    store = Store(tmp_path / "out", False)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")], check=False)
    assert done.returncode < 0
    assert not store.path("artifacts/a.bin").exists() and not list(store.path("cache").glob("s-*"))


def test_modes_and_hashes(tmp_path):
    """As any other file: readable by whom the umask allows."""
    store = Store(tmp_path / "out", False)
    old = os.umask(0o022)
    try:
        path = store.write("x.bin", b"abc")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o644
    want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert file_hash(path) == want


def test_no_nan_in_json(tmp_path):
    store = Store(tmp_path / "out", False)
    with pytest.raises(ValueError):
        store.write_json("r.json", {"score": float("nan")})
    assert not store.path("r.json").exists()


def test_a_step_named_by_a_path(tmp_path):
    """An engine may be a file; its step must not leave the folder."""
    store = Store(tmp_path / "out", False)
    store.step("parity-/etc/../my engine.py", {}, compute([]))
    (entry,) = store.path("cache").glob("parity*.json")
    assert entry.parent == store.path("cache")


def test_a_file_under_a_second_name(tmp_path):
    """One copy on the disk; the first stays when the second gets other bytes."""
    store = Store(tmp_path / "out", False)
    store.write("cache/deep/inside/a.bin", b"one")
    for _ in range(2):
        store.link("artifacts/a.bin", "cache/deep/inside/a.bin")
    assert store.path("artifacts/a.bin").samefile(store.path("cache/deep/inside/a.bin"))
    store.write("cache/b.bin", b"two")
    store.link("artifacts/a.bin", "cache/b.bin")
    assert store.path("artifacts/a.bin").read_bytes() == b"two"
    assert store.path("cache/deep/inside/a.bin").read_bytes() == b"one"
    assert not list(store.path("artifacts").glob(".*"))
