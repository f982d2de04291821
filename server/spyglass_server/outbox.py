"""The events of a stream on their way to the client.

A frame packs all events since the last one: a step of the engine is one message, and a client that reads slowly gets
fewer, larger ones.
"""

import asyncio
from collections.abc import AsyncIterator

from spyglass.v1 import inference_pb2 as pb
from spyglass_common.deltas import append_tool_calls

_FRAME_BYTES = 1 << 20
"""A frame ends with the event that exceeds this size; clients accept 4 MiB, and an event is far smaller."""

_MAX_LOGPROBS = 512
"""Maximum number of tokens with logprobs in a delta; each takes up to a kilobyte."""


_MAX_ATTENTION = 4
"""Maximum number of tokens with their attention in a delta; each takes up to 100 kilobytes."""

_MAX_EVENTS = 4096
"""Waiting events at which reading from the client pauses; running generations add few, since deltas join."""


class Outbox:
    """The events of one stream; one reader takes frames, any task may push."""

    def __init__(self) -> None:
        self._frame = pb.GenerateResponse()
        """The next frame. Deltas are built in place: copying them would take as long as building them."""
        self._open_deltas: dict[tuple[int, int], pb.Delta] = {}
        self._go_away: pb.GoAway | None = None
        self._wake, self._room = asyncio.Event(), asyncio.Event()
        self._room.set()
        self._closed = False

    def push(self, event: pb.Event) -> None:
        """Adds an event; a delta joins an earlier one of its choice that has not been taken yet."""
        key = (event.id, event.delta.index) if event.HasField("delta") else None
        if key and (earlier := self._open_deltas.get(key)) is not None and _has_room(earlier):
            _join(earlier, event.delta)
            return
        self._frame.events.append(event)
        if key:
            self._open_deltas[key] = self._frame.events[-1].delta
        self._note()

    def new_delta(self, event_id: int, index: int) -> pb.Delta | None:
        """Adds an empty delta of a choice, to be filled now; returns None if it must join an earlier, waiting one."""
        if (event_id, index) in self._open_deltas:
            return None
        event = self._frame.events.add()
        event.id = event_id
        delta = self._open_deltas[event_id, index] = event.delta
        delta.index = index
        self._note()
        return delta

    def _note(self) -> None:
        if len(self._frame.events) >= _MAX_EVENTS:
            self._room.clear()
        self._wake.set()

    async def has_room(self) -> None:
        """Waits until the reader has taken enough."""
        await self._room.wait()

    def go_away(self, reason: str, first_refused_id: int) -> None:
        """Asks the client to start nothing more on this stream; nothing from `first_refused_id` on was begun."""
        self._go_away = pb.GoAway(reason=reason, first_refused_id=first_refused_id)
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
            if self._frame.events or self._go_away:
                yield self._take()
            elif self._closed:
                return
            if self._closed:
                self._wake.set()

    def _take(self) -> pb.GenerateResponse:
        """Takes the first events, as many as fit into a frame; the rest is left for the next."""
        frame, self._frame = self._frame, pb.GenerateResponse()
        if frame.ByteSize() > _FRAME_BYTES:  # rare; asking every event for its size takes five times as long
            count = size = 0
            while count < len(frame.events) and size < _FRAME_BYTES:
                size += frame.events[count].ByteSize()
                count += 1
            self._frame.events.extend(frame.events[count:])
            del frame.events[count:]
        if self._go_away is not None:
            frame.go_away.CopyFrom(self._go_away)
            self._go_away = None
        self._open_deltas = {(e.id, e.delta.index): e.delta for e in self._frame.events if e.HasField("delta")}
        if len(self._frame.events) < _MAX_EVENTS:
            self._room.set()
        if self._frame.events:
            self._wake.set()
        return frame


def _has_room(delta: pb.Delta) -> bool:
    return len(delta.logprobs) < _MAX_LOGPROBS and len(delta.attention) < _MAX_ATTENTION


def _join(earlier: pb.Delta, later: pb.Delta) -> None:
    earlier.text += later.text
    earlier.token_ids.extend(later.token_ids)
    earlier.logprobs.extend(later.logprobs)
    earlier.attention.extend(later.attention)
    append_tool_calls(earlier.tool_calls, later.tool_calls)
    earlier.finish_reason = later.finish_reason
    if later.HasField("stop_string"):
        earlier.stop_string = later.stop_string
    if later.HasField("usage"):
        earlier.usage.CopyFrom(later.usage)
