"""What waits to be written to a stream: starts and cancels first, pieces of pictures after them.

Owns the order of writing. Pieces of different generations take turns, so that one upload delays
neither a start nor another upload by more than one piece. Knows nothing of gRPC.
"""

import asyncio
from collections import deque
from collections.abc import Iterable

from spyglass.v1 import inference_pb2 as pb
from spyglass_client.request import Upload


class Outbox:
    """A queue of requests with one reader; everything else of it never blocks."""

    def __init__(self) -> None:
        self._urgent: deque[pb.GenerateRequest] = deque()
        self._uploads = deque[tuple[int, deque[pb.ImageChunk]]]()
        self._changed = asyncio.Event()
        self._closed = False

    def put(self, request: pb.GenerateRequest) -> None:
        """Adds a start or a cancel."""
        self._urgent.append(request)
        self._changed.set()

    def upload(self, generation_id: int, uploads: Iterable[Upload]) -> None:
        """Adds the pictures of a generation; they go out one after the other."""
        chunks = deque(chunk for upload in uploads for chunk in upload.chunks())
        self._uploads.append((generation_id, chunks))
        self._changed.set()

    def drop_upload(self, generation_id: int) -> None:
        """Forgets what is left of a generation's pictures."""
        self._uploads = deque(entry for entry in self._uploads if entry[0] != generation_id)

    def close(self) -> None:
        """Lets `get` return None once the queue is empty."""
        self._closed = True
        self._changed.set()

    async def get(self) -> pb.GenerateRequest | None:
        """The next request to write; None when there will be no more."""
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
        generation_id, chunks = self._uploads.popleft()
        chunk = chunks.popleft()
        if chunks:
            self._uploads.append((generation_id, chunks))
        return pb.GenerateRequest(id=generation_id, image_chunk=chunk)
