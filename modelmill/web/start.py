"""Opens what the pages are made from, to read."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path

from modelmill.records import Database, default_location
from modelmill.web.builds import Builds
from modelmill.web.content import Site
from modelmill.web.reader import Reader, UnreadableError
from modelmill.web.tally import Tally

TIMEOUT_S = 5.0  # that a page waits for a database which somebody holds


def open_site(db: str | None, builds: Sequence[Path]) -> Site:
    """The site over a database (None: the default one) and folders of builds.

    Measurements are counted once, a second or two for a million.

    Raises:
        ValueError: no such database or folder, or one that cannot be read.
    """
    folders = Builds(builds)
    database = Database(db or default_location(), TIMEOUT_S, read_only=True)
    tally = Tally(database)
    try:
        tally.look()
    except UnreadableError as error:
        raise ValueError(str(error)) from error
    return Site(Reader(database), tally, folders)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def names_of(host: str) -> tuple[str, ...]:
    """Names by which a server on a host may be called; () where it may be any.

    A server for this machine alone has only these: a stranger's page, whose name was made to lead
    here, is thereby refused.
    """
    return ("localhost", "127.0.0.1", "::1", "[::1]", host) if is_loopback(host) else ()
