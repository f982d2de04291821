"""Makes the demo checkpoint's folder once, atomically, and again when its weights or format have changed.

A stamp file in the folder identifies the recipe and the adapter that it was made with.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from spyglass_demo.errors import DemoError

RECIPE = 2
"""Increment it when the same weights are written as different files: older checkpoints are then made again."""

_STAMP = "spyglass_recipe.json"
_ADAPTER = Path(__file__).with_name("adapter.safetensors")
"""Its digest is part of the stamp, so new weights make the checkpoint again."""

Progress = Callable[[str], None]


def default_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The checkpoint's default folder, in the user's cache."""
    cache = environ.get("XDG_CACHE_HOME")
    root = Path(cache) if cache else Path.home() / ".cache"
    return root / "spyglass" / f"spyglass-demo-{RECIPE}"


def prepare(folder: Path, progress: Progress) -> Path:
    """Makes the checkpoint in `folder` unless an up-to-date one is there, and returns the folder.

    Safe to call from several processes: one makes it, the others wait. A process that is killed leaves no
    partial checkpoint. `progress` is called with a line of text for each step.

    Raises:
        DemoError: SmolLM2 is not installed, or `folder` holds something other than a demo checkpoint.
        OSError: the disk is full, or the folder is not writable.
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
    with _ADAPTER.open("rb") as file:
        return {"recipe": RECIPE, "eyes": hashlib.file_digest(file, "sha1").hexdigest()}


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not (folder / _STAMP).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DemoError(f"{folder} exists and is not a demo checkpoint: choose an empty or a new folder")


def _build(folder: Path, progress: Progress) -> None:
    """Makes the checkpoint in a sibling folder and renames it. The caller holds the lock."""
    # Imported here because a start with a finished checkpoint has no use for gguf, numpy, …
    from spyglass_demo.checkpoint import write_checkpoint

    partial, older = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("partial", "older"))
    _remove(partial, older)  # left over by a process that was killed
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
    """Holds an inter-process lock, which the system releases if the process dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that is making the demo model")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
