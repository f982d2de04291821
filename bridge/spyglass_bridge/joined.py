"""Several generations that are read as one.

Owns the numbers of their choices, which are counted through, and the sum of their usage. Knows nothing of HTTP.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge.generation import Update
from spyglass_bridge.link import LinkedGeneration


class Joined:
    """Generations of `n` choices each. The first that does not end well ends them all."""

    def __init__(self, generations: Sequence[LinkedGeneration], n: int) -> None:
        self._generations = generations
        self._n = n
        self._reading: dict[asyncio.Task[Update], int] = {}
        self._usage = pb.Usage()

    @classmethod
    @asynccontextmanager
    async def of(cls, generations: Sequence[LinkedGeneration], n: int) -> AsyncIterator["Joined"]:
        """Reads while the context is open."""
        joined = cls(generations, n)
        for number in range(len(generations)):
            joined._read(number)
        try:
            yield joined
        finally:
            for task in joined._reading:
                task.cancel()
            await asyncio.gather(*joined._reading, return_exceptions=True)

    async def next(self) -> Update:
        """Waits for something new of any; the last update has `finished`."""
        result = Update()
        done, _ = await asyncio.wait(self._reading, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            number, update = self._reading.pop(task), task.result()
            for delta in update.deltas:
                delta.index += number * self._n
            result.deltas += update.deltas
            if update.finished is None:
                self._read(number)
            elif update.finished.HasField("error"):
                result.finished = update.finished
            else:
                self._add(update.finished.usage)
        if not self._reading and result.finished is None:
            result.finished = pb.Finished(usage=self._usage)
        return result

    def _read(self, number: int) -> None:
        self._reading[asyncio.create_task(self._generations[number].next())] = number

    def _add(self, usage: pb.Usage) -> None:
        for name in ("prompt_tokens", "completion_tokens", "cached_tokens", "estimated_cost"):
            setattr(self._usage, name, getattr(self._usage, name) + getattr(usage, name))
