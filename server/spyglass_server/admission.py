"""Admission control: how many generations may be in the server at once, and how much they may hold.

When the queue is full, a generation is refused before any image is fetched or prompt rendered. Each tenant has a
reserved share, whatever the others hold. A place that waits for its caller's images counts for less than one that
computes: if no other place is free, another tenant's generation gets it.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

from spyglass_common.fair_room import FairRoom
from spyglass_server.errors import SpyglassError, TooManyRequests

_RETRY_AFTER_S = 1.0


class Place:
    """A generation's place, and the resources that it holds."""

    def __init__(self, tenant: str, bytes_room: FairRoom, tokens_room: FairRoom) -> None:
        self.tenant = tenant
        self.give_up: Callable[[SpyglassError], None] | None = None
        """Ends the generation to free the place for another tenant; None unless it is waiting for its caller."""
        self.is_lost = False
        self._rooms = {"bytes": bytes_room, "tokens": tokens_room}
        self._held = Counter[str]()

    def hold_bytes(self, num_bytes: int) -> None:
        """Sets the memory held for what the caller has sent or what was made of it.

        Raises:
            TooManyRequests: too little is left.
        """
        self._hold("bytes", num_bytes)

    def grow(self, num_bytes: int) -> None:
        """Holds `num_bytes` more memory; raises as `hold_bytes` does."""
        self._hold("bytes", self._held["bytes"] + num_bytes)

    def hold_tokens(self, num_tokens: int) -> None:
        """Sets the number of prompt tokens held.

        Raises:
            TooManyRequests: the prompts in the server have too many tokens.
        """
        self._hold("tokens", num_tokens)

    @contextlib.contextmanager
    def waiting(self, give_up: Callable[[SpyglassError], None]) -> Iterator[None]:
        """Marks the place as waiting for its caller: `give_up` ends the generation if another needs the place."""
        self.give_up = give_up
        try:
            yield
        finally:
            self.give_up = None

    def _hold(self, what: str, amount: int) -> None:
        if not self._rooms[what].take(self.tenant, amount - self._held[what]):
            raise _full(f"the server holds too many {what} of requests")
        self._held[what] = amount


class Admission:
    """Bounds the number of places, of bytes that callers have sent, and of prompt tokens."""

    def __init__(self, max_pending: int, max_bytes: int, max_tokens: int) -> None:
        self._room, self._bytes, self._tokens = FairRoom(max_pending), FairRoom(max_bytes), FairRoom(max_tokens)
        self._places: dict[Place, None] = {}
        """Taken places, oldest first."""
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_held(self) -> int:
        """How many places are taken."""
        return len(self._places)

    @property
    def num_places(self) -> int:
        """How many places all tenants share."""
        return self._room.size

    @contextlib.contextmanager
    def admit(self, tenant: str) -> Iterator[Place]:
        """Holds a place.

        Raises:
            TooManyRequests: all places are taken, including the tenant's reserved ones.
        """
        if not self._room.take(tenant, 1):
            self._take_from_others(tenant)
            if not self._room.take(tenant, 1):
                raise _full("the server's queue is full")
        place = Place(tenant, self._bytes, self._tokens)
        self._places[place] = None
        self._idle.clear()
        try:
            yield place
        finally:
            place.hold_bytes(0)
            place.hold_tokens(0)
            del self._places[place]
            if not place.is_lost:
                self._room.take(tenant, -1)
            if not self._places:
                self._idle.set()

    @property
    def is_full(self) -> bool:
        """Whether only tenants with reserved places left get one."""
        return self._room.missing(1) > 0

    async def wait_idle(self) -> None:
        """Waits until no place is taken."""
        await self._idle.wait()

    def _take_from_others(self, tenant: str) -> None:
        """Frees a place if enough others wait for their callers: the oldest one of the tenant with the most."""
        waiting = [place for place in self._places if place.give_up and not place.is_lost and place.tenant != tenant]
        missing = self._room.missing(1)
        for _ in range(missing if missing <= len(waiting) else 0):
            [(most, _)] = Counter(place.tenant for place in waiting).most_common(1)
            place = next(place for place in waiting if place.tenant == most)
            waiting.remove(place)
            assert place.give_up is not None
            place.is_lost = True
            self._room.take(most, -1)
            place.give_up(_full("the server's queue is full, and this request waited for its images"))


def _full(text: str) -> TooManyRequests:
    return TooManyRequests(text, retry_after_s=_RETRY_AFTER_S)
