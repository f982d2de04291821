"""A41 to A45: clients that leave, a queue that is full, and requests that have one name."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from google.protobuf import duration_pb2
from grpc import aio

from contract.doors import CHAT, JSON, MODEL, OTHER_KEY, Doors, about_images, assert_error, chat_body, refused_grpc
from contract.listeners import listen
from contract.oracle import Oracle
from contract.streams import begin, begin_many, new_records, session
from fakes import Stream, auth, chat, image_chat
from pictures import data_uri, noise
from spyglass.v1 import inference_pb2 as pb
from spyglass.v1 import inference_pb2_grpc, options_pb2
from stack import Stack, UsageRow

NUM_PLACES = 16
FREE_S = 1.0
NUM_TRIES = 6


@pytest.fixture(scope="module")
def stack(endless_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Has sixteen places, and one more for each key that holds none."""
    options = ("--model", str(endless_folder), "--served-model-name", MODEL, "--api-key", OTHER_KEY)
    data_dir = tmp_path_factory.mktemp("life-cycle")
    with Stack(data_dir, *options, "--max-pending", str(NUM_PLACES), "--allow-image-host", "localhost") as stack:
        yield stack


@pytest.fixture(scope="module")
def oracle(stack: Stack) -> Iterator[Oracle]:
    with Doors(stack, stack.key) as doors:
        yield Oracle(stack, doors)


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[aiohttp.ClientSession]:
    async with session(stack) as http:
        yield http


@pytest.fixture
async def stub(stack: Stack) -> "AsyncIterator[inference_pb2_grpc.InferenceServiceAsyncStub]":
    async with aio.insecure_channel(stack.grpc) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


async def freed(stack: Stack, doors: Doors, leave: Callable[[], Awaitable[Any]]) -> list[UsageRow]:
    """The records of what `leave` leaves behind, of the first try in which they were closed in time."""
    for _ in range(NUM_TRIES):
        before = len(stack.usage())
        await leave()
        began = time.monotonic()
        rows = await new_records(stack, before)
        doors.num_admitted += len(rows)
        if time.monotonic() - began < FREE_S:
            return rows
    raise AssertionError(f"a place was taken for longer than {FREE_S} s after its caller had left")


async def test_a41_leaving_a_stream(stack: Stack, doors: Doors, http: aiohttp.ClientSession) -> None:
    """After five events; the record has what was delivered, and not what would have come."""
    delivered = 0

    async def leave() -> None:
        nonlocal delivered
        async with AsyncExitStack() as held:
            stream = await begin(http, held)
            await stream.read(3)
            assert len(stream.events) == 5
            delivered = stream.num_tokens
            stream.close()

    [row] = await freed(stack, doors, leave)
    assert row.outcome == "CANCELLED"
    assert 0 < delivered <= row.completion_tokens < 3000


async def test_a41_leaving_makes_room(stack: Stack, doors: Doors, http: aiohttp.ClientSession) -> None:
    before = len(stack.usage())
    async with AsyncExitStack() as held:
        streams = await begin_many(http, held, NUM_PLACES)
        assert_error(await asyncio.to_thread(doors.chat), 429)
        streams[0].close()
        async with asyncio.timeout(FREE_S):
            while (await asyncio.to_thread(doors.chat, max_tokens=1)).status != 200:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.02)
    rows = await new_records(stack, before)
    doors.num_admitted += NUM_PLACES
    assert sorted(row.outcome for row in rows) == ["CANCELLED"] * NUM_PLACES + ["OK"]


