"""Limits on the body of a request."""

import asyncio
import gzip
import io
import json
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


async def test_compressed_bodies_are_refused(bridge: BridgeUnderTest) -> None:
    data = gzip.compress(b" " * 10_000_000)
    async with bridge.http.post(CHAT, data=data, headers={**JSON, "Content-Encoding": "gzip"}) as response:
        assert response.status == 415


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
