"""Readiness probes for server and bridge."""

import asyncio
import ssl

import grpc

from spyglass_client.target import dialable, open_channel
from spyglass_common.tls import Tls

PROBE_TIMEOUT_S = 5.0
_SERVING = b"\x08\x01"  # grpc.health.v1.HealthCheckResponse with status SERVING


async def grpc_is_serving(address: str, tls: Tls | None = None) -> bool:
    """Whether the standard health service at `address` reports SERVING for the server as a whole.

    Raises OSError if a TLS file cannot be read.
    """
    async with open_channel(dialable(address), tls) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check", request_serializer=bytes, response_deserializer=bytes
        )
        try:
            return bool(await check(b"", timeout=PROBE_TIMEOUT_S) == _SERVING)
        except grpc.aio.AioRpcError:
            return False


async def http_is_ready(address: str, path: str = "/ready", *, is_tls: bool = False) -> bool:
    """Whether a GET of `path` at HOST:PORT or unix:PATH is answered with 200."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            return await _get_status(address, path, _trusting() if is_tls else None) == b"200"
    except (OSError, TimeoutError):
        return False


async def is_listening(address: str) -> bool:
    """Whether anything accepts connections at HOST:PORT or unix:PATH."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            _, writer = await _connect(address)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def _trusting() -> ssl.SSLContext:
    """Accepts any certificate: a probe sends no secrets and reads only a status code."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _connect(
    address: str, context: ssl.SSLContext | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.startswith("unix:"):
        return await asyncio.open_unix_connection(address.removeprefix("unix:"))
    host, _, port = dialable(address).rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port), ssl=context)


async def _get_status(address: str, path: str, context: ssl.SSLContext | None) -> bytes:
    """Returns the status code of the response; empty if there is none."""
    reader, writer = await _connect(address, context)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        _, _, rest = (await reader.readline()).partition(b" ")
        return rest[:3]
    finally:
        writer.close()
