"""HTTP by hand, for what well-behaved clients do not do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class RawConnection:
    """A connection on which any bytes can be sent."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> str:
        """The status line and headers of the next answer."""
        return (await self.reader.readuntil(b"\r\n\r\n")).decode()


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[RawConnection]:
    """A connection to a port of this machine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield RawConnection(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def request_head(path: str, **headers: object) -> bytes:
    """The head of a POST; underscores in names of headers become dashes."""
    lines = [f"POST {path} HTTP/1.1", "Host: bridge"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()
