"""Folders in the user's cache for data that is expensive to recreate."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path


def cache_folder(name: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Returns a folder that no other user may write to, since its contents are trusted.

    Raises:
        OSError, RuntimeError: the folder cannot be used; the latter if there is no home directory.
    """
    base = environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "spyglass" / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"others may write to {folder}")
    return folder
