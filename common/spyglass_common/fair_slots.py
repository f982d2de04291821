"""Slots for work that tenants take in turns, so that none blocks another."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class FairSlots:
    """A number of slots. A tenant holds at most a share of them, so that there is always room for others.

    Among waiting tenants, the one with the fewest slots is next; ties go to the one that has waited longest.
    """

    def __init__(self, num_slots: int, share: int) -> None:
        self._free, self._share = num_slots, share
        self._held: Counter[Hashable] = Counter()
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def hold(self, tenant: Hashable) -> AsyncIterator[None]:
        """Waits for a slot and holds it."""
        await self._take(tenant)
        try:
            yield
        finally:
            self._give(tenant)

    async def _take(self, tenant: Hashable) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the slot was already granted
                self._give(tenant)
            raise

    def _give(self, tenant: Hashable) -> None:
        self._free += 1
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]
        self._admit()

    def _admit(self) -> None:
        while self._free and (tenant := self._next()) is not None:
            turns = self._waiting.pop(tenant)
            turn = turns.popleft()
            if turns:
                self._waiting[tenant] = turns  # behind all other waiting tenants
            if not turn.done():
                self._free -= 1
                self._held[tenant] += 1
                turn.set_result(None)

    def _next(self) -> Hashable | None:
        """Returns the tenant whose turn it is."""
        with_room = [tenant for tenant in self._waiting if self._held[tenant] < self._share]
        return min(with_room, key=self._held.__getitem__, default=None)
