"""Where an answer ends, for every version of HTTP that clients speak."""

import asyncio
import json

import pytest

from bridge_setup import CHAT, BridgeUnderTest, ask
from fake_service import USER_KEY
from raw_http import RawConnection, connect, request_head

SHORT_S = 5.0
KEY = {"Authorization": f"Bearer {USER_KEY}", "Content_Type": "application/json"}


async def post(raw: RawConnection, version: str, is_stream: bool, **headers: str) -> None:
    body = json.dumps(ask(stream=is_stream)).encode()
    head = request_head(CHAT, Content_Length=len(body), **KEY, **headers)
    await raw.send(head.replace(b"HTTP/1.1", f"HTTP/{version}".encode()) + body)


@pytest.mark.parametrize(
    ("version", "headers"),
    [("1.0", {"Connection": "keep-alive"}), ("1.0", {}), ("1.1", {"Connection": "close"})],
)
async def test_a_stream_ends_with_its_connection_where_the_client_cannot_see_its_end(
    bridge: BridgeUnderTest, version: str, headers: dict[str, str]
) -> None:
    async with connect(bridge.port) as raw:
        await post(raw, version, True, **headers)
        head = await raw.head()
        async with asyncio.timeout(SHORT_S):
            body = (await raw.reader.read()).decode()
    assert "keep-alive" not in head
    assert ("Transfer-Encoding: chunked" in head) == (version == "1.1")
    assert body.removesuffix("\r\n0\r\n\r\n").rstrip().endswith("data: [DONE]")


async def test_an_answer_with_a_length_leaves_the_connection_open_for_the_next(bridge: BridgeUnderTest) -> None:
    async with connect(bridge.port) as raw:
        for _ in range(2):
            await post(raw, "1.0", False, Connection="keep-alive")
            head = await raw.head()
            assert "Connection: keep-alive" in head
            length = int(head.lower().partition("content-length: ")[2].split()[0])
            answer = json.loads(await raw.reader.readexactly(length))
            assert answer["choices"][0]["message"]["content"] == "Hello!"


async def test_chunks_leave_the_connection_open_for_the_next(bridge: BridgeUnderTest) -> None:
    async with connect(bridge.port) as raw:
        for _ in range(2):
            await post(raw, "1.1", True)
            assert "chunked" in await raw.head()
            assert (await raw.reader.readuntil(b"\r\n0\r\n\r\n")).count(b"[DONE]") == 1


async def test_no_interim_answer_goes_to_a_client_of_http_1_0(bridge: BridgeUnderTest) -> None:
    async with connect(bridge.port) as raw:
        await post(raw, "1.0", False, Expect="100-continue")
        assert (await raw.head()).startswith("HTTP/1.0 200")
