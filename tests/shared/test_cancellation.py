"""Work that a cancel must not cut in two."""

import asyncio
import gc
import weakref

import pytest

from spyglass_common.cancellation import to_the_end


class Large:
    """Something that must not be kept."""


async def test_a_cancel_is_raised_after_the_work() -> None:
    done = asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0.05)
        done.set()

    task = asyncio.create_task(to_the_end(work()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()


async def test_what_failing_work_held_is_let_go_at_once() -> None:
    held: list[weakref.ref[Large]] = []

    def work() -> None:
        large = Large()
        held.append(weakref.ref(large))
        raise ValueError("too large")

    gc.disable()
    try:
        with pytest.raises(ValueError, match="too large"):
            await to_the_end(asyncio.to_thread(work))
        await asyncio.sleep(0)
        assert held[0]() is None
    finally:
        gc.enable()
