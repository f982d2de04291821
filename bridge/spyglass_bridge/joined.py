"""Several generations read as one: their choices are numbered consecutively and their usage is added up."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge.remote_generation import RemoteGeneration, Update


class Joined:
    """Generations of `n` choices each. The first that fails ends them all."""

    def __init__(self, generations: Sequence[RemoteGeneration], n: int) -> None:
        self._generations = generations
        self._n = n
        self._reading: dict[asyncio.Task[Update], int] = {}
        self._used = [pb.Usage() for _ in generations]

    @classmethod
    @asynccontextmanager
    async def of(cls, generations: Sequence[RemoteGeneration], n: int) -> AsyncIterator["Joined"]:
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
        """Waits for an update of any generation; the last update has `finished`."""
        result = Update()
        done, _ = await asyncio.wait(self._reading, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            number, update = self._reading.pop(task), task.result()
            for delta in update.deltas:
                delta.index += number * self._n
                if delta.usage is not None:
                    self._used[number] = delta.usage
                    delta.usage = self._usage()
            result.deltas += update.deltas
            if update.finished is None:
                self._read(number)
            elif update.finished.HasField("error"):
                result.finished = update.finished
            else:
                self._used[number] = update.finished.usage
        if not self._reading and result.finished is None:
            result.finished = pb.Finished(usage=self._usage())
        return result

    def _read(self, number: int) -> None:
        self._reading[asyncio.create_task(self._generations[number].next())] = number

    def _usage(self) -> pb.Usage:
        return pb.Usage(
            prompt_tokens=sum(used.prompt_tokens for used in self._used),
            completion_tokens=sum(used.completion_tokens for used in self._used),
            cached_tokens=sum(used.cached_tokens for used in self._used),
            estimated_cost=sum(used.estimated_cost for used in self._used),
            accepted_prediction_tokens=sum(used.accepted_prediction_tokens for used in self._used),
            rejected_prediction_tokens=sum(used.rejected_prediction_tokens for used in self._used),
        )
