"""Stands in for the bridge: ready at once, ends at SIGTERM, and tells what it was given."""

import asyncio
import json
import os
import signal
import sys


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    line = await reader.readline()
    status = b"200 OK" if line.startswith(b"GET /ready ") else b"404 Not Found"
    writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    await writer.drain()
    writer.close()


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    given = {name: value for name, value in os.environ.items() if name.startswith("SPYGLASS_")}
    # One write for the whole line: the other program writes to the same pipe.
    sys.stdout.write(json.dumps({"bridge": os.getpid(), "environ": given}) + "\n")
    sys.stdout.flush()
    async with await asyncio.start_unix_server(answer, os.environ["SPYGLASS_HTTP"].removeprefix("unix:")):
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main())
