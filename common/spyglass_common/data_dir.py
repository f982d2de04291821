"""The folder where a server keeps its data, including the operator's key."""

import os
from pathlib import Path

ADMIN_KEY_FILE = "admin-key"
"""Contains a key with the scope admin, with which commands on the server's machine manage it."""


def data_dir_of(setting: str | None) -> Path:
    """Returns the data folder given by `--data-dir`, or the default one."""
    if setting:
        return Path(setting).expanduser()
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "spyglass"
