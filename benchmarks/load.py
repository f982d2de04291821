"""Closed loops of requests against a server, and what came of them.

Owns the clients and their clocks. Knows nothing of who serves.
"""

import asyncio
import itertools
import json
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from spyglass_client import AsyncClient, Message

Chat = tuple[str, str]
"""A system message and a question."""


@dataclass(slots=True, kw_only=True)
class Sample:
    """One answer. Times are seconds on the client's clock; `pieces` are when its parts came."""

    started: float
    pieces: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    tokens: int = 0

    @property
    def first_token_s(self) -> float:
        return self.pieces[0] - self.started

    @property
    def gaps_s(self) -> list[float]:
        """Between one part and the next."""
        return [b - a for a, b in itertools.pairwise(self.pieces)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Of one load: answer tokens in a second over all, and percentiles in milliseconds."""

    tokens_per_s: float
    first_token_ms: float
    first_token_p99_ms: float
    gap_ms: float
    gap_p99_ms: float
    prompt_tokens: float
    answer_tokens: float


def summarize(samples: Sequence[Sample], duration_s: float) -> Summary:
    firsts = [1000 * sample.first_token_s for sample in samples]
    gaps = [1000 * gap for sample in samples for gap in sample.gaps_s] or [0.0]
    return Summary(
        tokens_per_s=sum(sample.tokens for sample in samples) / duration_s,
        first_token_ms=statistics.median(firsts),
        first_token_p99_ms=percentile(firsts, 0.99),
        gap_ms=statistics.median(gaps),
        gap_p99_ms=percentile(gaps, 0.99),
        prompt_tokens=statistics.mean(sample.prompt_tokens for sample in samples),
        answer_tokens=statistics.mean(sample.tokens for sample in samples),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def closed_loop(ask: Callable[[Chat], Awaitable[Sample]], chats: Sequence[Chat], concurrency: int) -> Summary:
    """Asks all, so many at once: each answer is followed by the next question."""
    waiting = iter(chats)
    samples: list[Sample] = []

    async def worker() -> None:
        samples.extend([await ask(chat) for chat in waiting])

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    return summarize(samples, time.perf_counter() - started)


class HttpAsker:
    """Asks an OpenAI-compatible server, streaming."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str, model: str, max_tokens: int) -> None:
        self._session, self._url, self._model, self._max_tokens = session, url.rstrip("/"), model, max_tokens
        self._headers = {"Authorization": f"Bearer {key}"}

    async def __call__(self, chat: Chat) -> Sample:
        system, question = chat
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": self._max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        sample = Sample(started=time.perf_counter())
        url = f"{self._url}/chat/completions"
        async with self._session.post(url, json=body, headers=self._headers) as answer:
            answer.raise_for_status()
            async for event in _events(answer.content):
                if event.get("choices") and event["choices"][0]["delta"].get("content"):
                    sample.pieces.append(time.perf_counter())
                if event.get("usage"):
                    sample.prompt_tokens = event["usage"]["prompt_tokens"]
                    sample.tokens = event["usage"]["completion_tokens"]
        if not sample.pieces:  # an answer of control tokens alone
            sample.pieces.append(time.perf_counter())
        return sample


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[dict[str, Any]]:
    async for line in content:
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


class GrpcAsker:
    """Asks a Spyglass server over gRPC, all on one stream."""

    def __init__(self, client: AsyncClient, model: str, max_tokens: int) -> None:
        self._client, self._model, self._max_tokens = client, model, max_tokens

    async def __call__(self, chat: Chat) -> Sample:
        system, question = chat
        messages = [Message("system", (system,)), Message("user", (question,))]
        sample = Sample(started=time.perf_counter())
        generation = self._client.stream_chat(messages, model=self._model, temperature=0, max_tokens=self._max_tokens)
        async for _ in generation:
            sample.pieces.append(time.perf_counter())
        answer = generation.answer
        sample.prompt_tokens, sample.tokens = answer.usage.prompt_tokens, answer.usage.completion_tokens
        return sample
