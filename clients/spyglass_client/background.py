"""An event loop on its own thread, for callers without one."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from spyglass_client.errors import ClientClosedError

T = TypeVar("T")


class BackgroundLoop:
    """Runs coroutines for other threads until it is closed."""

    def __init__(self, name: str) -> None:
        self._stop = asyncio.Event()
        self._closed = False
        running: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(running)), name=name, daemon=True)
        self._thread.start()
        self._loop = running.result()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine and returns its result; interrupting the caller cancels it."""
        if self._closed:
            coroutine.close()
            raise ClientClosedError("the client is closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def call(self, function: Callable[[], None]) -> None:
        """Schedules a call on the loop; does nothing once the loop is closed."""
        if not self._closed:
            self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        """Cancels running coroutines and ends the thread. May be called twice."""
        if not self._closed:
            self._closed = True
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    async def _main(self, running: Future[asyncio.AbstractEventLoop]) -> None:
        running.set_result(asyncio.get_running_loop())
        await self._stop.wait()
