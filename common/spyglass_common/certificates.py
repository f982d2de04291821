"""Certificates in files that may be replaced at any time: read whole, checked, and reloaded when they change."""

import logging
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

_PAUSE_S = 1.0
"""Minimum time between checks of the files, however many connections arrive."""

_log = logging.getLogger(__name__)

T = TypeVar("T")


class CertificateError(OSError):
    """Files do not contain what they should."""


class Rotated(Generic[T]):
    """A value made from files, and remade when one of them changes.

    While the files cannot be used, such as a certificate whose key is not there yet, the last usable value stays. Safe
    to use from several threads.
    """

    def __init__(self, paths: Sequence[Path], make: Callable[[], T]) -> None:
        """`make` raises OSError for unusable files; it is raised here, and later only logged."""
        self._paths, self._make = tuple(paths), make
        self._lock = threading.Lock()
        self._seen = self._look()
        self._looked_s = time.monotonic()
        self._is_broken = False
        self.current = make()

    def refresh(self) -> bool:
        """Checks the files and returns whether `current` is new. Costs next to nothing while they are unchanged."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked_s < _PAUSE_S:
                return False
            self._looked_s = now
            seen = self._look()  # before reading them: changes made meanwhile are seen next time
            if seen == self._seen and not self._is_broken:
                return False
            return self._make_again(seen)

    def _make_again(self, seen: tuple[object, ...]) -> bool:
        names = ", ".join(map(str, self._paths))
        try:
            self.current = self._make()
        except OSError as error:
            if not self._is_broken:
                _log.error("%s changed and cannot be used, so what was there before stays: %s", names, error)
            self._is_broken = True
            return False
        self._seen, self._is_broken = seen, False
        _log.info("%s changed, and new connections use what is there now", names)
        return True

    def _look(self) -> tuple[object, ...]:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Changes when a file is written to or replaced, or its link is redirected; None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def read_pair(cert: Path, key: Path) -> tuple[bytes, bytes]:
    """Returns the contents of the files of a certificate with its chain, and of its key.

    Raises:
        OSError: a file cannot be read, the two do not match, or they are being written.
    """
    pair = cert.read_bytes(), key.read_bytes()
    load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), cert, key)
    if pair != (cert.read_bytes(), key.read_bytes()):
        raise CertificateError(f"{cert} and {key} are being written")
    return pair


def load_pair(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Loads a certificate with its chain and key into a context. Raises as `read_pair` does."""
    try:
        context.load_cert_chain(cert, key, password=b"")  # for a locked key OpenSSL would ask the terminal
    except ssl.SSLError as error:
        reason = (error.reason or "not in PEM format").replace("_", " ").lower()
        raise CertificateError(f"{cert} and {key} are not a certificate and its key: {reason}") from error


def read_authorities(path: Path) -> bytes:
    """Returns the certificates of authorities. Raises OSError for a file that has none."""
    data = path.read_bytes()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=data.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise CertificateError(f"{path} holds no certificates in PEM format") from error
    return data
