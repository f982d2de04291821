"""One Generate call that carries the generations of many HTTP requests.

Owns its ids, the order in which messages are written, and the dispatch of frames. Starts and cancels
go ahead of image chunks, and the images of several generations take turns, so that an upload delays
nobody. Knows nothing of reconnecting: when the call ends, its generations fail and it is done with.
"""

import asyncio
import logging
from collections import deque

import grpc
from google.rpc import code_pb2, status_pb2

from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge.errors import make_status
from spyglass_bridge.generation import Generation

IMAGE_CHUNK_BYTES = 256 << 10

GenerateCall = grpc.aio.StreamStreamCall[pb.GenerateRequest, pb.GenerateResponse]

_log = logging.getLogger(__name__)


class _Upload:
    """An image on its way."""

    def __init__(self, generation_id: int, image_index: int, data: bytes) -> None:
        self.generation_id = generation_id
        self._image_index = image_index
        self._data = data
        self._offset = 0

    def next_chunk(self) -> pb.GenerateRequest:
        end = self._offset + IMAGE_CHUNK_BYTES
        chunk = pb.ImageChunk(
            image_index=self._image_index, data=self._data[self._offset : end], last=self.done_at(end)
        )
        self._offset = end
        return pb.GenerateRequest(id=self.generation_id, image_chunk=chunk)

    def done_at(self, offset: int) -> bool:
        return offset >= len(self._data)

    @property
    def done(self) -> bool:
        return self.done_at(self._offset)


class Stream:
    """Generations by their ids, over one call. `run` must be running for anything to happen."""

    def __init__(self, call: GenerateCall) -> None:
        self._call = call
        self._generations: dict[int, Generation] = {}
        self._last_id = 0
        self._urgent: deque[pb.GenerateRequest] = deque()
        self._uploads: deque[_Upload] = deque()
        self._to_write = asyncio.Event()
        self._closed_to_starts = asyncio.Event()
        self.has_served = False

    @property
    def open_to_starts(self) -> bool:
        return not self._closed_to_starts.is_set()

    async def wait_closed_to_starts(self) -> None:
        """Returns when the server has announced the end of the call, or the call has ended."""
        await self._closed_to_starts.wait()

    def start(self, start: pb.Start) -> tuple[int, Generation]:
        """Begins a generation under the next id. The stream must be open to starts."""
        assert self.open_to_starts
        self._last_id += 1
        generation = Generation(start.n or 1)
        self._generations[self._last_id] = generation
        self._write_soon(pb.GenerateRequest(id=self._last_id, start=start))
        return self._last_id, generation

    def send_image(self, generation_id: int, image_index: int, data: bytes) -> None:
        """Queues an announced image. Without effect when the generation is over."""
        if generation_id in self._generations:
            self._uploads.append(_Upload(generation_id, image_index, data))
            self._to_write.set()

    def cancel(self, generation_id: int) -> None:
        """Ends a generation early; its later events are dropped. Without effect when it is over."""
        if self._generations.pop(generation_id, None) is not None:
            self._write_soon(pb.GenerateRequest(id=generation_id, cancel=pb.Cancel()))

    def fail_all(self, status: status_pb2.Status) -> None:
        """Ends every generation from this side."""
        for generation in self._generations.values():
            generation.fail(status)
        self._generations.clear()

    async def run(self) -> None:
        """Reads and writes until the call ends, however it ends. Cancelling it cancels the call."""
        try:
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._write_all())
                await self._read_all()
                writer.cancel()
        except* (grpc.RpcError, asyncio.InvalidStateError) as errors:
            # Both tasks meet the end of the call; the reader's error says why it ended.
            _log.warning("the stream to the server ended: %s", _describe(errors))
        finally:
            self._closed_to_starts.set()
            self._call.cancel()
            self.fail_all(
                make_status(code_pb2.UNAVAILABLE, "The connection to the model server was lost.", "server_unavailable")
            )

    async def _read_all(self) -> None:
        while (frame := await self._call.read()) is not grpc.aio.EOF:
            assert isinstance(frame, pb.GenerateResponse)
            for event in frame.events:
                self._dispatch(event)
            if frame.HasField("go_away"):
                _log.info("the server ends the stream: %s", frame.go_away.reason)
                self._closed_to_starts.set()
                self._to_write.set()

    def _dispatch(self, event: pb.Event) -> None:
        self.has_served = True
        generation = self._generations.get(event.id)
        if generation is None:
            return  # It was cancelled here; its last events were still on their way.
        generation.push(event)
        if generation.over:
            del self._generations[event.id]
            self._to_write.set()

    async def _write_all(self) -> None:
        while True:
            if self._urgent:
                await self._call.write(self._urgent.popleft())
            elif self._uploads:
                await self._write_chunk()
            elif not self.open_to_starts and not self._generations:
                await self._call.done_writing()
                return
            else:
                self._to_write.clear()
                await self._to_write.wait()

    async def _write_chunk(self) -> None:
        upload = self._uploads.popleft()
        if upload.generation_id not in self._generations:
            return
        chunk = upload.next_chunk()
        if not upload.done:
            self._uploads.append(upload)
        await self._call.write(chunk)

    def _write_soon(self, request: pb.GenerateRequest) -> None:
        self._urgent.append(request)
        self._to_write.set()


def _describe(errors: BaseExceptionGroup[Exception]) -> str:
    for error in errors.exceptions:
        if isinstance(error, grpc.aio.AioRpcError):
            return f"{error.code().name}: {error.details()}"
    return repr(errors.exceptions[0])
