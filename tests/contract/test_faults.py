"""F1, F4 and F7: processes that are killed or hang. They are started again by those who started them."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from google.protobuf import duration_pb2
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contract.doors import CHAT, MODEL, OTHER_KEY, Doors, chat_body
from contract.oracle import Oracle
from contract.streams import EventStream, begin, begin_many, new_records, session
from fakes import Stream, auth, chat
from spyglass.v1 import inference_pb2_grpc, options_pb2
from stack import Stack

pytestmark = pytest.mark.slow

NUM_STREAMS = 16
PATIENCE_S = 30.0
HANG_TIMEOUT_S = 6.0


@pytest.fixture(scope="module")
def stack(endless_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Has as many places as there are streams, so that they are all free again where these can begin anew."""
    options = ("--model", str(endless_folder), "--served-model-name", MODEL, "--max-pending", str(NUM_STREAMS))
    with Stack(tmp_path_factory.mktemp("faults"), *options, "--api-key", OTHER_KEY) as stack:
        yield stack


@pytest.fixture(scope="module")
def oracle(stack: Stack) -> Iterator[Oracle]:
    with Doors(stack, stack.key) as doors:
        yield Oracle(stack, doors)


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[aiohttp.ClientSession]:
    async with session(stack) as http:
        yield http


async def until_ready(http: aiohttp.ClientSession, status: int = 200, within_s: float = PATIENCE_S) -> float:
    """Waits until /ready answers with this status; returns how long that took, in seconds."""
    began = time.monotonic()
    async with asyncio.timeout(within_s):
        while True:
            try:
                async with http.get("/ready", timeout=aiohttp.ClientTimeout(2)) as response:
                    if response.status == status:
                        return time.monotonic() - began
            except (aiohttp.ClientError, TimeoutError):
                pass  # the bridge is gone
            await asyncio.sleep(0.02)


async def until_serving(target: str, within_s: float = PATIENCE_S) -> None:
    """Waits until the server says by itself that it serves."""
    async with asyncio.timeout(within_s):
        while True:
            async with aio.insecure_channel(target) as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                try:
                    answer = await stub.Check(health_pb2.HealthCheckRequest())
                except aio.AioRpcError:
                    pass
                else:
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
            await asyncio.sleep(0.02)


async def until_answered(http: aiohttp.ClientSession, within_s: float) -> None:
    """Waits until a generation is answered."""
    async with asyncio.timeout(within_s):
        while True:
            async with http.post(CHAT, json=chat_body(max_tokens=1)) as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.02)


async def fill_again(http: aiohttp.ClientSession) -> None:
    """All places are free: as many streams begin as there are places."""
    async with AsyncExitStack() as held:
        streams = await begin_many(http, held, NUM_STREAMS, max_tokens=10)
        for stream in streams:
            assert (await stream.rest()).is_done


def assert_explicit_errors(streams: list[EventStream]) -> None:
    for stream in streams:
        assert stream.error is not None, stream.events[-2:]
        assert stream.error["type"] == "server_error"
        assert not stream.is_done


async def test_f01_kill_of_the_server(stack: Stack, doors: Doors, http: aiohttp.ClientSession) -> None:
    before, bridge = len(stack.usage()), stack.bridge_pid
    async with AsyncExitStack() as held:
        streams = await begin_many(http, held, NUM_STREAMS)
        os.kill(stack.server_pid, signal.SIGKILL)
        not_ready = asyncio.create_task(until_ready(http, 503, within_s=5))
        async with asyncio.timeout(2):
            await asyncio.gather(*(stream.rest() for stream in streams))
        assert await not_ready < 1
    assert_explicit_errors(streams)
    await until_serving(stack.grpc)
    await until_answered(http, within_s=5)
    assert stack.bridge_pid == bridge
    rows = await new_records(stack, before)
    assert [row.outcome for row in rows] == ["LOST"] * NUM_STREAMS + ["OK"]
    delivered = sorted(stream.num_tokens for stream in streams)
    recorded = sorted(row.completion_tokens for row in rows[:NUM_STREAMS])
    assert all(a <= b for a, b in zip(delivered, recorded, strict=True))
    doors.num_admitted += NUM_STREAMS + 1


