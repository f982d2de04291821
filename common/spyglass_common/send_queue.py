"""The order in which a client writes to a Generate stream: starts and cancels first, then image chunks."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterator

from spyglass.v1 import inference_pb2 as pb
from spyglass_common.limits import MAX_IMAGE_CHUNK_BYTES


class SendQueue:
    """Requests waiting to be written. One task takes them; adding never blocks.

    Generations that send images take turns, one chunk each, so that an upload delays neither a start nor another
    upload by more than one chunk. The images of one generation are sent one after the other.
    """

    def __init__(self) -> None:
        self._urgent: deque[pb.GenerateRequest] = deque()
        self._uploads: OrderedDict[int, deque[Iterator[pb.ImageChunk]]] = OrderedDict()
        self._changed = asyncio.Event()
        self._closed = False

    def put(self, request: pb.GenerateRequest) -> None:
        """Adds a start or a cancel."""
        self._urgent.append(request)
        self._changed.set()

    def put_image(self, generation_id: int, image_index: int, data: bytes) -> None:
        """Adds an announced image."""
        self._uploads.setdefault(generation_id, deque()).append(image_chunks(image_index, data))
        self._changed.set()

    def drop_images(self, generation_id: int) -> None:
        """Discards the unwritten part of a generation's images."""
        self._uploads.pop(generation_id, None)

    def close(self) -> None:
        """Makes `get` return None once the queue is empty."""
        self._closed = True
        self._changed.set()

    async def get(self) -> pb.GenerateRequest | None:
        """Waits for the next request and removes it; None when the queue is closed and empty."""
        while True:
            if self._urgent:
                return self._urgent.popleft()
            if self._uploads:
                return self._next_chunk()
            if self._closed:
                return None
            self._changed.clear()
            await self._changed.wait()

    def _next_chunk(self) -> pb.GenerateRequest:
        generation_id, images = self._uploads.popitem(last=False)
        chunk = next(images[0])
        if chunk.last:
            images.popleft()
        if images:
            self._uploads[generation_id] = images
        return pb.GenerateRequest(id=generation_id, image_chunk=chunk)


def image_chunks(image_index: int, data: bytes) -> Iterator[pb.ImageChunk]:
    """Cuts an image into chunks, at least one; the last one is marked."""
    for offset in range(0, len(data) or 1, MAX_IMAGE_CHUNK_BYTES):
        end = offset + MAX_IMAGE_CHUNK_BYTES
        yield pb.ImageChunk(image_index=image_index, data=data[offset:end], last=end >= len(data))
