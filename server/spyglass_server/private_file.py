"""Small files in the data folder: readable only by their owner, and replaced atomically."""

import os
from pathlib import Path


def write_privately(path: Path, text: str) -> None:
    """Writes or replaces a file; it survives a crash of the machine. Raises OSError."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)
