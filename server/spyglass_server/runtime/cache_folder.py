"""Folders in the user's cache for what is expensive to make again."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path


def cache_folder(name: str, environ: Mapping[str, str] = os.environ) -> Path:
    """A folder that nobody else may write to: what is in it is trusted.

    Raises:
        OSError, RuntimeError: it cannot be used; the latter where there is no home.
    """
    base = environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "spyglass" / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"others may write to {folder}")
    return folder
