"""The events of a stream on their way to the client.

A frame packs all that has happened since the last one: a step of the engine is one message, and a client that reads
slowly gets fewer and larger ones.
"""

import asyncio
from collections.abc import AsyncIterator

from spyglass.v1 import inference_pb2 as pb
from spyglass_common.deltas import append_tool_calls

_FRAME_BYTES = 1 << 20
"""A frame ends with the event that passes this size; clients take 4 MiB, and an event is far smaller."""

_MAX_LOGPROBS = 512
"""Maximum number of tokens with logprobs in a delta; each takes up to a kilobyte."""


_MAX_EVENTS = 4096
"""So many events may wait for a reader before nothing more is taken from it; what runs adds few, since deltas join."""


class Outbox:
    """The events of one stream; one reader takes frames, anyone may push."""

    def __init__(self) -> None:
        self._events: list[pb.Event] = []
        self._open_deltas: dict[tuple[int, int], pb.Delta] = {}
        self._go_away: pb.GoAway | None = None
        self._wake, self._room = asyncio.Event(), asyncio.Event()
        self._room.set()
        self._closed = False

    def push(self, event: pb.Event) -> None:
        """Adds an event; a delta joins an earlier one of its choice that has not been taken yet."""
        if event.WhichOneof("kind") == "delta":
            key = (event.id, event.delta.index)
            earlier = self._open_deltas.get(key)
            if earlier is not None and len(earlier.logprobs) < _MAX_LOGPROBS:
                _join(earlier, event.delta)
                return
            self._open_deltas[key] = event.delta
        self._events.append(event)
        if len(self._events) >= _MAX_EVENTS:
            self._room.clear()
        self._wake.set()

    async def has_room(self) -> None:
        """Waits until the reader has taken enough."""
        await self._room.wait()

    def go_away(self, reason: str) -> None:
        """Tells the client to start nothing more on this stream."""
        self._go_away = pb.GoAway(reason=reason)
        self._wake.set()

    def close(self) -> None:
        """Ends `frames` after what has been pushed."""
        self._closed = True
        self._wake.set()

    async def frames(self) -> AsyncIterator[pb.GenerateResponse]:
        """Yields frames until the outbox is closed and empty."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._events or self._go_away:
                yield self._take()
            elif self._closed:
                return
            if self._closed:
                self._wake.set()

    def _take(self) -> pb.GenerateResponse:
        """Takes the first events, as many as a frame may hold; what is left is for the next."""
        count = size = 0
        while count < len(self._events) and size < _FRAME_BYTES:
            size += self._events[count].ByteSize()
            count += 1
        frame = pb.GenerateResponse(events=self._events[:count], go_away=self._go_away)
        self._events, self._go_away = self._events[count:], None
        self._open_deltas = {(e.id, e.delta.index): e.delta for e in self._events if e.HasField("delta")}
        if len(self._events) < _MAX_EVENTS:
            self._room.set()
        if self._events:
            self._wake.set()
        return frame


def _join(earlier: pb.Delta, later: pb.Delta) -> None:
    earlier.text += later.text
    earlier.token_ids.extend(later.token_ids)
    earlier.logprobs.extend(later.logprobs)
    append_tool_calls(earlier.tool_calls, later.tool_calls)
    earlier.finish_reason = later.finish_reason
    if later.HasField("stop_string"):
        earlier.stop_string = later.stop_string
    if later.HasField("usage"):
        earlier.usage.CopyFrom(later.usage)
