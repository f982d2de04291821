"""Who may come in, and that a stranger is turned away before anything of the body is read."""

import asyncio

import pytest

from bridge_setup import CHAT, MODEL, BridgeUnderTest, ask, run_bridge_under_test
from fake_service import USER_KEY, FakeService
from raw_http import connect, request_head

BAD_KEYS = (
    "",
    "Bearer",
    "Bearer ",
    "Bearer wrong",
    f"Bearer {USER_KEY} x",
    f"Bearer {USER_KEY},x",
    "Bearer ' OR 1=1--",
    f"Basic {USER_KEY}",
)


async def test_every_bad_key_gets_the_same_answer(bridge: BridgeUnderTest) -> None:
    await bridge.wait_ready()  # before that nobody can tell who is a stranger
    answers = set()
    for headers in ({}, *({"Authorization": key} for key in BAD_KEYS)):
        async with connect(bridge.port) as raw:
            await raw.send(request_head(CHAT, Content_Length=0, **headers))
            assert " 401 " in await raw.head()
            answers.add(await raw.reader.readuntil(b"}}"))
    assert len(answers) == 1
    assert "wrong" in bridge.server.access_checks


@pytest.mark.parametrize(
    "path",
    [CHAT, "/v1/chat/completions", "/v1/models", f"/v1/models/{MODEL}", "/nothing", "//v1/models", "/v1/%6dodels"],
)
async def test_every_route_but_health_needs_a_key(bridge: BridgeUnderTest, path: str) -> None:
    async with connect(bridge.port) as raw:
        await raw.send(f"GET {path} HTTP/1.1\r\nHost: evil/?\r\n\r\n".encode())
        assert " 401 " in await raw.head()


async def test_health_and_ready_need_no_key(bridge: BridgeUnderTest) -> None:
    await bridge.wait_ready()
    for path in ("/health", "/ready"):
        async with connect(bridge.port) as raw:
            await raw.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert " 200 " in await raw.head()
    assert not bridge.server.access_checks


async def test_a_stranger_is_refused_before_the_body_is_read(bridge: BridgeUnderTest) -> None:
    await bridge.wait_ready()  # before that nobody can tell who is a stranger
    async with connect(bridge.port) as raw:
        head = request_head(CHAT, Authorization="Bearer wrong", Content_Type="application/json", Content_Length=1000)
        await raw.send(head)  # And nothing of the body.
        answer = await raw.head()
    assert " 401 " in answer
    assert "Connection: close" in answer


async def test_a_stranger_who_asks_first_is_not_told_to_continue(bridge: BridgeUnderTest) -> None:
    await bridge.wait_ready()  # before that nobody can tell who is a stranger
    fields = {"Content_Type": "application/json", "Content_Length": 1000, "Expect": "100-continue"}
    async with connect(bridge.port) as raw:
        await raw.send(request_head(CHAT, Authorization="Bearer wrong", **fields))
        assert " 401 " in await raw.head()
    async with connect(bridge.port) as raw:
        await raw.send(request_head(CHAT, Authorization=f"Bearer {USER_KEY}", **fields))
        assert " 100 Continue" in await raw.head()


async def test_answers_are_kept_for_a_moment(bridge: BridgeUnderTest) -> None:
    for _ in range(3):
        await bridge.chat()
    assert bridge.server.access_checks == [USER_KEY]


async def test_answers_are_forgotten_after_2_s(bridge: BridgeUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    assert (await bridge.chat())[0] == 200
    bridge.server.user_keys.clear()
    assert (await bridge.chat())[0] == 200
    real_time = loop.time
    monkeypatch.setattr(loop, "time", lambda: real_time() + 2.001)
    assert (await bridge.chat())[0] == 401


async def test_a_bridge_that_the_server_does_not_know_blames_no_caller(server: FakeService) -> None:
    async with run_bridge_under_test(server, bridge_key="other") as bridge:
        assert (await bridge.chat())[0] == 503
        async with bridge.http.get("/ready") as response:
            assert response.status == 503


async def test_no_origin_is_allowed(bridge: BridgeUnderTest) -> None:
    async with bridge.http.post(CHAT, json=ask(), headers={"Origin": "https://evil.example"}) as response:
        assert response.status == 200
        assert not any(name.lower().startswith("access-control") for name in response.headers)


async def test_what_a_server_cuts_when_it_goes_down_is_asked_of_its_successor(bridge: BridgeUnderTest) -> None:
    await bridge.wait_ready()
    for path in ("/v1/models", f"/v1/models/{MODEL}", "/v1/usage"):
        await asyncio.sleep(1.1)  # what was learned of the key is forgotten
        bridge.server.num_cut = 1
        assert (await bridge.http.get(path)).status == 200
        assert bridge.server.num_cut == 0
        bridge.server.num_cut = 2
        await asyncio.sleep(1.1)
        assert (await bridge.http.get(path)).status == 503
