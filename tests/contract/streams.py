"""Answers as streams, over HTTP and as many at once as a test wants."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from contract.doors import CHAT, assert_clean, chat_body
from contract.oracle import PATIENCE_S
from stack import Stack, UsageRow

DONE = "[DONE]"


@dataclass
class EventStream:
    """The events of one answer, as they come."""

    response: aiohttp.ClientResponse
    events: list[Any] = field(default_factory=list)

    async def read(self, count: int) -> None:
        """Reads so many more events."""
        for _ in range(count):
            frame = await self.response.content.readuntil(b"\n\n")
            assert frame, self.events
            self._add(frame.decode())

    async def rest(self) -> "EventStream":
        """Reads to the end."""
        text = await self.response.text()
        assert_clean(text)
        for frame in text.split("\n\n")[:-1]:
            self._add(frame)
        return self

    @property
    def is_done(self) -> bool:
        return bool(self.events[-1] == DONE)

    @property
    def error(self) -> dict[str, Any] | None:
        """The error that it ended with."""
        found: dict[str, Any] | None = self.events[-1].get("error") if not self.is_done else None
        return found

    @property
    def text(self) -> str:
        """What it has said so far."""
        deltas = [event["choices"][0]["delta"] for event in self._chunks() if event["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)

    @property
    def num_tokens(self) -> int:
        """How many tokens it has been told of."""
        return max([event["usage"]["completion_tokens"] for event in self._chunks() if event.get("usage")], default=0)

    def close(self) -> None:
        """Leaves."""
        self.response.close()

    def _chunks(self) -> list[Any]:
        return [event for event in self.events if event != DONE and "choices" in event]

    def _add(self, frame: str) -> None:
        text = frame.strip().removeprefix("data: ")
        self.events.append(DONE if text == DONE else json.loads(text))


@asynccontextmanager
async def session(stack: Stack, key: str | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    """HTTP with a key, the stack's own by default, and as many connections as are wanted."""
    headers = {"Authorization": f"Bearer {key or stack.key}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(base_url=stack.http, headers=headers, connector=connector) as http:
        yield http


async def begin(
    http: aiohttp.ClientSession, held: AsyncExitStack, headers: dict[str, str] | None = None, **fields: Any
) -> EventStream:
    """Starts a stream that is closed with `held`, and returns it once its answer has begun."""
    options = {"stream": True, "stream_options": {"continuous_usage_stats": True}, "max_tokens": 3000}
    post = http.post(CHAT, json=chat_body(**options | fields), headers=headers)
    stream = EventStream(await held.enter_async_context(post))
    assert stream.response.status == 200, await stream.response.text()
    await stream.read(2)  # the role, then text
    return stream


async def begin_many(http: aiohttp.ClientSession, held: AsyncExitStack, count: int, **fields: Any) -> list[EventStream]:
    """Starts as many streams, each of which has begun."""
    return list(await asyncio.gather(*(begin(http, held, **fields) for _ in range(count))))


async def new_records(stack: Stack, before: int, *, within_s: float = PATIENCE_S) -> list[UsageRow]:
    """Waits until all records after the first `before` are closed, and returns them."""
    async with asyncio.timeout(within_s):
        while True:
            rows = (await asyncio.to_thread(stack.usage))[before:]
            if all(row.outcome for row in rows):
                return rows
            await asyncio.sleep(0.02)
