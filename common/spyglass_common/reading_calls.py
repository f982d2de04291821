"""Read-only calls, made so that the server may be replaced meanwhile."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from google.protobuf.message import Message

Response = TypeVar("Response")

_CUT = (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
"""How a call ends when its server stops or its connection breaks."""


async def read(
    method: Callable[..., Awaitable[Response]],
    request: Message,
    *,
    metadata: tuple[tuple[str, str], ...],
    timeout_s: float,
) -> Response:
    """Calls a unary method that changes nothing, and again if the call is cut: the server may have a successor.

    Both calls together take at most `timeout_s`. Raises the last call's AioRpcError.
    """
    end_s = time.monotonic() + timeout_s
    try:
        return await method(request, metadata=metadata, timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        left_s = end_s - time.monotonic()
        if error.code() not in _CUT or left_s <= 0:
            raise
    return await method(request, metadata=metadata, timeout=left_s)
