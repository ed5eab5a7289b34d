"""Where the database is when nobody says: $MODELMILL_DB, else a file in the user's data folder."""

import os
import sys
from pathlib import Path

VARIABLE = "MODELMILL_DB"


def data_folder() -> Path:
    """The folder for what programs of this user keep, as the platform has it; need not exist."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Application Support"
    else:  # the XDG base directory specification
        base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "modelmill"


def default_location() -> str:
    """Path or URL of the database that commands on latencies use without --db."""
    return os.environ.get(VARIABLE) or str(data_folder() / "records.db")
