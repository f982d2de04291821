"""One Generate call that many generations share.

Owns the ids, the one writer and the one reader of the call, and the rule that every generation on it
ends exactly once: with its Finished, or with the error that ended the call. Knows nothing of prompts
and answers.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import grpc

from spyglass.v1 import inference_pb2 as pb
from spyglass_client.errors import ClientClosedError, InternalError, SpyglassError, UnavailableError
from spyglass_client.outbox import Outbox
from spyglass_client.request import Upload

Call = grpc.aio.StreamStreamCall[pb.GenerateRequest, pb.GenerateResponse]
_CLOSED = "the client was closed"


class Receiver(Protocol):
    """Takes the events of one generation. Neither method may block or raise."""

    def on_event(self, event: pb.Event) -> None:
        """Takes the next event; Finished is the last one."""

    def on_lost(self, error: SpyglassError) -> None:
        """Learns that there will be no Finished, because the whole call ended."""


class SharedStream:
    """A running Generate call. `explain` finds the exception for the call's failure."""

    def __init__(self, call: Call, explain: Callable[[grpc.aio.AioRpcError], Awaitable[SpyglassError]]) -> None:
        self._call = call
        self._explain = explain
        self._outbox = Outbox()
        self._receivers: dict[int, Receiver] = {}
        self._announced: dict[int, tuple[Upload, ...]] = {}
        self._last_id = 0
        self._accepting = True
        self._task = asyncio.create_task(self._run(), name="spyglass generate stream")

    @property
    def accepting(self) -> bool:
        """Whether a new generation may begin here: not after a go-away or the call's end."""
        return self._accepting

    @property
    def ended(self) -> bool:
        """Whether the call is over."""
        return self._task.done()

    def submit(self, start: pb.Start, uploads: tuple[Upload, ...], receiver: Receiver) -> int:
        """Begins a generation and returns its id. Only while `accepting`."""
        assert self._accepting
        self._last_id += 1
        generation_id = self._last_id
        self._receivers[generation_id] = receiver
        if uploads:
            self._announced[generation_id] = uploads
        self._outbox.put(pb.GenerateRequest(id=generation_id, start=start))
        return generation_id

    def cancel(self, generation_id: int) -> None:
        """Asks for the end of a generation, whose Finished still comes; nothing if it has ended."""
        if generation_id in self._receivers:
            self._forget_uploads(generation_id)
            self._outbox.put(pb.GenerateRequest(id=generation_id, cancel=pb.Cancel()))

    async def close(self) -> None:
        """Cancels the call; what still runs on it ends with ClientClosedError."""
        self._task.cancel()
        await asyncio.wait([self._task])
        self._lose_all(ClientClosedError(_CLOSED))  # for a task that was cancelled before its first step
        if not self._task.cancelled():
            self._task.result()

    async def _run(self) -> None:
        """Owns the writer; however this ends, no generation is left waiting."""
        lost: SpyglassError = ClientClosedError(_CLOSED)
        try:
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(self._write(), name="spyglass generate writer")
                lost = await self._read()
                writer.cancel()
        except Exception:
            lost = InternalError("the client failed; close() says why")
            raise
        finally:
            self._lose_all(lost)

    async def _read(self) -> SpyglassError:
        """Hands out events until the call ends, and returns why it did."""
        try:
            async for response in self._call:
                self._receive(response)
        except grpc.aio.AioRpcError as error:
            self._accepting = False
            return await self._explain(error)
        return UnavailableError("the server ended the stream", reason="STREAM_ENDED")

    async def _write(self) -> None:
        """The call's only writer. The reader learns why a write failed, so this just ends then."""
        try:
            while (request := await self._outbox.get()) is not None:
                await self._call.write(request)
            await self._call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            self._accepting = False

    def _receive(self, response: pb.GenerateResponse) -> None:
        for event in response.events:
            self._dispatch(event)
        if response.HasField("go_away"):
            self._accepting = False
        if not self._accepting and not self._receivers:
            self._outbox.close()

    def _dispatch(self, event: pb.Event) -> None:
        """Hands an event to its generation; one for an unknown id has no meaning and is skipped."""
        if event.id not in self._receivers:
            return
        kind = event.WhichOneof("kind")
        if kind == "finished":
            self._end(event.id).on_event(event)
            return
        if kind == "accepted" and (uploads := self._announced.pop(event.id, None)):
            self._outbox.upload(event.id, uploads)
        self._receivers[event.id].on_event(event)

    def _lose_all(self, error: SpyglassError) -> None:
        self._accepting = False
        self._call.cancel()
        for generation_id in list(self._receivers):
            self._end(generation_id).on_lost(error)

    def _end(self, generation_id: int) -> Receiver:
        self._forget_uploads(generation_id)
        return self._receivers.pop(generation_id)

    def _forget_uploads(self, generation_id: int) -> None:
        self._announced.pop(generation_id, None)
        self._outbox.drop_upload(generation_id)
