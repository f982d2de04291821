"""A server answer that many callers may request at once, and that need not be fresh."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Asks at most once per `age_s`, however many callers want the answer."""

    def __init__(self, ask: Callable[[], Awaitable[T]], age_s: float) -> None:
        self._ask, self._age_s = ask, age_s
        self._asking: asyncio.Future[T] | None = None
        self._asked_s = 0.0

    async def get(self) -> T:
        """Returns an answer requested at most `age_s` ago, or raises what asking raised."""
        now = asyncio.get_running_loop().time()
        if self._asking is None or (self._asking.done() and now - self._asked_s > self._age_s):
            self._asking, self._asked_s = asyncio.ensure_future(self._ask()), now
        return await asyncio.shield(self._asking)
