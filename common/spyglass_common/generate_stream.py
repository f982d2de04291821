"""The client side of a Generate call: many generations, multiplexed by id.

    stream = GenerateStream(stub.Generate(metadata=metadata))
    running = asyncio.create_task(stream.run())
    generation_id = stream.start(pb.Start(text="Once"), receiver)

The bridge and the Python client build on it. Each opens new streams in its own way.
"""

import asyncio
import logging
from typing import Generic, Protocol, TypeVar

import grpc

from spyglass.v1 import inference_pb2 as pb
from spyglass_common.send_queue import SendQueue

GenerateCall = grpc.aio.StreamStreamCall[pb.GenerateRequest, pb.GenerateResponse]

_log = logging.getLogger(__name__)

Failure = TypeVar("Failure")
Failure_contra = TypeVar("Failure_contra", contravariant=True)


class Receiver(Protocol[Failure_contra]):
    """Receives the events of one generation. Neither method may block or raise."""

    def on_event(self, event: pb.Event) -> None:
        """Receives the next event; Finished is the last one."""

    def on_lost(self, failure: Failure_contra) -> None:
        """The generation ended without Finished."""

    def on_returned(self) -> None:
        """The server is stopping and will not begin the generation, which may be started on another stream."""


class GenerateStream(Generic[Failure]):
    """A Generate call. Nothing is read or written before `run`.

    Every receiver gets exactly one end: Finished, `on_lost` with the failure passed to `fail_all` or `close`, or
    `on_returned`.
    """

    def __init__(self, call: GenerateCall) -> None:
        self._call = call
        self._receivers: dict[int, Receiver[Failure]] = {}
        self._last_id = 0
        self._requests = SendQueue()
        self._draining = asyncio.Event()
        self.has_served = False
        """Whether any event has arrived."""

    @property
    def is_accepting(self) -> bool:
        """Whether generations may be started: not after a go-away or the end of the call."""
        return not self._draining.is_set()

    async def wait_draining(self) -> None:
        """Waits until no more generations may be started."""
        await self._draining.wait()

    def start(self, start: pb.Start, receiver: Receiver[Failure]) -> int:
        """Starts a generation and returns its id. The stream must be accepting."""
        assert self.is_accepting
        self._last_id += 1
        self._receivers[self._last_id] = receiver
        self._requests.put(pb.GenerateRequest(id=self._last_id, start=start))
        return self._last_id

    def send_image(self, generation_id: int, image_index: int, data: bytes) -> None:
        """Sends an announced image. Call it after Accepted; it does nothing for a generation that has ended."""
        if generation_id in self._receivers:
            self._requests.put_image(generation_id, image_index, data)

    def cancel(self, generation_id: int) -> None:
        """Asks the server to end a generation, whose Finished still comes. Does nothing if it has ended."""
        if generation_id in self._receivers:
            self._requests.drop_images(generation_id)
            self._requests.put(pb.GenerateRequest(id=generation_id, cancel=pb.Cancel()))

    def abandon(self, generation_id: int) -> None:
        """Like `cancel`, but the receiver gets no more events."""
        self.cancel(generation_id)
        self._receivers.pop(generation_id, None)
        self._finish_if_drained()

    def retire(self) -> None:
        """Accepts no more starts, and ends the call once the running generations have ended."""
        self._draining.set()
        self._finish_if_drained()

    def fail_all(self, failure: Failure) -> None:
        """Ends all generations locally."""
        receivers = list(self._receivers.items())
        self._receivers.clear()
        for generation_id, receiver in receivers:
            self._requests.drop_images(generation_id)
            receiver.on_lost(failure)

    def close(self, failure: Failure) -> None:
        """Cancels the call and ends all generations. Call it after `run`, however that ended."""
        self._draining.set()
        self._call.cancel()
        self.fail_all(failure)

    async def run(self) -> grpc.aio.AioRpcError | None:
        """Reads and writes until the call ends. Returns its error, or None if the server ended it normally."""
        try:
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(self._write_all())
                error = await self._read_all()
                writer.cancel()
        finally:
            self._draining.set()
        return error

    async def _read_all(self) -> grpc.aio.AioRpcError | None:
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                assert isinstance(response, pb.GenerateResponse)
                self._receive(response)
        except grpc.aio.AioRpcError as error:
            return error
        return None

    def _receive(self, response: pb.GenerateResponse) -> None:
        if response.HasField("go_away"):
            _log.info("the server is ending the stream: %s", response.go_away.reason)
            self._draining.set()
            if response.go_away.HasField("first_refused_id"):
                self._return_from(response.go_away.first_refused_id)
        for event in response.events:
            self._dispatch(event)
        self._finish_if_drained()

    def _return_from(self, first_id: int) -> None:
        for generation_id in [known for known in self._receivers if known >= first_id]:
            self._receivers.pop(generation_id).on_returned()

    def _dispatch(self, event: pb.Event) -> None:
        self.has_served = True
        receiver = self._receivers.get(event.id)
        if receiver is None:
            return  # abandoned or returned while its last events were in flight
        if event.HasField("finished"):
            del self._receivers[event.id]
            self._requests.drop_images(event.id)
        receiver.on_event(event)

    def _finish_if_drained(self) -> None:
        """Half-closes the call once nothing more will be written: the server then ends it."""
        if not (self.is_accepting or self._receivers):
            self._requests.close()

    async def _write_all(self) -> None:
        """The call's only writer. If a write fails, the call has ended and the reader gets the reason."""
        try:
            while (request := await self._requests.get()) is not None:
                await self._call.write(request)
            await self._call.done_writing()
        except (grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
            self._draining.set()
