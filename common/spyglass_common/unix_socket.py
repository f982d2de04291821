"""The file of a Unix socket that a server listens on: its permissions, creation and removal.

A socket is created under a temporary name and then renamed, so that no client finds it before its permissions are
right, and a server that ends removes its own file and never its successor's.
"""

import contextlib
import os
import secrets
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class SocketFile:
    """A Unix socket at `path`; users with write permission in `mode` may connect."""

    def __init__(self, path: str, mode: int) -> None:
        self._path, self._mode = Path(path), mode
        self._made: os.stat_result | None = None

    def bind(self, listen: Callable[[str], T]) -> T:
        """Calls `listen` with the path to listen at, and returns its result.

        Replaces the file of a process that has ended.

        Raises:
            OSError: another program listens there, the path is not a socket, or `listen` raised it.
        """
        _check_free(self._path)
        hidden = self._path.with_name(f".{secrets.token_hex(3)}")
        try:
            with _only_for_owner():
                result = listen(str(hidden))
            hidden.chmod(self._mode)
            self._made = hidden.stat()
            hidden.rename(self._path)
        except BaseException:
            hidden.unlink(missing_ok=True)
            raise
        return result

    def remove(self) -> None:
        """Removes the file, unless another one has replaced it."""
        if self._made is None:
            return
        with contextlib.suppress(OSError):
            found = self._path.stat()
            if (found.st_dev, found.st_ino, found.st_mtime_ns) == (
                self._made.st_dev,
                self._made.st_ino,
                self._made.st_mtime_ns,
            ):
                self._path.unlink()
        self._made = None


def _check_free(path: Path) -> None:
    """Raises OSError unless the path is free or is the socket of a process that has ended."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise FileExistsError(f"{path} is not a socket, so it is left alone")
    with socket.socket(socket.AF_UNIX) as caller:
        caller.setblocking(False)  # a full queue, too, means that a program listens
        try:
            caller.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass
    raise OSError(f"another program listens at unix:{path}")


@contextmanager
def _only_for_owner() -> Iterator[None]:
    """Gives new files to their owner only, who keeps all rights: other threads create files and folders, too."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
