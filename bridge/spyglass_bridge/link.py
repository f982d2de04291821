"""The bridge's connection to the server: one shared stream, reopened whenever it is lost.

Owns the channel's options and the life of streams. A generation belongs to the stream that it was
started on: when that is lost the generation fails, and the caller may send the request again; a new
generation waits a moment for a stream and then fails too. Knows nothing of HTTP.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc import code_pb2

from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge.errors import make_status
from spyglass_bridge.generation import Generation, Update
from spyglass_bridge.stream import Stream

if TYPE_CHECKING:
    from spyglass.v1.inference_pb2_grpc import InferenceServiceAsyncStub

MAX_MESSAGE_BYTES = 4 << 20

# A generation that comes while there is no stream waits so long for one.
_WAIT_FOR_STREAM_S = 0.5
# So long the bridge waits for a server before it says so in the log and waits again.
_WAIT_FOR_SERVER_S = 30.0
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.8

Metadata = Sequence[tuple[str, str]]

_log = logging.getLogger(__name__)


def open_channel(target: str) -> grpc.aio.Channel:
    """Makes the one channel of a bridge. A server that comes back is tried at least twice a second."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        # In spite of its name this is also the time that one attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", 2_000),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return grpc.aio.insecure_channel(target, options=options)


@dataclass(slots=True)
class LinkedGeneration:
    """A generation with the way back to the server."""

    _generation: Generation
    _stream: Stream | None
    _id: int

    async def wait_accepted(self) -> bool:
        """Waits for its place in the queue; False when it ended instead."""
        await self._generation.wait_accepted()
        return not self._generation.over

    async def wait_started(self) -> bool:
        """Waits until its prompt is ready; False when it ended without ever being so."""
        await self._generation.wait_started()
        return self._generation.started is not None

    async def next(self) -> Update:
        """Waits for something new; the last update has `finished`."""
        return await self._generation.next()

    def send_image(self, image_index: int, data: bytes) -> None:
        """Queues an announced image; call it after Accepted."""
        if self._stream is not None:
            self._stream.send_image(self._id, image_index, data)

    def cancel(self) -> None:
        """Tells the server that nobody reads on. Without effect when it is over."""
        if self._stream is not None:
            self._stream.cancel(self._id)


class Link:
    """Starts generations. `run` keeps a stream open and must be running."""

    def __init__(self, stub: "InferenceServiceAsyncStub", metadata: Metadata) -> None:
        self._stub = stub
        self._metadata = metadata
        self._current: Stream | None = None
        self._streams: set[Stream] = set()
        self._opened = asyncio.Event()

    @property
    def is_up(self) -> bool:
        return self._usable() is not None

    @asynccontextmanager
    async def generate(self, start: pb.Start) -> AsyncIterator[LinkedGeneration]:
        """Starts a generation and cancels it at the end if it is not over.

        Without a connection it is a generation that has failed with UNAVAILABLE.
        """
        stream = await self._wait_stream()
        if stream is None:
            generation = Generation()
            generation.fail(
                make_status(code_pb2.UNAVAILABLE, "The model server is not available.", "server_unavailable")
            )
            yield LinkedGeneration(generation, None, 0)
            return
        linked = _started(stream, start)
        try:
            yield linked
        finally:
            linked.cancel()

    def fail_all(self) -> None:
        """Ends every generation with an explicit error: the bridge's time to drain is over."""
        status = make_status(code_pb2.UNAVAILABLE, "The server is shutting down.", "server_draining")
        for stream in self._streams:
            stream.fail_all(status)

    async def run(self) -> None:
        """Opens a stream, and another one whenever starts are no longer welcome on it. Never returns."""
        pause_s = _FIRST_PAUSE_S
        async with asyncio.TaskGroup() as group:
            while True:
                stream = await self._open()
                if stream is not None:
                    group.create_task(self._run_stream(stream))
                    self._current = stream
                    self._opened.set()
                    await stream.wait_closed_to_starts()
                    self._usable()
                pause_s = _FIRST_PAUSE_S if stream and stream.has_served else min(2 * pause_s, _LONGEST_PAUSE_S)
                await asyncio.sleep(pause_s)

    async def _open(self) -> Stream | None:
        """Waits for the server; None when there is none for long, or it does not know the bridge's key."""
        try:
            await self._stub.CheckAccess(
                pb.CheckAccessRequest(), metadata=self._metadata, timeout=_WAIT_FOR_SERVER_S, wait_for_ready=True
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                _log.error("the server does not know this bridge's own key: --bridge-key must be the same for both")
            else:
                _log.warning("no stream to the server: %s: %s", error.code().name, error.details())
            return None
        _log.info("connected to the server")
        return Stream(self._stub.Generate(metadata=self._metadata))

    async def _run_stream(self, stream: Stream) -> None:
        self._streams.add(stream)
        try:
            await stream.run()
        finally:
            self._streams.discard(stream)

    async def _wait_stream(self) -> Stream | None:
        try:
            async with asyncio.timeout(_WAIT_FOR_STREAM_S):
                while (stream := self._usable()) is None:
                    await self._opened.wait()
                return stream
        except TimeoutError:
            return None

    def _usable(self) -> Stream | None:
        """The current stream; forgets one that takes no more starts."""
        if self._current is not None and not self._current.open_to_starts:
            self._current = None
            self._opened.clear()
        return self._current


def _started(stream: Stream, start: pb.Start) -> LinkedGeneration:
    generation_id, generation = stream.start(start)
    return LinkedGeneration(generation, stream, generation_id)
