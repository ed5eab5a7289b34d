"""The command: what it refuses to start with, and that it serves."""

import json
import signal
import socket
import sqlite3
import urllib.request

import pytest

from modelmill.records import Database

pytest.importorskip("fastapi", reason="run: pip install 'modelmill[serve]'")


@pytest.fixture
def database(tmp_path):
    Database(tmp_path / "records.db")
    return tmp_path / "records.db"


def test_no_database(run, tmp_path):
    result = run("serve", "--db", tmp_path / "none.db")
    assert result.exit_code == 2
    assert "none.db: no such database; next: modelmill latency measure" in result.output
    assert not (tmp_path / "none.db").exists()


def test_a_database_of_a_newer_version(run, database):
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE modelmill_schema SET version = 999")
    connection.close()
    result = run("serve", "--db", database)
    assert result.exit_code == 2 and "written by a newer modelmill" in result.output


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 300])
def test_what_is_no_database(run, tmp_path, content):
    (tmp_path / "odd.db").write_bytes(content)
    result = run("serve", "--db", tmp_path / "odd.db")
    assert result.exit_code == 2 and "odd.db: " in result.output


def test_no_such_folder_of_builds(run, database, tmp_path):
    result = run("serve", "--db", database, "--builds", tmp_path / "none")
    assert result.exit_code == 2 and "no such folder; name one" in result.output


def test_a_port_in_use(run, database):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", "--db", database, "--port", port)
    assert result.exit_code == 2
    assert f"--port {port}: in use on 127.0.0.1" in result.output
    assert f"next: modelmill serve --port {port + 1}" in result.output


def test_an_address_of_another_machine(run, database):
    result = run("serve", "--db", database, "--host", "192.0.2.1", "--port", 0)
    assert result.exit_code == 2 and "--host 192.0.2.1: not an address" in result.output


def test_it_serves_until_it_is_stopped(start, database, tmp_path):
    process = start(
        ["serve", "--db", database, "--builds", tmp_path, "--port", 0, "--format", "json"]
    )
    try:
        said = json.loads(process.stdout.readline())
        assert said["database"] == str(database) and said["builds"] == [str(tmp_path)]
        assert said["url"].startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{said['url']}/index.json", timeout=30) as answer:
            assert json.load(answer)["counts"]["models"] == 0
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in errors
