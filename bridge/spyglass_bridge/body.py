"""Reading the body of a request, within limits of size and time."""

import asyncio
import mmap
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from aiohttp import HttpVersion11, hdrs, web

from spyglass_bridge.errors import ApiError, invalid
from spyglass_common.fair_room import FairRoom

LARGE_BODY_BYTES = 64 << 10
_MAX_WAIT_S = 25.0


@dataclass(slots=True)
class LargeBody:
    """A body in memory of its own, which never moves: to copy what has come whenever there is more takes too long."""

    memory: mmap.mmap
    size: int = 0

    def add(self, chunk: bytes) -> None:
        """Takes what comes next."""
        self.memory[self.size : self.size + len(chunk)] = chunk
        self.size += len(chunk)

    def view(self) -> memoryview:
        """All that has come."""
        return memoryview(self.memory)[: self.size].toreadonly()


class HeldBytes:
    """What a request holds of the memory for bodies. `release` it in any case."""

    def __init__(self, room: FairRoom, tenant: str) -> None:
        self._room, self._tenant = room, tenant
        self._size = 0

    def grow(self, num_bytes: int) -> None:
        """Holds more. Raises ApiError 429 when there is not so much."""
        if not self._room.take(self._tenant, num_bytes):
            message = "There is no room for the body now: the requests of others take it."
            raise ApiError(429, message, code="too_many_requests", retry_after_s=1)
        self._size += num_bytes

    def release(self) -> None:
        """Gives all of it back."""
        self._room.take(self._tenant, -self._size)
        self._size = 0


async def read_json_body(
    request: web.Request, max_bytes: int, held: HeldBytes, turn: Callable[[], AbstractAsyncContextManager[None]]
) -> bytes | LargeBody:
    """Returns the body as it came, a LargeBody beyond LARGE_BODY_BYTES. Raises ApiError: 408, 413, 415 or 429.

    Each piece of a large one is taken in a turn of its own.
    """
    if request.content_type != "application/json":
        raise ApiError(415, "The body must be JSON with Content-Type: application/json.", code="unsupported_media_type")
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise ApiError(415, "The body must not be compressed.", code="unsupported_content_encoding")
    if request.headers.get(hdrs.TRANSFER_ENCODING, "chunked").lower() != "chunked":
        raise ApiError(415, "The only transfer encoding is chunked.", code="unsupported_transfer_encoding")
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(_MAX_WAIT_S):
            _send_continue(request)
            return await _read(request, max_bytes, held, turn)
    except TimeoutError:
        raise ApiError(408, "The body took too long to arrive.", code="body_timeout") from None
    except web.RequestPayloadError:
        raise invalid("The body is cut short or badly framed.") from None


async def hold_continue(request: web.Request) -> None:
    """An expect handler that does nothing: 100 Continue is for `read_json_body` to send.

    So a caller who waits for it sends no body before its key has been checked.
    """


def _send_continue(request: web.Request) -> None:
    expected = request.version >= HttpVersion11 and request.headers.get(hdrs.EXPECT, "").lower() == "100-continue"
    if expected and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


async def _read(
    request: web.Request, max_bytes: int, held: HeldBytes, turn: Callable[[], AbstractAsyncContextManager[None]]
) -> bytes | LargeBody:
    body, large = bytearray(), None
    async for chunk in request.content.iter_any():
        if len(chunk) + (large.size if large else len(body)) > max_bytes:
            raise _too_large(max_bytes)
        held.grow(len(chunk))
        if large is None and len(body) + len(chunk) > LARGE_BODY_BYTES:
            large = LargeBody(mmap.mmap(-1, request.content_length or max_bytes))
            large.add(bytes(body))
        if large is None:
            body += chunk
        else:
            async with turn():
                large.add(chunk)
                await asyncio.sleep(0)  # all others first: memory that is new takes a while to write to
    return large or bytes(body)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"The body is larger than {max_bytes} bytes.", code="request_too_large")
