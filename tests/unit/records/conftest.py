"""The databases that every test of storing runs on."""

from pathlib import Path

import pytest


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
