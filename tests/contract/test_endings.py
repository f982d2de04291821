"""F5 and F6: more demand than the cache has room for, and the end of the server."""

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from contract.doors import CHAT, MODEL, Doors, assert_error, chat_body, quick
from contract.oracle import Oracle
from contract.streams import begin_many, new_records, session
from fakes import chat
from stack import Stack, descendants, wait_gone

pytestmark = pytest.mark.slow

NUM_STREAMS = 16
CACHE_BYTES = 1 << 19


async def test_f05_demand_for_three_times_the_cache(endless_folder: Path, tmp_path: Path) -> None:
    """Everything says what it says alone: none is cut short, or refused after it has begun.

    The oracle comes when as many have been answered once: the engine keeps the memory of a step for the next.
    """
    options = ("--model", str(endless_folder), "--served-model-name", MODEL, "--cache-bytes", str(CACHE_BYTES))
    with Stack(tmp_path / "data", *options) as stack, Doors(stack, stack.key) as doors:
        capacity = doors.request("GET", f"/v1/models/{MODEL}").json["metadata"]["context_length"]
        num_tokens = 3 * capacity // NUM_STREAMS

        async def ask(number: int) -> Any:
            body = chat_body(f"Tell me all about {number}.", max_tokens=num_tokens)
            async with http.post(CHAT, json=body) as response:
                assert response.status == 200, await response.text()
                return (await response.json())["choices"]

        async with session(stack) as http:
            for _ in range(2):
                await asyncio.gather(*(ask(number) for number in range(NUM_STREAMS)))
            with Oracle(stack, doors).watching(doors):
                alone = [await ask(number) for number in range(NUM_STREAMS)]
                assert await asyncio.gather(*(ask(number) for number in range(NUM_STREAMS))) == alone
                doors.num_admitted += 2 * NUM_STREAMS


def options_of(folder: Path) -> tuple[str, ...]:
    return ("--model", str(folder), "--served-model-name", MODEL, "--drain-timeout", "60")


async def test_f06_a_signal_lets_streams_end(endless_folder: Path, tmp_path: Path) -> None:
    with Stack(tmp_path / "data", *options_of(endless_folder)) as stack, Doors(stack, stack.key) as doors:
        assert doors.chat().status == 200
        async with session(stack) as http, AsyncExitStack() as held:
            streams = await begin_many(http, held, NUM_STREAMS, max_tokens=800)
            ends = [asyncio.create_task(stream.rest()) for stream in streams]
            os.kill(stack.serve_pid, signal.SIGTERM)
            await until_refused(http)
            for _ in range(3):
                reply = await asyncio.to_thread(quick, doors.chat, 0.1)
                assert_error(reply, 503, "server_draining")
            refusal = await asyncio.to_thread(lambda: quick(lambda: doors.generate(chat("Hi")), 0.1))
            assert refusal.code == "UNAVAILABLE"
            assert not any(end.done() for end in ends), "the streams ended too early to show anything"
            assert [(await end).is_done for end in ends] == [True] * NUM_STREAMS
            assert all(stream.num_tokens == 800 for stream in streams)
        assert await asyncio.to_thread(stack.stop, signal.SIGCONT) == 0  # it ends by itself
        assert [row.outcome for row in stack.usage()] == ["OK"] * (NUM_STREAMS + 1)


async def test_f06_a_second_signal_ends_at_once(endless_folder: Path, tmp_path: Path) -> None:
    """Within a second; the next start knows what was cut."""
    with Stack(tmp_path / "data", *options_of(endless_folder)) as stack:
        processes = [stack.serve_pid, *descendants(stack.serve_pid)]
        async with session(stack) as http, AsyncExitStack() as held:
            streams = await begin_many(http, held, NUM_STREAMS)
            os.kill(stack.serve_pid, signal.SIGTERM)
            await until_refused(http)
            began = time.monotonic()
            os.kill(stack.serve_pid, signal.SIGTERM)
            await asyncio.to_thread(stack.stop, signal.SIGCONT)
            assert wait_gone(processes)
            assert time.monotonic() - began < 1
            for stream in streams:
                try:
                    await stream.rest()
                except aiohttp.ClientError:
                    continue  # it was cut, which no client takes for an end
                assert not stream.is_done
    with Stack(tmp_path / "data", *options_of(endless_folder)) as again, Doors(again, again.key) as doors:
        rows = await new_records(again, 0)
        assert len(rows) == NUM_STREAMS
        assert all(row.outcome in ("LOST", "UNAVAILABLE", "CANCELLED") for row in rows)
        assert doors.chat().status == 200


async def until_refused(http: aiohttp.ClientSession) -> None:
    """Waits until the signal has arrived."""
    async with asyncio.timeout(10):
        while True:
            async with http.get("/ready") as response:
                if response.status == 503:
                    return
