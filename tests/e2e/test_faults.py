"""What users see when something breaks, and what is left behind: nothing."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pictures import data_uri, noise
from stack import Stack, UsageRow, descendants, wait_gone

pytestmark = pytest.mark.slow

NUM_STREAMS = 8
PATIENCE_S = 20.0
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def endless(endless_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Serves at most eight callers at once."""
    options = ("--model", str(endless_folder), "--max-pending", str(NUM_STREAMS))
    with Stack(tmp_path_factory.mktemp("endless"), *options) as stack:
        yield stack


@pytest.fixture
async def http(endless: Stack) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {endless.key}"}
    async with aiohttp.ClientSession(base_url=endless.http, headers=headers) as session:
        yield session


def question(**fields: Any) -> dict[str, Any]:
    """A request whose answer fills the context, unless the fields say otherwise."""
    return {"model": "endless", "messages": [{"role": "user", "content": "Go on and on."}], **fields}


async def begin(http: aiohttp.ClientSession, held: AsyncExitStack, **fields: Any) -> aiohttp.ClientResponse:
    """Starts a stream that is closed with `held`, and returns it once its answer has begun."""
    post = http.post("/v1/openai/chat/completions", json=question(stream=True, **fields))
    response = await held.enter_async_context(post)
    assert response.status == 200, await response.text()
    for _ in range(2):  # the role, then text
        assert await response.content.readuntil(b"\n\n")
    return response


