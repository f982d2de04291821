"""The file of a Unix socket that a server listens on: who may connect, and what becomes of it.

A socket is made under a name of its own and then renamed, so that nobody finds it before its permissions are right,
and a server that ends takes away its own file and never that of its successor.
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
    """A Unix socket at `path`, to which those may connect whom `mode` lets write."""

    def __init__(self, path: str, mode: int) -> None:
        self._path, self._mode = Path(path), mode
        self._made: os.stat_result | None = None

    def bind(self, listen: Callable[[str], T]) -> T:
        """Calls `listen` with the path at which it is to listen, and returns what that returns.

        Replaces the file of a process that has ended.

        Raises:
            OSError: another program listens there, or something else is there, or what `listen` raises.
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
        """Takes the file away, unless another one is there by now."""
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
    """Raises OSError unless there is nothing, or the socket of a process that has ended."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise FileExistsError(f"{path} is not a socket, so it is left alone")
    with socket.socket(socket.AF_UNIX) as caller:
        caller.setblocking(False)  # a full queue is somebody who listens, too
        try:
            caller.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass
    raise OSError(f"another program listens at unix:{path}")


@contextmanager
def _only_for_owner() -> Iterator[None]:
    """What is made meanwhile is for its owner only, who keeps all rights: other threads make files and folders, too."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
