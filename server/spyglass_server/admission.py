"""Admission control: how many generations may be in the server at once.

A generation is refused before any image is fetched or prompt rendered, when the queue is full or the server is shutting
down.
"""

import asyncio
import contextlib
from collections.abc import Iterator

from spyglass_server.errors import TooManyRequests, Unavailable

_RETRY_AFTER_S = 1.0


class Admission:
    """A bounded number of places."""

    def __init__(self, max_pending: int) -> None:
        self._max_pending = max_pending
        self._pending = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """Holds a place.

        Raises:
            TooManyRequests: all are taken.
            Unavailable: the server is going down.
        """
        if self._draining:
            raise Unavailable("the server is going down", retry_after_s=_RETRY_AFTER_S)
        if self._pending >= self._max_pending:
            raise TooManyRequests("the server's queue is full", retry_after_s=_RETRY_AFTER_S)
        self._pending += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._pending -= 1
            if not self._pending:
                self._idle.set()

    def drain(self) -> None:
        """Refuses everything from now on."""
        self._draining = True

    async def wait_idle(self) -> None:
        """Waits until no place is taken."""
        await self._idle.wait()
