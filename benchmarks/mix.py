"""Requests of every kind, some of which are cancelled, and their results as callers see them."""

import asyncio
import base64
import io
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

from processes import MODEL
from spyglass_client import AsyncClient, SpyglassError

_MAX_TOKENS = (1, 24)
_MAX_TOKENS_BROKEN_OFF = (200, 400)
"""Long enough to be incomplete by then."""
_SIDE = 40
_NUM_KNOWN_PICTURES = 20
_SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
_TOOL = {"type": "function", "function": {"name": "look", "parameters": _SCHEMA}}


class Ending(Enum):
    """How a request ended for its caller."""

    WHOLE = "answered"
    BROKEN_OFF = "broken off"
    REFUSED = "refused"
    WRONG = "not as it should"


@dataclass(slots=True, kw_only=True)
class Seen:
    """A request as its caller sees it. A cancelled one's tokens are those that arrived."""

    request_id: str
    kind: str
    max_tokens: int
    ending: Ending = Ending.WRONG
    prompt_tokens: int = 0
    tokens: int = 0
    cost_usd: float = 0.0
    text: str = ""
    """What was wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A client with a key, over HTTP and over gRPC. It cancels the share `cancelled` of its requests."""

    http: aiohttp.ClientSession
    url: str
    grpc: AsyncClient
    key: str
    chance: random.Random
    cancelled: float
    longest_s: float
    """Maximum time until a request is cancelled."""
    letters: bool = True
    """Whether each token is a letter, as from the scripted engine; others are counted by their logprobs."""
    prefix: str = "mix"
    pictures: dict[int, str] = field(default_factory=dict)

    async def ask(self, number: int) -> Seen:
        """Sends a request, valid or invalid."""
        kind, patience_s, max_tokens = self.chance.choice([*KINDS]), None, self.chance.randint(*_MAX_TOKENS)
        if self.chance.random() < self.cancelled:
            kind = self.chance.choice([kind for kind in KINDS if not kind.startswith("wrong")])
            patience_s = self.chance.uniform(0, self.longest_s)
            max_tokens = self.chance.randint(*_MAX_TOKENS_BROKEN_OFF)
        seen = Seen(request_id=f"{self.prefix}-{number}", kind=kind, max_tokens=max_tokens)
        work = asyncio.create_task(KINDS[kind](self, seen, number))
        try:
            await asyncio.wait([work], timeout=patience_s)
        finally:
            is_late = work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        if is_late:
            seen.ending = Ending.BROKEN_OFF
        elif (error := work.exception()) is not None:
            seen.text = f"{kind}: {error!r}"
        elif seen.ending is Ending.WRONG or (seen.ending is Ending.REFUSED) != kind.startswith("wrong"):
            seen.text = f"{kind}: {seen.ending.value}, {seen.text}"
        return seen

    async def post(self, seen: Seen, body: bytes, key: str = "") -> AsyncIterator[dict[str, Any]]:
        """Sends a body, and records the result; yields the events if it is a stream."""
        headers = {"Authorization": f"Bearer {key or self.key}", "Content-Type": "application/json"}
        headers |= {"X-Request-Id": seen.request_id}
        async with self.http.post(f"{self.url}/v1/chat/completions", data=body, headers=headers) as answer:
            if answer.content_type != "text/event-stream":
                found = await answer.json()
                _note(seen, found, status=answer.status)
                return
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])
                elif line.startswith(b"data: [DONE]"):
                    seen.ending = Ending.WHOLE

    def picture(self, number: int) -> str:
        """Returns a picture's data URI; some are reused."""
        if number % 2:
            return _picture(number)
        known = number % _NUM_KNOWN_PICTURES
        return self.pictures.setdefault(known, _picture(known))


