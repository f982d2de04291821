"""Graceful shutdown of a bridge: new calls are refused while running ones finish."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from spyglass_bridge.errors import ApiError


class Drain:
    """Counts running calls and, once started, refuses new ones."""

    def __init__(self) -> None:
        self._running = 0
        self._begun = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_running(self) -> int:
        """The number of running calls."""
        return self._running

    @property
    def is_draining(self) -> bool:
        return self._begun

    def begin(self) -> None:
        self._begun = True

    @contextmanager
    def call(self) -> Iterator[None]:
        """Keeps the bridge open during a call. Raises ApiError 503 once it is draining."""
        if self._begun:
            raise ApiError(503, "The server is shutting down.", code="server_draining", retry_after_s=1)
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Waits until no call is running; returns False on timeout."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
