"""An event loop in a thread: examples are tried one after another, by code that is not asynchronous."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, TypeVar

from fuzz.waiting import PATIENCE_S

T = TypeVar("T")


class Background:
    """A loop that runs. Its errors reach who waits for them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = PATIENCE_S) -> T:
        """Runs a coroutine to its end."""
        return asyncio.run_coroutine_threadsafe(_within(work, timeout_s), self._loop).result()

    @contextmanager
    def entered(self, context: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """Holds an asynchronous context open, which is entered and left by one task."""
        is_over = asyncio.Event()

        async def hold(given: "asyncio.Future[T]") -> None:
            try:
                async with context as value:
                    given.set_result(value)
                    await is_over.wait()
            except BaseException as error:
                if given.done():
                    raise
                given.set_exception(error)

        async def begin() -> "tuple[T, asyncio.Task[None]]":
            given: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(hold(given))
            return await given, task

        async def end(task: "asyncio.Task[None]") -> None:
            is_over.set()
            await task

        value, task = self.run(begin())
        try:
            yield value
        finally:
            self.run(end(task))


async def _within(work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    async with asyncio.timeout(timeout_s):
        return await work


@contextmanager
def background() -> Iterator[Background]:
    """Runs a loop while the context is open."""
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        thread = threading.Thread(target=loop.run_forever, name="background")
        thread.start()
        try:
            yield Background(loop)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