async def test_a42_leaving_without_a_stream(stack: Stack, doors: Doors, http: aiohttp.ClientSession) -> None:
    """While another answer, in the same steps, has got on by ten tokens."""

    async def leave() -> None:
        async with AsyncExitStack() as held:
            asking = asyncio.create_task(_ask(http, max_tokens=3000))
            beside = await begin(http, held)
            while len([row for row in stack.stored_usage() if not row.outcome]) < 2:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
            first = beside.num_tokens
            while beside.num_tokens < first + 10:
                await beside.read(1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    rows = await freed(stack, doors, leave)
    assert [row.outcome for row in rows] == ["CANCELLED"] * 2
    assert all(1 < row.completion_tokens < 3000 for row in rows)


async def _ask(http: aiohttp.ClientSession, **fields: Any) -> tuple[int, Any]:
    async with http.post(CHAT, json=chat_body(**fields)) as response:
        return response.status, await response.json()


def endless(**fields: Any) -> pb.Start:
    return chat("Go on and on.", stopping=options_pb2.Stopping(max_tokens=3000), **fields)


async def test_a43_cancel_before_the_first_event(
    stack: Stack, doors: Doors, stub: "inference_pb2_grpc.InferenceServiceAsyncStub"
) -> None:
    async def leave() -> None:
        stream = Stream(stub.Generate(metadata=auth(stack.key)))
        await stream.start(1, endless())
        await stream.cancel(1)
        await stream.finish()
        assert stream.finished(1).error.code == grpc.StatusCode.CANCELLED.value[0]

    assert all(row.outcome == "CANCELLED" for row in await freed(stack, doors, leave))


async def test_a43_cancel_in_mid_stream(
    stack: Stack, doors: Doors, stub: "inference_pb2_grpc.InferenceServiceAsyncStub"
) -> None:
    async def leave() -> None:
        stream = Stream(stub.Generate(metadata=auth(stack.key)))
        await stream.start(1, endless())
        await stream.until(1, "delta")
        await stream.cancel(1)
        await stream.finish()
        ended = stream.finished(1)
        assert ended.error.code == grpc.StatusCode.CANCELLED.value[0]
        delivered = sum(len(event.delta.token_ids) for event in stream.events(1))
        assert 0 < delivered <= ended.usage.completion_tokens

    [row] = await freed(stack, doors, leave)
    assert (row.outcome, row.completion_tokens > 0) == ("CANCELLED", True)


@pytest.mark.parametrize("when", ["at once", "in mid-stream"])
async def test_a43_cancel_of_the_whole_call(
    stack: Stack, doors: Doors, stub: "inference_pb2_grpc.InferenceServiceAsyncStub", when: str
) -> None:
    async def leave() -> None:
        stream = Stream(stub.Generate(metadata=auth(stack.key)))
        for number in range(4):
            await stream.start(number, endless())
        if when == "in mid-stream":
            await stream.until(3, "delta")
        stream.call.cancel()
        assert await stream.call.code() is grpc.StatusCode.CANCELLED

    rows = await freed(stack, doors, leave)
    assert all(row.outcome == "CANCELLED" for row in rows)
    assert when == "at once" or len(rows) == 4


@pytest.mark.parametrize("whose", ["the generation's", "the call's"])
async def test_a43_a_timeout_of_200_ms(
    stack: Stack, doors: Doors, stub: "inference_pb2_grpc.InferenceServiceAsyncStub", whose: str
) -> None:
    async def leave() -> None:
        began = time.monotonic()
        if whose == "the call's":
            stream = Stream(stub.Generate(metadata=auth(stack.key), timeout=0.2))
            with contextlib.suppress(aio.AioRpcError):  # on a busy machine its time may be over already
                await stream.start(1, endless())
            with pytest.raises(aio.AioRpcError) as refusal:
                await stream.read_all()
            assert refusal.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        else:
            stream = Stream(stub.Generate(metadata=auth(stack.key)))
            await stream.start(1, endless(timeout=duration_pb2.Duration(nanos=200_000_000)))
            await stream.finish()
            assert stream.finished(1).error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        assert 0.15 < time.monotonic() - began < 1.2

    [row] = await freed(stack, doors, leave)
    assert row.outcome == ("DEADLINE_EXCEEDED" if whose == "the generation's" else "CANCELLED")


async def test_a44_a_full_queue(stack: Stack, doors: Doors, http: aiohttp.ClientSession) -> None:
    """The server works for all whom it has admitted, and still refuses the others quickly, before their images."""
    picture = data_uri(noise((200, 200)))
    before = len(stack.usage())
    with listen() as target:
        url = f"http://localhost:{target.port}/x.png"
        bodies = [
            chat_body(),
            chat_body(stream=True),
            chat_body(about_images(url, url)),
            chat_body(about_images(picture)),
        ]
        best = 1e9
        async with AsyncExitStack() as held:
            streams = await begin_many(http, held, NUM_PLACES)
            reading = asyncio.gather(*(stream.rest() for stream in streams), return_exceptions=True)
            for _ in range(NUM_TRIES):
                best = min(best, await asyncio.to_thread(_p99_of_refusals, doors, bodies))
                if best < 0.1:
                    break
            assert not reading.done()
            for start in (chat("Hi"), image_chat("Hi", [None]), image_chat("Hi", [b"x" * 1000])):
                outcome = await asyncio.to_thread(_refuse_over_grpc, doors, start)
                assert (outcome.retry_after_s or 0) >= 1
            reading.cancel()
        assert target.num_connections == 0
    assert best < 0.1
    rows = await new_records(stack, before)
    doors.num_admitted += NUM_PLACES
    assert len(rows) == NUM_PLACES


def _refuse_over_grpc(doors: Doors, start: pb.Start) -> Any:
    return refused_grpc(lambda: doors.generate(start), "RESOURCE_EXHAUSTED", reason="too_many_requests")


def _p99_of_refusals(doors: Doors, bodies: list[dict[str, Any]]) -> float:
    times = list[float]()
    encoded = [json.dumps(body).encode() for body in bodies]
    for number in range(200):
        reply = doors.post(encoded[number % len(encoded)])
        assert_error(reply, (429, 503))
        assert int(reply.headers["Retry-After"]) >= 1
        times.append(reply.took_s)
    return sorted(times)[197]


async def test_a45_one_request_id_of_two_tenants(stack: Stack, doors: Doors, http: aiohttp.ClientSession) -> None:
    """One leaves; the other's answer is that of a call alone."""
    before = len(stack.usage())
    name = {"x-request-id": "the-same"}
    async with session(stack, OTHER_KEY) as other, AsyncExitStack() as held:
        status, alone = await _ask(http, max_tokens=300)
        assert status == 200
        mine, theirs = await asyncio.gather(begin(http, held, name), begin(other, held, name, max_tokens=300))
        mine.close()
        await theirs.rest()
        assert theirs.is_done
        assert theirs.text == alone["choices"][0]["message"]["content"]
        assert mine.response.headers["x-request-id"] == theirs.response.headers["x-request-id"] == "the-same"
        twice = await asyncio.gather(*(begin(http, held, name, max_tokens=50) for _ in range(2)))  # of one tenant
        assert [(await stream.rest()).is_done for stream in twice] == [True, True]
    rows = await new_records(stack, before)
    doors.num_admitted += 5
    assert sorted(row.outcome for row in rows if row.request_id == "the-same") == ["CANCELLED", "OK", "OK", "OK"]


async def test_a45_one_idempotency_key_is_one_generation(
    stack: Stack, doors: Doors, http: aiohttp.ClientSession
) -> None:
    """Also at the same time; another tenant's is another's."""
    before = len(stack.usage())

    async def ask(http: aiohttp.ClientSession, **fields: Any) -> tuple[int, Any]:
        body = json.dumps(chat_body(**{"max_tokens": 100} | fields)).encode()
        async with http.post(CHAT, data=body, headers=JSON | {"Idempotency-Key": "once"}) as response:
            return response.status, await response.json()

    answers = [*await asyncio.gather(ask(http), ask(http)), await ask(http)]
    assert [status for status, _ in answers] == [200] * 3
    assert len({answer["choices"][0]["message"]["content"] for _, answer in answers}) == 1
    assert len({json.dumps(answer["usage"]) for _, answer in answers}) == 1
    assert len(await new_records(stack, before)) == 1
    status, answer = await ask(http, max_tokens=101)
    assert (status, answer["error"]["code"]) == (409, "conflict")
    async with session(stack, OTHER_KEY) as other:
        assert (await ask(other))[0] == 200
    assert len(await new_records(stack, before)) == 2
    doors.num_admitted += 2


def test_a45_one_idempotency_key_over_grpc(doors: Doors) -> None:
    start = chat("Hi", idempotency_key="grpc", stopping=options_pb2.Stopping(max_tokens=20))
    start.sampling.temperature = 0
    first, second = doors.generate(start), doors.generate(start)
    assert first.code == second.code == "OK"
    assert (first.text, first.usage) == (second.text, second.usage)
    doors.num_admitted -= 1  # the second is a repetition
    other = chat("Hi!", idempotency_key="grpc")
    refused_grpc(lambda: doors.generate(other), "ALREADY_EXISTS", reason="conflict")
