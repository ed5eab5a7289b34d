"""A database that goes away, is empty, or may not be called by that name."""

import shutil
import sqlite3

import pytest
from fastapi.testclient import TestClient

from modelmill.records import Database
from modelmill.web.app import create
from modelmill.web.start import is_loopback, names_of, open_site

PAGES = ("/", "/models", "/platforms", "/measurements", "/predictions", "/builds", "/accuracy",
         "/search", "/search?q=x")  # fmt: skip


@pytest.fixture
def served(filled, tmp_path):
    """(client, path) over a database of its own"""
    path = tmp_path / "own.db"
    shutil.copy(filled, path)
    site = open_site(str(path), [])
    with TestClient(create(site, str(path))) as client:
        yield client, path


def test_an_empty_database_says_what_to_do(tmp_path):
    Database(tmp_path / "new.db")
    site = open_site(str(tmp_path / "new.db"), [])
    with TestClient(create(site, "new.db")) as client:
        for path in PAGES:
            answer = client.get(path)
            assert answer.status_code == 200, answer.text
            place, _, query = path.partition("?")
            assert client.get(f"{place if place != '/' else '/index'}.json?{query}").is_success
        assert "modelmill latency measure" in client.get("/").text


def test_a_database_that_is_deleted(served):
    client, path = served
    assert client.get("/measurements").status_code == 200
    for file in path.parent.glob("own.db*"):
        file.unlink()
    answer = client.get("/measurements")
    assert answer.status_code == 503 and str(path) in answer.text and "Traceback" not in answer.text
    assert "cannot be opened" in client.get("/measurements.json").json()["why"]
    assert not path.exists()


def test_a_database_that_is_locked(served, monkeypatch):
    _, path = served
    path.with_name("own.db-wal").unlink(missing_ok=True)
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA journal_mode=DELETE")
    other.close()
    monkeypatch.setattr("modelmill.web.start.TIMEOUT_S", 0.1)
    site = open_site(str(path), [])
    with sqlite3.connect(path, isolation_level=None) as other, TestClient(create(site, "x")) as it:
        other.execute("BEGIN EXCLUSIVE")
        answer = it.get("/measurements")
        assert answer.status_code == 503 and "held by another process" in answer.text
        other.execute("ROLLBACK")
        assert it.get("/measurements").status_code == 200
    other.close()


def test_a_damaged_database(served):
    client, path = served
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\x55" * (len(data) - 4096))
    answer = client.get("/measurements")
    assert answer.status_code == 503 and "damaged" in answer.text


def test_nothing_is_written(filled, folders, client):
    before = filled.read_bytes()
    for path in PAGES:
        client.get(path)
    assert filled.read_bytes() == before


def test_what_is_new_is_shown(served):
    client, path = served
    count = client.get("/index.json").json()["counts"]["measurements"]
    with sqlite3.connect(path) as other:
        columns = "model, platform, p50_ms, p90_ms, p99_ms, noise, n, machine, extra, samples"
        other.execute(
            f"INSERT INTO modelmill_measurements (key, \"when\", {columns}) SELECT key || 'x', "
            f'"when", {columns} FROM modelmill_measurements LIMIT 3'
        )
    other.close()
    assert client.get("/index.json").json()["counts"]["measurements"] == count + 3


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.0.0.2", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("192.168.1.2", False), ("::", False), ("box", False)],
)  # fmt: skip
def test_which_hosts_are_this_machine_alone(host, loopback):
    assert is_loopback(host) is loopback
    assert bool(names_of(host)) is loopback


def test_postgresql_says_the_same(filled_server, filled, folders):
    sites = [open_site(str(where), [folders]) for where in (filled_server, filled)]
    server, file = (TestClient(create(site, "x")) for site in sites)
    key = file.get("/platforms.json").json()["platforms"][1]["key"]
    more = (
        "/models?family=vgg", "/models?sort=-name", "/models?q=NET-04", f"/models/{5:064x}",
        f"/platforms/{key}", f"/platforms/{key}?sort=fastest", "/measurements?family=vgg",
        "/measurements/1", f"/builds/{'b0' * 8}", "/search?q=vgg",
    )  # fmt: skip
    for path in (*PAGES, *more):
        place, _, query = path.partition("?")
        address = f"{place if place != '/' else '/index'}.json?{query}"
        while address is not None:
            said, expected = (client.get(address) for client in (server, file))
            assert said.status_code == 200 and said.json() == expected.json(), address
            following = said.json().get("next")
            address = following and following.replace("?", ".json?")
    with pytest.raises(ValueError, match="read-only"):
        sites[0].reader.database.add(Database(filled).query()[:1])


def test_a_zero_byte_is_in_no_name(filled):
    with TestClient(create(open_site(str(filled), []), "x")) as client:
        for path in ("/search?q=%00", "/models?after=%00+x", "/models/%00", "/builds/x%00.json"):
            answer = client.get(path)
            assert answer.status_code == 400 and "zero byte" in answer.text
            assert "content-security-policy" in answer.headers


def test_a_strangers_name_is_refused(filled):
    site = open_site(str(filled), [])
    app = create(site, "x", names_of("127.0.0.1"))
    with TestClient(app) as client:
        for host, status in (
            ("127.0.0.1:8765", 200), ("localhost:8765", 200), ("[::1]:8765", 200),
            ("evil.example", 400), ("127.0.0.1.evil.example:8765", 400),
        ):  # fmt: skip
            answer = client.get("/models", headers={"host": host})
            assert answer.status_code == status, host
            assert answer.headers["content-security-policy"].startswith("default-src 'none'")
