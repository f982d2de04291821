"""The bridge's Generate stream to a server, reopened whenever it is lost.

A generation belongs to the stream on which it was started. It fails when that stream is lost, and the caller may retry
the request; a new generation waits briefly for a stream and then fails too. A generation that a stopping server has
not begun is restarted on the next stream.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
from google.rpc import code_pb2, status_pb2

from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge.remote_generation import RemoteGeneration
from spyglass_common.generate_stream import GenerateStream
from spyglass_common.status import make_status

if TYPE_CHECKING:
    from spyglass.v1.inference_pb2_grpc import InferenceServiceAsyncStub

_STREAM_TIMEOUT_S = 0.5
"""How long a new generation waits for a stream."""
_SERVER_TIMEOUT_S = 30.0
"""How long the bridge waits for a server before it logs that there is none, and waits again."""
_MIN_PAUSE_S = 0.05
_MAX_PAUSE_S = 0.8

Metadata = Sequence[tuple[str, str]]
Stream = GenerateStream[status_pb2.Status]

_log = logging.getLogger(__name__)


class Link:
    """Starts generations. `run` keeps a stream open and must be running."""

    def __init__(self, stub: "InferenceServiceAsyncStub", metadata: Metadata) -> None:
        self._stub = stub
        self._metadata = metadata
        self._current: Stream | None = None
        self._streams: set[Stream] = set()
        self._beginnings: set[asyncio.Task[None]] = set()
        self._opened = asyncio.Event()
        self._successor: Link | None = None

    @property
    def is_up(self) -> bool:
        return self._usable() is not None

    @asynccontextmanager
    async def generate(self, start: pb.Start) -> AsyncIterator[RemoteGeneration]:
        """Starts a generation, and cancels it at the end of the context if it has not ended.

        Without a connection, the generation fails with UNAVAILABLE.
        """
        generation = RemoteGeneration(start, self._begin_later)
        await self._begin(generation)
        try:
            yield generation
        finally:
            generation.abandon()

    def fail_all(self) -> None:
        """Ends every generation with an explicit error: the drain timeout has expired."""
        for stream in self._streams:
            stream.fail_all(_unavailable("The server is shutting down.", "server_draining"))

    def retire(self, successor: "Link") -> None:
        """Passes new generations to the successor. `run` returns once the running ones have ended."""
        self._successor = successor
        for stream in self._streams:
            stream.retire()
        self._opened.set()

    async def run(self) -> None:
        """Opens a stream, and a new one whenever it accepts no more starts. Returns only once retired."""
        pause_s = _MIN_PAUSE_S
        async with asyncio.TaskGroup() as group:
            while self._successor is None:
                stream = await self._open()
                if stream is not None:
                    group.create_task(self._run_stream(stream))
                    self._current = stream
                    self._opened.set()
                    await stream.wait_draining()
                    self._usable()
                pause_s = _MIN_PAUSE_S if stream and stream.has_served else min(2 * pause_s, _MAX_PAUSE_S)
                await asyncio.sleep(pause_s)

    async def _begin(self, generation: RemoteGeneration) -> None:
        stream = await self._wait_stream()
        if self._successor is not None:
            await self._successor._begin(generation)
        elif stream is None:
            generation.on_lost(_unavailable("The model server is not available."))
        else:
            generation.begin(stream)

    def _begin_later(self, generation: RemoteGeneration) -> None:
        task = asyncio.create_task(self._begin(generation))
        self._beginnings.add(task)
        task.add_done_callback(self._beginnings.discard)

    async def _open(self) -> Stream | None:
        """Waits for the server; None after a timeout, or if the server rejects the bridge's key."""
        try:
            await self._stub.CheckAccess(
                pb.CheckAccessRequest(), metadata=self._metadata, timeout=_SERVER_TIMEOUT_S, wait_for_ready=True
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                _log.error("the server does not know this bridge's own key: --bridge-key must be the same for both")
            else:
                _log.warning("no stream to the server: %s: %s", error.code().name, error.details())
            return None
        if self._successor is not None:
            return None
        _log.info("connected to the server")
        return Stream(self._stub.Generate(metadata=self._metadata))

    async def _run_stream(self, stream: Stream) -> None:
        self._streams.add(stream)
        try:
            if error := await stream.run():
                _log.warning("the stream to the server ended: %s: %s", error.code().name, error.details())
        finally:
            self._streams.discard(stream)
            stream.close(_unavailable("The connection to the model server was lost."))

    async def _wait_stream(self) -> Stream | None:
        try:
            async with asyncio.timeout(_STREAM_TIMEOUT_S):
                while (stream := self._usable()) is None and self._successor is None:
                    await self._opened.wait()
                return stream
        except TimeoutError:
            return None

    def _usable(self) -> Stream | None:
        """The current stream, unless it accepts no more starts."""
        if self._current is not None and not self._current.is_accepting:
            self._current = None
            self._opened.clear()
        return self._current


def _unavailable(message: str, reason: str = "server_unavailable") -> status_pb2.Status:
    return make_status(code_pb2.UNAVAILABLE, message, reason=reason)