def _note(seen: Seen, found: Mapping[str, Any], status: int = 200) -> None:
    if usage := found.get("usage"):
        seen.prompt_tokens, seen.tokens = usage["prompt_tokens"], usage["completion_tokens"]
        seen.cost_usd = usage["estimated_cost"]
        seen.ending = Ending.WHOLE
    elif 400 <= status < 500:
        seen.ending = Ending.REFUSED
    if status not in (200, 400, 401, 404):
        seen.ending, seen.text = Ending.WRONG, f"{status}: {json.dumps(found)}"


def _picture(seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def chat(number: int, content: object = None, **more: Any) -> bytes:
    """Returns the body of a request with one message."""
    message = {"role": "user", "content": content or f"Go on, number {number}."}
    return json.dumps({"model": MODEL, "messages": [message], **more}).encode()


# --- the kinds of requests -------------------------------------------------------------------------


async def _answered(caller: Caller, seen: Seen, number: int, **more: Any) -> None:
    body = chat(number, max_tokens=seen.max_tokens, **more)
    async for _ in caller.post(seen, body):
        raise AssertionError("nobody asked for a stream")


async def _streamed(caller: Caller, seen: Seen, number: int, **more: Any) -> None:
    max_tokens = caller.chance.randint(*_MAX_TOKENS)
    form = {"max_tokens": max_tokens, "stream": True, "stream_options": {"include_usage": True}}
    body = chat(number, **{**form, **({} if caller.letters else {"logprobs": True}), **more})
    async for event in caller.post(seen, body):
        for choice in event["choices"]:
            tokens = choice["delta"].get("content") if caller.letters else (choice.get("logprobs") or {}).get("content")
            seen.tokens += len(tokens or "")
        if event.get("usage"):
            came = seen.tokens
            _note(seen, event)
            assert more or came == seen.tokens, f"{came} tokens came, {seen.tokens} are billed"


async def _with_picture(caller: Caller, seen: Seen, number: int) -> None:
    parts = [{"type": "image_url", "image_url": {"url": caller.picture(number)}}, {"type": "text", "text": "?"}]
    await (_streamed if number % 3 else _answered)(caller, seen, number, content=parts)


async def _with_schema(caller: Caller, seen: Seen, number: int) -> None:
    schema = _SCHEMA | {"title": str(number % 200)}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    await _answered(caller, seen, number, response_format=form)


async def _with_tools(caller: Caller, seen: Seen, number: int) -> None:
    await _answered(caller, seen, number, tools=[_TOOL], tool_choice="required")


async def _over_grpc(caller: Caller, seen: Seen, number: int) -> None:
    generation = caller.grpc.stream(f"Go on, number {number}.", request_id=seen.request_id, max_tokens=seen.max_tokens)
    async with generation:
        async for chunk in generation:
            seen.tokens += len(chunk.token_ids)
    usage = generation.answer.usage
    assert seen.tokens == usage.completion_tokens
    seen.prompt_tokens, seen.cost_usd, seen.ending = usage.prompt_tokens, usage.estimated_cost, Ending.WHOLE


async def _wrong(caller: Caller, seen: Seen, number: int) -> None:
    broken = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    body, key = caller.chance.choice(
        [
            (chat(number, temperature=-1), ""),
            (chat(number, model="another"), ""),
            (chat(number), "sk-nobody"),
            (b'{"model": ', ""),
            (chat(number, content=broken), ""),
            (chat(number, response_format={"type": "regex", "regex": "(a"}), ""),
        ]
    )
    async for _ in caller.post(seen, body, key):
        raise AssertionError("it was not refused")


async def _wrong_over_grpc(caller: Caller, seen: Seen, number: int) -> None:
    try:
        await caller.grpc.generate("?", model="another", request_id=seen.request_id)
    except SpyglassError:
        seen.ending = Ending.REFUSED


KINDS: Mapping[str, Callable[..., Any]] = {
    "answer": _answered,
    "stream": _streamed,
    "picture": _with_picture,
    "schema": _with_schema,
    "tools": _with_tools,
    "gRPC": _over_grpc,
    "wrong": _wrong,
    "wrong over gRPC": _wrong_over_grpc,
}
