"""Reads request bodies within limits of size and time."""

import asyncio
import mmap
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from aiohttp import HttpVersion11, hdrs, web

from spyglass_bridge.errors import ApiError, invalid
from spyglass_common.fair_room import FairRoom

LARGE_BODY_BYTES = 64 << 10
_PIECE_BYTES = 64 << 10
"""Maximum bytes decompressed from a compressed body at once."""
_GZIP = 16 + zlib.MAX_WBITS
_MAX_WAIT_S = 25.0


@dataclass(slots=True)
class LargeBody:
    """A body in its own memory, which never moves: copying the data each time more arrives is too slow."""

    memory: mmap.mmap
    size: int = 0

    def add(self, chunk: bytes) -> None:
        """Appends the next chunk."""
        self.memory[self.size : self.size + len(chunk)] = chunk
        self.size += len(chunk)

    def view(self) -> memoryview:
        """Returns everything received so far."""
        return memoryview(self.memory)[: self.size].toreadonly()


class HeldBytes:
    """A request's share of the memory for bodies. Always `release` it."""

    def __init__(self, room: FairRoom, tenant: str) -> None:
        self._room, self._tenant = room, tenant
        self._size = 0

    def grow(self, num_bytes: int) -> None:
        """Takes more memory. Raises ApiError 429 if there is not enough."""
        if not self._room.take(self._tenant, num_bytes):
            message = "There is no room for the body now: the requests of others take it."
            raise ApiError(429, message, code="too_many_requests", retry_after_s=1)
        self._size += num_bytes

    def release(self) -> None:
        """Gives all memory back."""
        self._room.take(self._tenant, -self._size)
        self._size = 0


async def read_json_body(
    request: web.Request, max_bytes: int, held: HeldBytes, turn: Callable[[], AbstractAsyncContextManager[None]]
) -> bytes | LargeBody:
    """Returns the raw body, as a LargeBody beyond LARGE_BODY_BYTES. Raises ApiError: 400, 408, 413, 415 or 429.

    Each piece of a large body is read in its own turn.
    """
    if request.content_type != "application/json":
        raise ApiError(415, "The body must be JSON with Content-Type: application/json.", code="unsupported_media_type")
    coding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower()
    if coding not in ("identity", "gzip"):
        message = "The only Content-Encoding of a body is gzip."
        raise ApiError(415, message, code="unsupported_content_encoding")
    if request.headers.get(hdrs.TRANSFER_ENCODING, "chunked").lower() != "chunked":
        raise ApiError(415, "The only transfer encoding is chunked.", code="unsupported_transfer_encoding")
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(_MAX_WAIT_S):
            _send_continue(request)
            return await _read(request, max_bytes, held, turn, is_packed=coding == "gzip")
    except TimeoutError:
        raise ApiError(408, "The body took too long to arrive.", code="body_timeout") from None
    except web.RequestPayloadError:
        raise invalid("The body is cut short or badly framed.") from None


async def hold_continue(request: web.Request) -> None:
    """An expect handler that does nothing: `read_json_body` sends the 100 Continue.

    A caller that waits for it thus sends no body before its key has been checked.
    """


def _send_continue(request: web.Request) -> None:
    expected = request.version >= HttpVersion11 and request.headers.get(hdrs.EXPECT, "").lower() == "100-continue"
    if expected and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


async def _read(
    request: web.Request,
    max_bytes: int,
    held: HeldBytes,
    turn: Callable[[], AbstractAsyncContextManager[None]],
    *,
    is_packed: bool,
) -> bytes | LargeBody:
    body, large = bytearray(), None
    size = max_bytes if is_packed else request.content_length or max_bytes
    pieces = _unpack(request.content.iter_any(), max_bytes) if is_packed else request.content.iter_any()
    async for chunk in pieces:
        if len(chunk) + (large.size if large else len(body)) > max_bytes:
            raise _too_large(max_bytes)
        held.grow(len(chunk))
        if large is None and len(body) + len(chunk) > LARGE_BODY_BYTES:
            large = LargeBody(mmap.mmap(-1, size))
            large.add(bytes(body))
        if large is None:
            body += chunk
        else:
            async with turn():
                large.add(chunk)
                await asyncio.sleep(0)  # let other tasks run: writing to fresh memory takes a while
    return large or bytes(body)


async def _unpack(packed: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    """Decompresses a gzip stream piece by piece, only as far as the reader consumes it.

    Raises ApiError: 400 if it is not gzip, is cut short or has trailing data; 413 if it is too large.
    """
    unpacker, num_packed = zlib.decompressobj(_GZIP), 0
    async for rest in packed:
        num_packed += len(rest)
        if num_packed > max_bytes:  # endless empty blocks decompress to nothing
            raise _too_large(max_bytes)
        while rest:
            if unpacker.eof:
                raise _bad_gzip()
            try:
                piece = unpacker.decompress(rest, _PIECE_BYTES)
            except zlib.error:
                raise _bad_gzip() from None
            rest = unpacker.unconsumed_tail or unpacker.unused_data
            if piece:
                yield piece
                await asyncio.sleep(0)  # let other tasks run
    while not unpacker.eof:
        try:
            piece = unpacker.decompress(b"", _PIECE_BYTES)
        except zlib.error:
            raise _bad_gzip() from None
        if not piece:
            raise _bad_gzip()
        yield piece


def _bad_gzip() -> ApiError:
    message = "The body is not one whole gzip stream, as its Content-Encoding says."
    return ApiError(400, message, code="invalid_content_encoding")


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"The body is larger than {max_bytes} bytes.", code="request_too_large")
