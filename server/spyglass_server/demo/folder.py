"""The folder that the embedded model is kept in: made once, whole or not at all.

Owns the lock, the stamp and the renames. Knows nothing of what a checkpoint holds.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from spyglass_server.demo.errors import DemoError

RECIPE = 2
"""Raise it whenever the same weights come out as different files: checkpoints of another recipe are made again."""

_STAMP = "spyglass_recipe.json"
_EYES = Path(__file__).with_name("adapter.safetensors")
"""Other eyes make another checkpoint, too. This file is not read here, only told from others."""

Progress = Callable[[str], None]


def default_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the embedded model lies unless one says otherwise: in the user's cache."""
    cache = environ.get("XDG_CACHE_HOME")
    root = Path(cache) if cache else Path.home() / ".cache"
    return root / "spyglass" / f"spyglass-demo-{RECIPE}"


def prepare(folder: Path, progress: Progress) -> Path:
    """Makes the checkpoint in `folder` unless it is there already, and returns the folder.

    Several processes may call this at once: one makes it, the others wait for it. A run that is killed
    leaves no half-made checkpoint. `progress` gets a line of text for each step.

    Raises:
        DemoError: SmolLM2 is not installed, or `folder` holds something else than an embedded model.
        OSError: the disk is full, or the folder cannot be written.
    """
    folder = folder.absolute()
    if _is_current(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_name(f".{folder.name}.lock"), progress):
        if not _is_current(folder):
            _refuse_foreign(folder)
            _build(folder, progress)
    return folder


def _is_current(folder: Path) -> bool:
    try:
        stamp = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    return bool(stamp == _recipe())


def _recipe() -> dict[str, int | str]:
    with _EYES.open("rb") as file:
        return {"recipe": RECIPE, "eyes": hashlib.file_digest(file, "sha1").hexdigest()}


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not (folder / _STAMP).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DemoError(f"{folder} exists and is not an embedded model: choose an empty or a new folder")


def _build(folder: Path, progress: Progress) -> None:
    """Makes the checkpoint beside its place and renames it. The caller holds the lock."""
    # Reading weights takes libraries that a start with a finished checkpoint has no use for.
    from spyglass_server.demo.checkpoint import write_checkpoint

    partial, older = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("partial", "older"))
    _remove(partial, older)  # a run that was killed may have left them
    partial.mkdir()
    try:
        write_checkpoint(partial, progress)
        (partial / _STAMP).write_text(json.dumps(_recipe()), encoding="utf-8")
        if folder.exists():
            folder.rename(older)
        partial.rename(folder)
    finally:
        _remove(partial, older)


def _remove(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)


@contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    """Holds a lock among processes; the system takes it back from one that dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that prepares the embedded model")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