async def ask(http: aiohttp.ClientSession, **fields: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of an answer without a stream."""
    async with http.post("/v1/openai/chat/completions", json=question(**fields)) as response:
        return response.status, await response.json(), {str(name): value for name, value in response.headers.items()}


async def records_closed(stack: Stack, timeout_s: float = PATIENCE_S) -> list[UsageRow]:
    """Waits until no generation runs, by the ledger, and returns its records."""
    async with asyncio.timeout(timeout_s):
        while not all(row.outcome for row in stack.usage()):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)
    return stack.usage()


async def test_a_killed_engine_ends_its_streams_with_errors_and_comes_back(
    endless: Stack, http: aiohttp.ClientSession
) -> None:
    before = len(await records_closed(endless))
    killed = endless.engine_pid()
    async with AsyncExitStack() as held:
        streams = await asyncio.gather(*(begin(http, held) for _ in range(NUM_STREAMS)))
        os.kill(killed, signal.SIGKILL)
        rests = await asyncio.gather(*(stream.text() for stream in streams))
    for rest in rests:
        *_, last, end = rest.split("\n\n")
        error = json.loads(last.removeprefix("data: "))["error"]
        assert (error["type"], error["code"], end) == ("server_error", "engine_restarted", "")
        assert "[DONE]" not in rest
    async with asyncio.timeout(PATIENCE_S):
        status, answer, _ = await ask(http, max_tokens=5)
    assert (status, answer["usage"]["completion_tokens"]) == (200, 5)
    assert endless.engine_pid() != killed
    rows = (await records_closed(endless))[before:]
    assert [row.outcome for row in rows] == ["UNAVAILABLE"] * NUM_STREAMS + ["OK"]
    assert all(row.completion_tokens > 0 for row in rows)
    assert all(
        row.cost_usd == pytest.approx(row.prompt_tokens * 0.35e-6 + row.completion_tokens * 0.4e-6) for row in rows
    )


async def test_a_full_queue_says_when_to_come_back_and_leaving_makes_room(
    endless: Stack, http: aiohttp.ClientSession
) -> None:
    before = len(await records_closed(endless))
    async with AsyncExitStack() as held:
        for _ in range(NUM_STREAMS - 1):
            await begin(http, held)
        leaver = AsyncExitStack()
        leaving = await begin(http, leaver)
        status, answer, headers = await ask(http)
        assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
        assert int(headers["Retry-After"]) >= 1
        leaving.close()
        await leaver.aclose()
        async with asyncio.timeout(2):
            while (await ask(http, max_tokens=1))[0] == 429:
                pass
        outcomes = [row.outcome for row in endless.usage()[before:]]
        assert sorted(outcomes) == [""] * (NUM_STREAMS - 1) + ["CANCELLED", "OK"]
    rows = (await records_closed(endless, timeout_s=2))[before:]
    assert sorted(row.outcome for row in rows) == ["CANCELLED"] * NUM_STREAMS + ["OK"]


async def test_a_caller_who_leaves_without_a_stream_frees_its_place(
    endless: Stack, http: aiohttp.ClientSession
) -> None:
    before = len(await records_closed(endless))
    asking = asyncio.create_task(ask(http))
    async with asyncio.timeout(PATIENCE_S):
        while len(endless.usage()) == before:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    [row] = (await records_closed(endless, timeout_s=2))[before:]
    assert row.outcome == "CANCELLED"


async def test_no_shared_memory_is_left_behind(endless: Stack, http: aiohttp.ClientSession) -> None:
    def blocks() -> set[str]:
        return {path.name for path in SHARED_MEMORY.glob("psm_*")}

    def look(seed: int) -> dict[str, Any]:
        part = {"type": "image_url", "image_url": {"url": data_uri(noise((56, 56), seed))}}
        return {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]}

    before = blocks()
    for round_number in range(2):
        async with AsyncExitStack() as held:
            await asyncio.gather(*(begin(http, held, **look(seed)) for seed in range(4)))
            late = [asyncio.create_task(ask(http, **look(seed))) for seed in range(4)]
            os.kill(endless.engine_pid(), signal.SIGKILL)
            statuses = [status for status, *_ in await asyncio.gather(*late)]
        assert set(statuses) <= {200, 503}, round_number
        await records_closed(endless)
        assert (await ask(http, max_tokens=1, **look(9)))[0] == 200
    suspects = blocks() - before
    async with asyncio.timeout(PATIENCE_S):
        while suspects & blocks():  # noqa: ASYNC110 - those of other programs come and go
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("drain_s", "outcomes"),
    # without time the server ends the generation, or the bridge's cancel comes before that
    [pytest.param("0", {"UNAVAILABLE", "CANCELLED"}, id="at once"), pytest.param("30", {"OK"}, id="drained")],
)
async def test_a_stop_signal_ends_everything_and_leaves_no_process(
    endless_folder: Path, tmp_path: Path, drain_s: str, outcomes: set[str]
) -> None:
    options = ("--model", str(endless_folder), "--drain-timeout", drain_s)
    with Stack(tmp_path / "data", *options) as stack:
        processes = [stack.serve_pid, *descendants(stack.serve_pid)]
        assert len(processes) >= 4  # serve, server, engine, bridge
        headers = {"Authorization": f"Bearer {stack.key}"}
        async with aiohttp.ClientSession(base_url=stack.http, headers=headers) as http, AsyncExitStack() as held:
            stream = await begin(http, held, max_tokens=600)
            stopping = asyncio.create_task(asyncio.to_thread(stack.stop))
            rest = await stream.text()
            assert await stopping == 0
    assert wait_gone(processes)
    [outcome] = [row.outcome for row in stack.usage()]
    assert outcome in outcomes
    assert rest.endswith("data: [DONE]\n\n") == (outcome == "OK")
    assert ('"error"' in rest) == (outcome != "OK")


async def test_a_second_stop_signal_ends_the_server_within_a_second_and_its_streams_with_an_error(
    endless: Stack, http: aiohttp.ClientSession
) -> None:
    """The launcher starts it again: nobody has asked that to stop."""
    before = len(await records_closed(endless))
    server = endless.server_pid
    async with AsyncExitStack() as held:
        streams = [await begin(http, held, max_tokens=1000) for _ in range(NUM_STREAMS)]
        os.kill(server, signal.SIGTERM)
        await asyncio.sleep(0.3)
        os.kill(server, signal.SIGTERM)
        began = time.monotonic()
        assert await asyncio.to_thread(wait_gone, [server])
        assert time.monotonic() - began < 1
        for stream in streams:
            rest = await stream.text()
            assert '"error"' in rest
            assert "[DONE]" not in rest
    async with asyncio.timeout(PATIENCE_S):
        while (await ask(http, max_tokens=1))[0] != 200:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.1)
    rows = (await records_closed(endless))[before:]
    assert [row.outcome for row in rows] == ["UNAVAILABLE"] * NUM_STREAMS + ["OK"]