async def test_f01_kill_of_the_engine(stack: Stack, doors: Doors, http: aiohttp.ClientSession) -> None:
    """Half of its requests came over gRPC."""
    before, killed = len(stack.usage()), stack.engine_pid()
    async with AsyncExitStack() as held, aio.insecure_channel(stack.grpc) as channel:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        stream = Stream(stub.Generate(metadata=auth(stack.key)))
        half = NUM_STREAMS // 2
        streams = await begin_many(http, held, half)
        for number in range(half):
            await stream.start(number, chat("Go on.", stopping=options_pb2.Stopping(max_tokens=3000)))
        for number in range(half):
            await stream.until(number, "delta")
        os.kill(killed, signal.SIGKILL)
        async with asyncio.timeout(2):
            await asyncio.gather(*(each.rest() for each in streams))
            await stream.finish()
        assert_explicit_errors(streams)
        unavailable = grpc.StatusCode.UNAVAILABLE.value[0]
        assert [stream.finished(number).error.code for number in range(half)] == [unavailable] * half
    await until_answered(http, PATIENCE_S)
    assert stack.engine_pid() != killed
    rows = await new_records(stack, before)
    assert [row.outcome for row in rows] == ["UNAVAILABLE"] * NUM_STREAMS + ["OK"]
    assert all(row.completion_tokens > 0 for row in rows)
    doors.num_admitted += NUM_STREAMS + 1


async def test_f07_kill_of_the_bridge(stack: Stack, doors: Doors, http: aiohttp.ClientSession) -> None:
    before, killed = len(stack.usage()), stack.bridge_pid
    async with AsyncExitStack() as held:
        await begin_many(http, held, NUM_STREAMS)
        os.kill(killed, signal.SIGKILL)
        rows = await new_records(stack, before, within_s=2)
    assert [row.outcome for row in rows] == ["CANCELLED"] * NUM_STREAMS
    await until_ready(http)
    assert stack.bridge_pid != killed
    await fill_again(http)
    doors.num_admitted += 2 * NUM_STREAMS


async def test_f04_an_engine_that_hangs(endless_folder: Path, tmp_path: Path) -> None:
    options = ("--model", str(endless_folder), "--served-model-name", MODEL)
    with (
        Stack(tmp_path / "data", *options, "--request-timeout", str(HANG_TIMEOUT_S)) as stack,
        Doors(stack, stack.key) as doors,
        Oracle(stack, doors).watching(doors),
    ):
        async with session(stack) as http:
            doors.num_admitted += await _hang(stack, http)


async def _hang(stack: Stack, http: aiohttp.ClientSession) -> int:
    """Stops the engine under calls of all kinds; returns how many of them had started."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as held, aio.insecure_channel(stack.grpc) as channel:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        running = Stream(stub.Generate(metadata=auth(stack.key)))
        deadline = loop.time() + HANG_TIMEOUT_S
        streams = [await begin(http, held) for _ in range(4)]
        await running.start(1, chat("Go on.", timeout=duration_pb2.Duration(seconds=3)))
        await running.until(1, "delta")
        hung = stack.engine_pid()
        os.kill(hung, signal.SIGSTOP)
        not_ready = asyncio.create_task(until_ready(http, 503))
        ends = [asyncio.create_task(stream.rest()) for stream in streams]
        late = asyncio.create_task(_status(http))
        await running.finish()
        assert running.finished(1).error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        assert loop.time() < deadline - HANG_TIMEOUT_S + 3 + 1.5  # it began a moment after the first
        await asyncio.gather(*ends)
        assert loop.time() < deadline + 1.5
        assert_explicit_errors(streams)
        assert await late in (503, 504)
        assert await not_ready < 10
    await until_ready(http)
    assert stack.engine_pid() != hung
    return 5


async def _status(http: aiohttp.ClientSession) -> int:
    """Of a call that begins while the engine hangs."""
    began = time.monotonic()
    async with http.post(CHAT, json=chat_body()) as response:
        assert time.monotonic() - began < HANG_TIMEOUT_S + 1
        return response.status
