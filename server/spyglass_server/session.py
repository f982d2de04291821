"""One Generate stream: starts, cancels and ends its generations, and enforces the rules for their ids."""

import asyncio
from collections.abc import AsyncIterator

from spyglass.v1 import inference_pb2 as pb
from spyglass_server.auth import ApiKey
from spyglass_server.codec import events
from spyglass_server.errors import InvalidRequest, Unavailable, going_down, to_status
from spyglass_server.generation import Generation
from spyglass_server.outbox import Outbox
from spyglass_server.resources import Resources


class Session:
    """The server's side of one stream."""

    def __init__(self, key: ApiKey, resources: Resources) -> None:
        self._key = key
        self._resources = resources
        self._outbox = Outbox()
        self._running: dict[int, Generation] = {}
        self._counts: dict[int, int] = {}
        """Token counts by usage record that the ledger does not have yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_id = -1
        self._no_more = self._is_draining = False

    async def read(self, requests: AsyncIterator[pb.GenerateRequest]) -> None:
        """Reads the client's messages until it closes its half of the stream.

        Raises:
            InvalidRequest: an id breaks the order; the whole stream is at fault.
        """
        try:
            async for request in requests:
                self._take(request)
                await self._outbox.has_room()
        except BaseException:
            self._outbox.close()
            raise
        self._no_more = True
        self._close_if_done()

    async def frames(self) -> AsyncIterator[pb.GenerateResponse]:
        """Yields frames to send, until nothing can follow; the ledger has counted the tokens in them."""
        async for frame in self._outbox.frames():
            if not self._keep_counts():
                kept = [event for event in frame.events if not event.HasField("delta")]
                frame = pb.GenerateResponse(events=kept, go_away=frame.go_away if frame.HasField("go_away") else None)
            yield frame

    def drain(self) -> None:
        """Asks the client to go away; running generations continue to their end."""
        if self._is_draining:
            return
        self._no_more = self._is_draining = True
        self._outbox.go_away("the server is going down", self._last_id + 1)
        self._close_if_done()

    def abandon(self) -> None:
        """Ends running generations, because the server is going down now."""
        for generation in list(self._running.values()):
            generation.end(going_down())

    async def aclose(self) -> None:
        """Cancels running generations and waits until they have released everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take(self, request: pb.GenerateRequest) -> None:
        match request.WhichOneof("kind"):
            case "start":
                self._begin(request.id, request.start)
            case "image_chunk":
                if generation := self._running.get(request.id):
                    generation.add_chunk(request.image_chunk)
            case "cancel":
                if generation := self._running.get(request.id):
                    generation.end()
            case _:
                raise InvalidRequest("a message needs start, image_chunk or cancel", field="kind")

    def _begin(self, event_id: int, start: pb.Start) -> None:
        if event_id <= self._last_id:
            raise InvalidRequest(f"id {event_id} does not follow {self._last_id}: ids must grow", field="id")
        self._last_id = event_id
        if self._is_draining:
            self._outbox.push(events.refused(event_id, to_status(going_down())))
            return
        outbox = self._outbox
        generation = Generation(
            event_id, start, self._key, self._resources, outbox.push, self._counts, outbox.new_delta
        )
        self._running[event_id] = generation
        task = generation.start()
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(event_id, done))

    def _ended(self, event_id: int, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        del self._running[event_id]
        self._close_if_done()

    def _keep_counts(self) -> bool:
        """Saves the counts since the last frame in the ledger. If that fails, all generations end."""
        if not self._counts:
            return True
        try:
            self._resources.ledger.count(self._counts)
        except Unavailable as error:
            for generation in self._running.values():
                generation.end(error)
            return False
        finally:
            self._counts.clear()
        return True

    def _close_if_done(self) -> None:
        if self._no_more and not self._running:
            self._outbox.close()
