"""Limits on the body of a request."""

import asyncio
import gzip
import io
import json
import resource
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from bridge_setup import CHAT, BridgeUnderTest, ask, run_bridge_under_test
from fake_service import PATIENCE_S, USER_KEY, FakeService, Reply
from raw_http import connect, request_head
from spyglass_bridge import body as body_module

JSON = {"Content-Type": "application/json"}


async def test_a_body_that_declares_too_much_is_refused_unread(server: FakeService) -> None:
    async with run_bridge_under_test(server, max_body_bytes=1000) as bridge, connect(bridge.port) as raw:
        head = request_head(
            CHAT, Authorization=f"Bearer {USER_KEY}", Content_Type="application/json", Content_Length=1001
        )
        await raw.send(head)
        assert " 413 " in await raw.head()


async def test_a_chunked_body_is_cut_at_the_limit(server: FakeService) -> None:
    async with run_bridge_under_test(server, max_body_bytes=1000) as bridge, connect(bridge.port) as raw:
        head = request_head(
            CHAT, Authorization=f"Bearer {USER_KEY}", Content_Type="application/json", Transfer_Encoding="chunked"
        )
        await raw.send(head + b"400\r\n" + b" " * 0x400 + b"\r\n")  # And no end.
        assert " 413 " in await raw.head()


async def test_a_chunked_body_within_the_limit_is_read(bridge: BridgeUnderTest) -> None:
    async with connect(bridge.port) as raw:
        data = json.dumps(ask()).encode()
        head = request_head(
            CHAT, Authorization=f"Bearer {USER_KEY}", Content_Type="application/json", Transfer_Encoding="chunked"
        )
        await raw.send(head + b"%x\r\n" % len(data) + data + b"\r\n0\r\n\r\n")
        assert " 200 " in await raw.head()


async def post_packed(bridge: BridgeUnderTest, data: bytes | AsyncIterator[bytes], coding: str = "gzip") -> int:
    """The status of the answer to a body that is sent as it is."""
    body = io.BytesIO(data) if isinstance(data, bytes) else data
    async with bridge.http.post(CHAT, data=body, headers={**JSON, "Content-Encoding": coding}) as response:
        return response.status


async def in_pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), size):
        yield data[begin : begin + size]
        await asyncio.sleep(0)


