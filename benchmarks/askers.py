"""Clients that send one chat each and record its times, over HTTP and over gRPC.

Knows nothing about the server that answers.
"""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from load import Sample
from spyglass_client import AsyncClient, Message

Chat = tuple[str, str]
"""A system message and a question."""


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
        if not sample.pieces:  # an answer of only control tokens
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
