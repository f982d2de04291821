"""The shared stream: order of frames, loss, return, go-away, cancel, and readers that lag."""

import asyncio
import base64
import json
import socket

import pytest
from google.rpc import code_pb2

from bridge_setup import CHAT, BridgeUnderTest, ask, ask_about, run_bridge_under_test, run_server
from fake_service import BRIDGE_KEY, PATIENCE_S, FakeService, Reply, Turn
from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge.backend import Backend
from spyglass_common.status import make_status


async def test_the_server_goes_away_in_mid_stream_and_returns(bridge: BridgeUnderTest) -> None:
    bridge.server.script = Reply(hang_after=1)
    await bridge.wait_ready()
    streams = [await bridge.http.post(CHAT, json=ask(stream=True)) for _ in range(4)]
    plain = [asyncio.create_task(bridge.chat()) for _ in range(2)]
    await bridge.server.turn(6)
    await bridge.server.end()
    for response in streams:
        assert response.status == 200
        text = await response.text()
        last = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert last["error"]["code"] == "server_unavailable"
        assert "[DONE]" not in text
    for status, body in await asyncio.gather(*plain):
        assert (status, body["error"]["code"]) == (503, "server_unavailable")
    await bridge.wait_ready(503)
    bridge.server.script = Reply()
    await bridge.server.begin()
    await bridge.wait_ready()
    assert (await bridge.chat())[0] == 200


async def test_without_a_server_calls_get_503_and_later_200() -> None:
    async with run_server() as server:
        await server.end()
        async with run_bridge_under_test(server) as bridge:
            await bridge.wait_ready(503)
            async with bridge.http.get("/health") as response:
                assert response.status == 200
            async with bridge.http.post(CHAT, json=ask()) as response:
                assert response.status == 503
                assert response.headers["Retry-After"] == "1"
                assert str(server.port) not in await response.text()
            await server.begin()
            await bridge.wait_ready()
            assert (await bridge.chat())[0] == 200


async def test_ready_follows_the_health_service(bridge: BridgeUnderTest) -> None:
    await bridge.wait_ready(200)
    await bridge.server.set_serving(False)
    await bridge.wait_ready(503)
    await bridge.server.set_serving(True)
    await bridge.wait_ready(200)


async def test_ready_and_health_say_how_the_server_is(bridge: BridgeUnderTest) -> None:
    status = bridge.server.status

    async def told(path: str) -> tuple[int, dict[str, object]]:
        await asyncio.sleep(0.3)  # an answer is kept for a moment
        async with bridge.http.get(path) as response:
            return response.status, await response.json()

    await bridge.wait_ready()
    assert await told("/ready") == (200, {"status": "ready"})
    status.last_step_age.FromMilliseconds(1234)
    status.last_token_age.FromMilliseconds(50)
    status.state = pb.SERVER_STATE_BUSY
    ages = {"last_step_age_s": 1.234, "last_token_age_s": 0.05}
    assert await told("/ready") == (200, {"status": "busy", **ages})
    assert await told("/health") == (200, {"status": "ok", "server": {"status": "busy", **ages}})
    await bridge.server.set_serving(False)
    for state, name in ((pb.SERVER_STATE_LOADING, "loading"), (pb.SERVER_STATE_STALLED, "stalled")):
        status.state = state
        assert await told("/ready") == (503, {"status": name, **ages})
    await bridge.server.end()
    assert await told("/ready") == (503, {"status": "waiting for the model server"})
    assert await told("/health") == (200, {"status": "ok", "server": {"status": "waiting for the model server"}})


async def test_after_go_away_new_starts_use_a_new_stream_and_old_ones_finish(bridge: BridgeUnderTest) -> None:
    gate = asyncio.Event()
    bridge.server.script = Reply(gate=gate)
    old = asyncio.create_task(bridge.chat())
    await bridge.server.turn()
    bridge.server.streams[0].go_away()
    bridge.server.script = Reply()
    async with asyncio.timeout(PATIENCE_S):
        while len(bridge.server.streams) < 2:
            assert (await bridge.chat())[0] == 200
    assert not old.done()
    assert not bridge.server.streams[0].half_closed.is_set()
    gate.set()
    assert (await old)[0] == 200
    async with asyncio.timeout(PATIENCE_S):
        while not bridge.server.streams[0].half_closed.is_set():
            await bridge.chat()


async def test_what_a_server_that_goes_down_has_not_begun_is_begun_elsewhere(bridge: BridgeUnderTest) -> None:
    async def silent(turn: Turn) -> None:
        await turn.cancelled.wait()

    bridge.server.script = silent
    calls = [asyncio.create_task(bridge.chat()) for _ in range(3)]
    left = asyncio.create_task(bridge.chat())
    await bridge.server.turn(4)
    left.cancel()
    await bridge.server.turns[3].cancelled.wait()
    bridge.server.script = Reply()
    bridge.server.streams[0].go_away(first_refused_id=1)
    assert [status for status, _ in await asyncio.gather(*calls)] == [200] * 3
    assert len(bridge.server.turns) == 7
    assert len(bridge.server.streams) == 2


async def test_what_is_returned_while_there_is_no_server_is_refused(bridge: BridgeUnderTest) -> None:
    async def go_away(turn: Turn) -> None:
        bridge.server.refusal = make_status(code_pb2.UNAVAILABLE, "no more")
        turn.stream.go_away(first_refused_id=1)

    bridge.server.script = go_away
    status, body = await bridge.chat()
    assert (status, body["error"]["code"]) == (503, "server_unavailable")