@pytest.mark.parametrize("coding", ["deflate", "br", "zstd", "x-gzip", "gzip, gzip", "identity, gzip"])
async def test_bodies_in_other_codings_are_refused(bridge: BridgeUnderTest, coding: str) -> None:
    assert await post_packed(bridge, gzip.compress(json.dumps(ask()).encode()), coding) == 415


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("level", [0, 1, 9])
async def test_a_gzip_body_is_read(bridge: BridgeUnderTest, size: int, level: int) -> None:
    """Short ones and those that are set apart, in whatever pieces they come."""
    for length in (5, 70_000):
        question = "".join(chr(97 + number * number % 26) for number in range(length))
        body = gzip.compress(json.dumps(ask(messages=[{"role": "user", "content": question}])).encode(), level)
        for data in (body, in_pieces(body, max(size, len(body) // 5000))):
            assert await post_packed(bridge, data, "GZip") == 200
            assert bridge.server.turns[-1].question == question


async def test_a_gzip_body_counts_as_what_is_in_it(server: FakeService) -> None:
    """The cap is on what it is unpacked, to the byte, and on what is sent."""
    body = json.dumps(ask(messages=[{"role": "user", "content": "x" * 1000}])).encode()
    async with run_bridge_under_test(server, max_body_bytes=len(body)) as bridge:
        assert await post_packed(bridge, gzip.compress(body)) == 200
        assert await post_packed(bridge, gzip.compress(body + b" ")) == 413
        endless = gzip.compress(b"")[:10] + b"\x00\x00\x00\xff\xff" * len(body)  # blocks that hold nothing
        assert await post_packed(bridge, in_pieces(endless, 100)) == 413


@pytest.mark.parametrize("damage", ["cut", "more behind", "another one behind", "checksum", "plain", "empty", "zlib"])
async def test_a_gzip_body_that_is_broken_is_refused(bridge: BridgeUnderTest, damage: str) -> None:
    for text in (json.dumps(ask()), json.dumps(ask(user="x" * 200_000))):
        whole = gzip.compress(text.encode())
        data = {
            "cut": whole[:-9],
            "more behind": whole + b"x",
            "another one behind": whole + whole,
            "checksum": whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:],
            "plain": text.encode(),
            "empty": b"",
            "zlib": zlib.compress(text.encode()),
        }[damage]
        for body in (data, in_pieces(data, 1 + len(data) // 100)):
            headers = {**JSON, "Content-Encoding": "gzip"}
            sent = io.BytesIO(body) if isinstance(body, bytes) else body
            async with bridge.http.post(CHAT, data=sent, headers=headers) as response:
                assert response.status == 400
                assert (await response.json())["error"]["code"] == "invalid_content_encoding"
    assert not bridge.server.turns


async def test_gzip_bodies_are_bounded_together(server: FakeService) -> None:
    """What they are unpacked is held, and given back."""
    async with run_bridge_under_test(server, max_pending_bytes=1 << 20) as bridge, AsyncExitStack() as stack:
        head = request_head(
            CHAT,
            Authorization=f"Bearer {USER_KEY}",
            Content_Type="application/json",
            Content_Encoding="gzip",
            Transfer_Encoding="chunked",
        )
        packer = zlib.compressobj(wbits=31)
        most = packer.compress(b" " * 900_000) + packer.flush(zlib.Z_SYNC_FLUSH)  # and no end
        first, second = [await stack.enter_async_context(connect(bridge.port)) for _ in range(2)]
        for raw in (first, second):
            await raw.send(head + b"%x\r\n%b\r\n" % (len(most), most))
            await asyncio.sleep(0.2)
        assert " 429 " in await second.head()
        first.writer.close()
        async with asyncio.timeout(PATIENCE_S):
            while (await bridge.chat(messages=[{"role": "user", "content": "x" * 900_000}]))[0] != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_a_bomb_costs_little(bridge: BridgeUnderTest) -> None:
    """64 KB that are 64 MiB unpacked: refused at the cap, and others are served meanwhile."""
    bomb = gzip.compress(bytes(256 << 20))
    before = memory_bytes()
    longest = 0.0
    loop = asyncio.get_running_loop()

    async def watch() -> None:
        nonlocal longest
        while True:
            began = loop.time()
            await asyncio.sleep(0)
            longest = max(longest, loop.time() - began)

    watching = asyncio.create_task(watch())
    try:
        assert await post_packed(bridge, bomb) == 413
    finally:
        watching.cancel()
    assert memory_bytes() - before < 80 << 20  # what a plain body of the cap would take
    assert longest < 0.25  # the largest of thousands of turns, on whatever machine


def memory_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_other_types_are_refused(bridge: BridgeUnderTest, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    async with bridge.http.post(CHAT, data=json.dumps(ask()), headers=headers) as response:
        assert response.status == 415


async def test_a_body_that_dribbles_is_given_up(bridge: BridgeUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "_MAX_WAIT_S", 0.05)
    async with connect(bridge.port) as raw:
        head = request_head(
            CHAT, Authorization=f"Bearer {USER_KEY}", Content_Type="application/json", Content_Length=100
        )
        await raw.send(head + b"{")
        assert " 408 " in await raw.head()


async def test_bodies_that_arrive_at_once_are_bounded_together(server: FakeService) -> None:
    """One key's bodies take no more than there is, and leave others a share; what was held is given back."""
    server.user_keys.add("other")
    server.tenants["other"] = "tenant-2"
    async with run_bridge_under_test(server, max_pending_bytes=1 << 20) as bridge:
        async with AsyncExitStack() as stack:
            senders = [await stack.enter_async_context(connect(bridge.port)) for _ in range(4)]
            head = request_head(
                CHAT, Authorization=f"Bearer {USER_KEY}", Content_Type="application/json", Content_Length=400_000
            )
            for raw in senders:
                await raw.send(head + b" " * 399_999)
            refused = [asyncio.create_task(raw.head()) for raw in senders]
            done, _ = await asyncio.wait(refused, return_when=asyncio.FIRST_COMPLETED)
            assert all(" 429 " in task.result() and "Retry-After: 1" in task.result() for task in done)
            async with bridge.http.post(CHAT, json=ask(), headers={"Authorization": "Bearer other"}) as response:
                assert response.status == 200
            await asyncio.sleep(0.2)
            assert sum(task.done() for task in refused) == 2
            for task in refused:
                task.cancel()
        async with asyncio.timeout(PATIENCE_S):
            while (await bridge.chat(messages=[{"role": "user", "content": "x" * 900_000}]))[0] != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_what_a_running_answer_no_longer_needs_is_given_back(server: FakeService) -> None:
    server.script = Reply(hang_after=1)
    async with run_bridge_under_test(server, max_pending_bytes=1 << 20) as bridge, AsyncExitStack() as stack:
        for _ in range(4):
            asking = bridge.http.post(CHAT, json=ask(stream=True, user="x" * 400_000))
            response = await stack.enter_async_context(asking)
            assert response.status == 200
            await response.content.readany()


async def test_length_and_chunks_together_are_refused(bridge: BridgeUnderTest) -> None:
    async with connect(bridge.port) as raw:
        head = request_head(CHAT, Authorization=f"Bearer {USER_KEY}", Content_Length=5, Transfer_Encoding="chunked")
        await raw.send(head + b"0\r\n\r\n")
        assert " 400 " in await raw.head()
        body = await raw.reader.read()  # To its end: the connection is closed.
        assert json.loads(body)["error"]["code"] == "invalid_http"


async def test_too_many_headers_are_refused(bridge: BridgeUnderTest) -> None:
    for headers in ({f"x_{i}": "1" for i in range(300)}, {"x": "y" * 100_000}):
        async with connect(bridge.port) as raw:
            await raw.send(request_head(CHAT, **headers))
            assert " 400 " in await raw.head()


async def test_headers_are_bounded_together(bridge: BridgeUnderTest) -> None:
    many = {f"x-{i}": "v" * 4000 for i in range(10)}
    async with bridge.http.post(CHAT, json=ask(), headers=many) as response:
        assert response.status == 431
        assert (await response.json())["error"]["code"] == "headers_too_large"


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "m", "messages": [' + b'{"role": "user", "content": ""},' * 100_000 + b"{}]}",
        b'{"model": "m", "metadata": [' + b"0," * 300_000 + b"0]}",
        b'{"model": "m", "messages": ' + json.dumps([{"role": "user", "content": "x"}] * 5000).encode() + b"}",
    ],
)
async def test_a_body_of_very_many_values_is_refused(bridge: BridgeUnderTest, body: bytes) -> None:
    async with bridge.http.post(CHAT, data=io.BytesIO(body), headers=JSON) as response:
        assert response.status == 400
        assert "most" in (message := (await response.json())["error"]["message"]) or "too many" in message


async def test_a_large_body_is_answered_like_a_small_one(bridge: BridgeUnderTest) -> None:
    status, answer = await bridge.chat(messages=[{"role": "user", "content": "word " * 50_000}])
    assert (status, answer["object"]) == (200, "chat.completion")


async def test_only_chunked_is_known_as_a_transfer_encoding(bridge: BridgeUnderTest) -> None:
    async with connect(bridge.port) as raw:
        head = request_head(
            CHAT, Authorization=f"Bearer {USER_KEY}", Content_Type="application/json", Transfer_Encoding="gzip, chunked"
        )
        await raw.send(head + b"1\r\nx\r\n0\r\n\r\n")
        assert " 415 " in await raw.head()
