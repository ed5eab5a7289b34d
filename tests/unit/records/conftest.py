"""A private PostgreSQL server, and the databases that every test of storing runs on."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

USER = "postgres"  # of the database; the server itself refuses to run as root


class Server:
    """A PostgreSQL server that listens on a socket in its folder and nowhere else."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self.folder = programs, folder
        self._as: list[str] = []
        if os.getuid() == 0:
            shutil.chown(folder, USER)
            self._as = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        self._run("initdb", "-D", self.data, "-U", USER, "-A", "trust", "--no-sync")

    @property
    def data(self) -> str:
        return str(self.folder / "data")

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as, str(self._programs / program), *arguments]
        with (self.folder / "log.txt").open("a") as log:  # a server keeps what it is given open
            subprocess.run(
                command, check=True, cwd=self.folder, stdout=log, stderr=log, timeout=120
            )

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off"
        self._run("pg_ctl", "-D", self.data, "-w", "-l", f"{self.data}/server.log",
                  "-o", options, "start")  # fmt: skip

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self.data, "-w", "-m", "immediate", "stop")

    def sql(self, statement: str, name: str = "postgres") -> None:
        self._run("psql", "-h", str(self.folder), "-U", USER, "-d", name, "-c", statement)

    def new_url(self) -> str:
        """The URL of a new, empty database."""
        name = f"t{uuid.uuid4().hex}"
        self.sql(f"CREATE DATABASE {name}")
        return f"postgresql://{USER}@/{name}?host={self.folder}"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="run: pip install 'modelmill[postgresql]'")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))  # where Debian has it
    anywhere = shutil.which("initdb")
    if not found and anywhere is None:
        pytest.skip("no PostgreSQL server here; run: apt-get install postgresql")
    programs = (found[-1] if found else Path(anywhere or "")).resolve().parent
    # Not below pytest's folder: a socket's path holds 107 characters, and others may not look in.
    with tempfile.TemporaryDirectory(prefix="mm-pg-") as folder:
        server = Server(programs, Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Path or URL of an empty database, of either kind."""
    if request.param == "sqlite":
        return str(tmp_path / "records 100%?#.db")
    return request.getfixturevalue("postgresql").new_url()


@pytest.fixture
def other(location: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A second one of the same kind."""
    if "://" in location:
        return request.getfixturevalue("postgresql").new_url()
    return str(tmp_path / "other.db")
