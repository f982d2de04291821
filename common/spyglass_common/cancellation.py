"""Work that a cancel must not cut in two."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work` to its end; a cancel that comes meanwhile is raised after it."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    try:
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as error:
                if task.cancelled():
                    raise
                cancelled = error
            except Exception:
                break  # raised below, from the task
        if cancelled is not None:
            raise cancelled from task.exception()
        return task.result()
    finally:
        # The traceback of what is raised has this frame: with these in it, it would keep itself and all its frames.
        del task, cancelled
