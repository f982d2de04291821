"""The worst that a caller with a key can do, each way repeated until it is stopped.

Knows nothing about the other clients served meanwhile.
"""

import asyncio
import base64
import contextlib
import io
import itertools
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from grpc import aio
from PIL import Image

from processes import MODEL
from spyglass.v1 import chat_pb2, inference_pb2, inference_pb2_grpc

BODY_BYTES = 60 << 20
_SIDE = 6300
_NUM_PROPERTIES = 3000
_NUM_ANNOUNCED = 256
_DRIP_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Misuser:
    """A client with a key, and an address of this machine that image URLs may use."""

    http: aiohttp.ClientSession
    url: str
    grpc: str
    key: str
    body_bytes: int = BODY_BYTES
    side: int = _SIDE
    names: "itertools.count[int]" = field(default_factory=itertools.count)

    async def post(self, body: bytes) -> int:
        """Asks for a chat completion; returns the status."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        async with self.http.post(f"{self.url}/v1/chat/completions", data=io.BytesIO(body), headers=headers) as answer:
            await answer.read()
            return answer.status


Way = Callable[[Misuser], Awaitable[None]]


async def schemas(misuser: Misuser) -> None:
    """Eight calls, each with a different schema of 3,000 integer properties."""

    async def one() -> None:
        names = [f"p{next(misuser.names)}" for _ in range(_NUM_PROPERTIES)]
        schema = {
            "type": "object",
            "properties": {name: {"type": "integer"} for name in names},
            "required": names,
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
        await misuser.post(chat("x", max_tokens=2, response_format=form))

    await _several(misuser, 8, one)


async def pictures(misuser: Misuser) -> None:
    """Four requests with four pictures each of the maximum size."""
    file = large_png(misuser.side)

    async def one() -> None:
        new = (file + secrets.token_bytes(8) for _ in range(4))  # as new ones that were not decoded before
        parts = [image(f"data:image/png;base64,{base64.b64encode(data).decode()}") for data in new]
        await misuser.post(chat([*parts, {"type": "text", "text": "?"}], max_tokens=2))

    await _several(misuser, 4, one)


async def slow_urls(misuser: Misuser) -> None:
    """Four requests with sixteen pictures each, whose source sends a byte now and then."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 100000\r\n\r\n")
            while not reader.at_eof():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(_DRIP_S)
        writer.close()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as source:
        port = source.sockets[0].getsockname()[1]

        def body() -> bytes:
            parts = [image(f"http://127.0.0.1:{port}/{next(misuser.names)}.png") for _ in range(16)]
            return chat([*parts, {"type": "text", "text": "?"}], max_tokens=2)

        await _several(misuser, 4, lambda: misuser.post(body()))


async def announced(misuser: Misuser) -> None:
    """256 Starts over gRPC that announce an image which never arrives."""
    part = chat_pb2.Part(image=chat_pb2.Image(announced=chat_pb2.Announced()))
    message = chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[part, chat_pb2.Part(text="?")])
    start = inference_pb2.Start(chat=chat_pb2.Chat(messages=[message]))
    async with aio.insecure_channel(misuser.grpc) as channel:
        stub: inference_pb2_grpc.InferenceServiceAsyncStub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.Generate(metadata=(("authorization", f"Bearer {misuser.key}"),))
        for number in range(_NUM_ANNOUNCED):
            await call.write(inference_pb2.GenerateRequest(id=number, start=start))
        while await call.read() is not aio.EOF:
            pass


async def bodies(misuser: Misuser) -> None:
    """Four bodies of 60 MB, as text of one message."""
    body = chat("word " * (misuser.body_bytes // 5))
    await _several(misuser, 4, lambda: misuser.post(body))


async def odd_bodies(misuser: Misuser) -> None:
    """Four bodies of 60 MB, each hard to parse in a different way."""
    size = misuser.body_bytes
    many = [{"role": "user", "content": "word " * (size // 5 // 4000)} for _ in range(4000)]
    found = [
        chat('\\"\n' * (size // 5)),  # each character is escaped
        chat("\N{SNOWMAN}" * (size // 6)),
        chat([{"type": "text", "text": "x" * (size // 2000)} for _ in range(2000)]),
        json.dumps({"model": MODEL, "messages": many}).encode(),
    ]
    turns = itertools.cycle(found)
    await _several(misuser, 4, lambda: misuser.post(next(turns)))


async def at_once(misuser: Misuser) -> None:
    """All ways at once."""
    async with asyncio.TaskGroup() as group:
        for name, way in WAYS.items():
            if name != "all at once":
                group.create_task(_forever(way, misuser))


WAYS: Mapping[str, Way] = {
    "schemas": schemas,
    "pictures": pictures,
    "slow URLs": slow_urls,
    "announced images": announced,
    "large bodies": bodies,
    "odd large bodies": odd_bodies,
    "all at once": at_once,
}


async def _forever(way: Way, misuser: Misuser) -> None:
    while True:
        with contextlib.suppress(aiohttp.ClientError, aio.AioRpcError):
            await way(misuser)


async def _several(misuser: Misuser, count: int, ask: Callable[[], Awaitable[object]]) -> None:
    """Asks `count` times at once, repeatedly."""

    async def again_and_again() -> None:
        while True:
            try:
                await ask()
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(again_and_again())


def chat(content: object, **more: Any) -> bytes:
    """Returns the body of a request with one message."""
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": content}], **more}).encode()


def image(url: str) -> dict[str, Any]:
    """Returns a message part with a picture."""
    return {"type": "image_url", "image_url": {"url": url}}


def large_png(side: int) -> bytes:
    """Returns a square picture that is costly to decode and cheap to send."""
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG", compress_level=1)
    return file.getvalue()


async def misuse(name: str, *, url: str, grpc: str, key: str, body_bytes: int, side: int) -> None:
    """Misuses the service in this way until cancelled."""
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
        await _forever(WAYS[name], Misuser(http=http, url=url, grpc=grpc, key=key, body_bytes=body_bytes, side=side))
