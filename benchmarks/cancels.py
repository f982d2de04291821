"""Connects and disconnects thousands of times, and checks what is left behind.

    python benchmarks/cancels.py

Over HTTP each request is sent on its own connection, which is closed at once or after some events; over gRPC a
generation is cancelled, or the whole call. Nothing must be left of them: no open files, threads, tasks, admitted
requests, pages of the KV cache, or running generations.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from grpc import aio

from bars import Bar, report
from left_behind import bars_left_behind, holdings, shared_blocks
from mix import chat
from processes import checkpoint_or_demo
from records import known
from service import Service
from spyglass.v1 import chat_pb2, inference_pb2, inference_pb2_grpc, options_pb2
from spyglass_client import AsyncClient
from spyglass_server.database import sqlite_url

_KEY = "sk-cancels"
_MAX_TOKENS = 2000
_MAX_EVENTS = 4
_FREE_S = 1.0
"""Maximum time until all places are free after the last client has left."""
_GRPC_SHARE = 0.25


@dataclass(slots=True, kw_only=True)
class Left:
    """How the clients left."""

    ways: Counter[str] = field(default_factory=Counter)
    took_s: float = 0.0
    free_s: float = 0.0


class Leaver:
    """Asks and leaves."""

    def __init__(self, service: Service, stub: "inference_pb2_grpc.InferenceServiceAsyncStub", chance: random.Random):
        self._host, _, self._port = service.address.partition(":")
        self._stub, self._chance = stub, chance

    async def leave(self, number: int) -> str:
        """Asks in a random way, and leaves; returns the way."""
        num_events = self._chance.choice([0, 0, self._chance.randint(1, _MAX_EVENTS)])
        if self._chance.random() < _GRPC_SHARE:
            return await self._over_grpc(number, num_events)
        return await self._over_http(number, num_events)

    async def _over_http(self, number: int, num_events: int) -> str:
        stream = bool(num_events) or self._chance.random() < 0.5
        body = chat(number, max_tokens=_MAX_TOKENS, stream=stream)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {_KEY}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        reader, writer = await asyncio.open_connection(self._host, int(self._port))
        try:
            writer.write(head.encode() + body)
            await writer.drain()
            if not num_events:
                await asyncio.sleep(self._chance.choice([0, 0.01]))
                return "HTTP, before the first event"
            line = await reader.readline()
            if b" 200 " not in line:
                return f"HTTP, refused: {line.decode().strip()}"
            for _ in range(num_events):
                await reader.readuntil(b"\n\n")
            return "HTTP, in mid-stream"
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _over_grpc(self, number: int, num_events: int) -> str:
        message = chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.Part(text=f"Go on, number {number}.")])
        start = inference_pb2.Start(
            chat=chat_pb2.Chat(messages=[message]), stopping=options_pb2.Stopping(max_tokens=_MAX_TOKENS)
        )
        call = self._stub.Generate(metadata=(("authorization", f"Bearer {_KEY}"),))
        await call.write(inference_pb2.GenerateRequest(id=1, start=start))
        for _ in range(num_events):
            await call.read()
        if self._chance.random() < 0.5:
            await call.write(inference_pb2.GenerateRequest(id=1, cancel=inference_pb2.Cancel()))
            await call.done_writing()
            while await call.read() is not aio.EOF:
                pass
            return "gRPC, the generation"
        call.cancel()
        return "gRPC, the call"


async def leave_all(service: Service, given: argparse.Namespace, count: int) -> Left:
    """Asks and leaves `count` times, in the given time or as fast as possible."""
    left, numbers = Left(), iter(range(count))
    async with aio.insecure_channel(service.grpc) as channel:
        stub: inference_pb2_grpc.InferenceServiceAsyncStub = inference_pb2_grpc.InferenceServiceStub(channel)
        leaver = Leaver(service, stub, random.Random(given.seed))
        began = time.monotonic()

        async def worker() -> None:
            for number in numbers:
                await asyncio.sleep(began + number * given.seconds / given.requests - time.monotonic())
                left.ways[await leaver.leave(number)] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(given.concurrency):
                group.create_task(worker())
        ended = time.monotonic()
        left.took_s = ended - began
        while await asyncio.to_thread(lambda: service.held()["admitted"]):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)
        left.free_s = time.monotonic() - ended
    return left


async def measure(service: Service, given: argparse.Namespace) -> tuple[Left, list[Bar]]:
    """Warms up, asks and leaves, and checks what is left."""
    await leave_all(service, given, max(1, given.requests // 10))
    await asyncio.sleep(given.settle)
    before, blocks = holdings(service), shared_blocks()
    left = await leave_all(service, given, given.requests)
    bars = await bars_left_behind(service, before, blocks)
    async with AsyncClient(service.grpc, api_key=_KEY) as client:
        await client.usage()  # returns once the database has everything
    return left, bars


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--model", type=Path, help="the checkpoint whose prompts are made (default: the demo model)")
    add("--requests", type=int, default=5000, help="how many leave (default: %(default)s)")
    add("--seconds", type=float, default=10.0, help="in so much time, if it can be (default: %(default)s)")
    add("--concurrency", type=int, default=64, help="how many at once, at most (default: %(default)s)")
    add("--settle", type=float, default=3.0, help="seconds before things are counted (default: %(default)s)")
    add("--step-ms", type=float, default=5.0, help="how long a step takes (default: %(default)s)")
    add("--seed", type=int, default=0, help="of everything that is random (default: %(default)s)")
    add("--verbose", action="store_true", help="shows what server and bridge say")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    given = parser().parse_args(arguments)
    model = checkpoint_or_demo(given.model)
    with tempfile.TemporaryDirectory() as folder:
        with Service.started(
            model, Path(folder), step_ms=given.step_ms, keys=(_KEY,), verbose=given.verbose
        ) as service:
            left, bars = asyncio.run(measure(service, given))
        records = known(sqlite_url(Path(folder)))
    refused = sum(count for way, count in left.ways.items() if "refused" in way)
    print(f"{given.requests:,} in {left.took_s:.1f} s: " + ", ".join(f"{n:,} {way}" for way, n in left.ways.items()))
    print(f"{len(records):,} usage records, of which {sum(one.outcome == 'OK' for one in records)} of whole answers\n")
    return report(
        [
            Bar.at_most("until the place of the last is free", left.free_s, _FREE_S, "s"),
            Bar.at_most("share that was refused, since the queue was full", 100 * refused / given.requests, 5, "%"),
            Bar.none("records left open", [one.request_id for one in records if not one.is_closed]),
            Bar.none("generations that ran to their end", [one.request_id for one in records if one.outcome == "OK"]),
            *bars,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
