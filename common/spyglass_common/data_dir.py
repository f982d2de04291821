"""Where a server keeps what it knows, and the operator's key in it."""

import os
from pathlib import Path

ADMIN_KEY_FILE = "admin-key"
"""Holds a key with the scope admin, with which commands beside the server manage it."""


def data_dir_of(setting: str | None) -> Path:
    """The data folder that `--data-dir` says, or that there is by default."""
    if setting:
        return Path(setting).expanduser()
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "spyglass"
