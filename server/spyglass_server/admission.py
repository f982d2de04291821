"""Admission control: how many generations may be in the server at once.

A generation is refused before any image is fetched or prompt rendered, when the queue is full or the server is shutting
down. Each tenant has a few places of its own, which are there however many the others hold.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator

from spyglass_server.errors import TooManyRequests, going_down

_RETRY_AFTER_S = 1.0
_OWN_SHARE = 1 / 16
"""Of all places, for a tenant; what tenants have of their own comes on top, up to as many again as there are."""


class Admission:
    """A bounded number of places."""

    def __init__(self, max_pending: int) -> None:
        self._max_pending = max_pending
        self._own = max(1, int(max_pending * _OWN_SHARE))
        self._pending = 0
        self._held: Counter[str] = Counter()
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.contextmanager
    def admit(self, tenant: str) -> Iterator[None]:
        """Holds a place.

        Raises:
            TooManyRequests: all are taken, the tenant's own too.
            Unavailable: the server is going down.
        """
        if self._draining:
            raise going_down()
        has_own = self._held[tenant] < self._own and self._pending < 2 * self._max_pending
        if self._pending >= self._max_pending and not has_own:
            raise TooManyRequests("the server's queue is full", retry_after_s=_RETRY_AFTER_S)
        self._pending += 1
        self._held[tenant] += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._pending -= 1
            self._held[tenant] -= 1
            if not self._held[tenant]:
                del self._held[tenant]
            if not self._pending:
                self._idle.set()

    def drain(self) -> None:
        """Refuses everything from now on."""
        self._draining = True

    async def wait_idle(self) -> None:
        """Waits until no place is taken."""
        await self._idle.wait()