async def test_an_error_of_one_generation_leaves_the_others_alone(bridge: BridgeUnderTest) -> None:
    gate = asyncio.Event()
    failure = make_status(code_pb2.INTERNAL, "as scripted")
    bridge.server.script = lambda turn: Reply(
        gate=gate, failure=failure if turn.start.stopping.max_tokens == 1 else None
    )(turn)
    calls = [asyncio.create_task(bridge.chat(max_tokens=number)) for number in (1, 2, 3)]
    await bridge.server.turn(3)
    gate.set()
    assert [status for status, _ in await asyncio.gather(*calls)] == [500, 200, 200]
    assert len(bridge.server.streams) == 1


async def test_starts_go_ahead_of_image_chunks(bridge: BridgeUnderTest) -> None:
    """While a large image is on its way, the start of another generation is not behind its last chunk."""
    image = "data:image/png;base64," + base64.b64encode(bytes(12 << 20)).decode()
    upload = asyncio.create_task(bridge.chat(messages=ask_about(image)))
    first = await bridge.server.turn()
    async with asyncio.timeout(PATIENCE_S):
        while not first.images:
            await first.images_changed.wait()
    assert (await bridge.chat())[0] == 200
    assert (await upload)[0] == 200
    kinds = bridge.server.streams[0].kinds
    assert kinds.index((2, "start")) < max(i for i, kind in enumerate(kinds) if kind == (1, "image_chunk"))
    assert first.largest_chunk <= 256 << 10
    assert first.chunks_before_accepted == 0


async def test_a_hanging_server_is_given_up_at_the_deadline(server: FakeService) -> None:
    async with run_bridge_under_test(server, request_timeout_s=0.05) as bridge:
        for hang_after in (0, 1):
            server.script = Reply(hang_after=hang_after)
            async with bridge.http.post(CHAT, json=ask()) as response:
                assert response.status == 504
                assert response.headers["x-should-retry"] == "false"
        assert '"code":"timeout"' in await bridge.stream()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(turn.cancelled.wait() for turn in server.turns))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("hang_after", [0, 1])
async def test_a_client_that_leaves_cancels_its_generation(
    bridge: BridgeUnderTest, stream: bool, hang_after: int
) -> None:
    bridge.server.script = Reply(hang_after=hang_after)
    request = asyncio.create_task(bridge.http.post(CHAT, json=ask(stream=stream)))
    call = await bridge.server.turn()
    if stream and hang_after:
        (await request).close()
    else:
        request.cancel()
    async with asyncio.timeout(PATIENCE_S):
        await call.cancelled.wait()
    bridge.server.script = Reply()
    assert (await bridge.chat())[0] == 200


async def test_a_client_that_does_not_read_holds_nobody(server: FakeService) -> None:
    """Its deltas are merged while others are served, and it still gets all of the text."""
    piece = "x" * 4096
    server.script = lambda turn: Reply(pieces=(piece,) * 4000 if turn.start.stopping.max_tokens == 9 else ("Hi",))(turn)
    async with run_bridge_under_test(server) as bridge:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", bridge.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
        body = json.dumps(ask(stream=True, max_tokens=9)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer user-key\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        slow = await server.turn()
        async with asyncio.timeout(PATIENCE_S):
            await slow.over.wait()
        assert (await bridge.chat())[0] == 200
        text = await reader.read(-1)
        assert text.count(b"x") >= 4000 * 4096
        assert text.count(b'"content":"x') < 4000
        assert b"[DONE]" in text
        writer.close()
        await writer.wait_closed()


async def test_a_client_that_stops_reading_is_dropped(server: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spyglass_bridge.routes.lifecycle.STALLED_S", 0.3)
    server.script = Reply(pieces=("x" * 65536,) * 400, hang_after=399)
    async with run_bridge_under_test(server) as bridge:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        with sock:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", bridge.port))
            body = json.dumps(ask(stream=True)).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer user-key\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            await asyncio.get_running_loop().sock_sendall(sock, head.encode() + body)
            turn = await server.turn()
            async with asyncio.timeout(PATIENCE_S):
                await turn.cancelled.wait()


async def test_a_silent_link_is_noticed_within_thirty_seconds(server: FakeService) -> None:
    """As where a machine has lost its power: nothing comes, not even the end of the connection."""
    pipes: set[asyncio.Task[None]] = set()
    silent = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if not silent.is_set():
                writer.write(data)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(*server.target.split(":"))
        writers.extend((writer, there[1]))
        for pair in ((reader, there[1]), (there[0], writer)):
            pipes.add(asyncio.create_task(forward(*pair)))

    proxy = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    async with Backend.connect(f"127.0.0.1:{port}", BRIDGE_KEY) as backend:
        async with asyncio.timeout(PATIENCE_S):
            await until(backend, is_ready=True)
        silent.set()
        async with asyncio.timeout(30):
            await until(backend, is_ready=False)
    for pipe in pipes:
        pipe.cancel()
    await asyncio.gather(*pipes, return_exceptions=True)
    for writer in writers:
        writer.transport.abort()
    proxy.close()
    await proxy.wait_closed()


async def until(backend: Backend, *, is_ready: bool) -> None:
    while backend.is_ready != is_ready:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.05)
