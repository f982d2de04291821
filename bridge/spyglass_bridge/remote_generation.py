"""A generation on the server, as seen by the HTTP request that started it."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from google.rpc import status_pb2

from spyglass.v1 import inference_pb2 as pb
from spyglass_common.deltas import ChoiceDelta, PendingDeltas, is_plain
from spyglass_common.generate_stream import GenerateStream
from spyglass_common.rate_limits import RateLimits


@dataclass(slots=True)
class Update:
    """Everything that happened since the last update: usually the contents of one server response."""

    deltas: list[ChoiceDelta] = field(default_factory=list)
    finished: pb.Finished | None = None


class RemoteGeneration:
    """One generation: `wait_accepted`, `wait_started`, then `next` until an update has `finished`.

    It has one reader. A slow reader gets fewer, larger updates.
    """

    def __init__(self, start: pb.Start, begin_later: "Callable[[RemoteGeneration], None]") -> None:
        """`begin_later` calls `begin` with another stream, or `on_lost`."""
        self._n = start.n or 1
        self._start: pb.Start | None = start
        """Kept only until the server accepts it, since it may be large."""
        self._begin_later = begin_later
        self._stream: GenerateStream[status_pb2.Status] | None = None
        self._id = 0
        self._is_abandoned = False
        self._is_accepted = False
        self._has_started = False
        self.rate_limits: RateLimits | None = None
        """What remains of the caller's limits, once the generation has started; None without limits."""
        self._image_grids: Sequence[pb.ImageGrid] = ()
        self._pending = PendingDeltas(is_plain=is_plain(start))
        self._finished: pb.Finished | None = None
        self._changed = asyncio.Event()
        self._reader: asyncio.Future[None] | None = None
        """What `next` waits for: there is only one reader, and an Event would take twice as long per token."""

    def begin(self, stream: GenerateStream[status_pb2.Status]) -> None:
        """Starts the generation on an accepting stream."""
        if self._start is not None and not self._is_abandoned:
            self._stream, self._id = stream, stream.start(self._start, self)

    def send_image(self, image_index: int, data: bytes) -> None:
        """Sends an announced image; call it after Accepted."""
        if self._stream is not None:
            self._stream.send_image(self._id, image_index, data)

    def abandon(self) -> None:
        """Cancels the generation, which no longer has a reader. Does nothing if it has ended."""
        self._is_abandoned = True
        if self._stream is not None:
            self._stream.abandon(self._id)

    async def wait_accepted(self) -> bool:
        """Waits for Accepted; False if the generation ended without it."""
        while not self._is_accepted and self._finished is None:
            await self._wait()
        return self._finished is None

    async def wait_started(self) -> bool:
        """Waits for Started; False if the generation ended without it."""
        while not self._has_started and self._finished is None:
            await self._wait()
        return self._has_started

    async def next(self) -> Update:
        """Waits for deltas or the end, and returns everything available; the last update has `finished`."""
        while not self._pending and self._finished is None:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        deltas = self._pending.take_all()
        if self._image_grids:
            for delta in deltas:
                delta.image_grids = self._image_grids
        return Update(deltas, self._finished)

    def on_event(self, event: pb.Event) -> None:
        """Receives an event of the stream."""
        kind = event.WhichOneof("kind")
        if kind == "delta":
            self._pending.add(event.delta)
        elif kind == "prompt":  # every choice begins with it
            for index in range(self._n):
                self._pending.add(pb.Delta(index=index, text=event.prompt.text, logprobs=event.prompt.logprobs))
        elif kind == "finished":
            self._finished = event.finished
        elif kind == "started":
            self._has_started = True
            self.rate_limits = RateLimits.from_proto(event.started.rate_limits)
            self._image_grids = event.started.image_grids
        elif kind == "accepted":
            self._is_accepted, self._start = True, None
        self._notify()

    def on_lost(self, failure: status_pb2.Status) -> None:
        """Ends the generation with a status made by the bridge."""
        self._finished = pb.Finished(error=failure)
        self._notify()

    def on_returned(self) -> None:
        """Arranges for a start on another stream."""
        self._stream = None
        self._begin_later(self)

    def _notify(self) -> None:
        self._changed.set()
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()
