"""Large bodies are read as small ones are, and hold up nobody."""

import asyncio
import base64
import json
import mmap
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_setup import BridgeUnderTest, ask, ask_about
from spyglass_bridge.body import LargeBody
from spyglass_bridge.errors import ApiError
from spyglass_bridge.openai.large_bodies import set_aside
from spyglass_bridge.openai.requests import ChatRequest
from spyglass_bridge.openai.translation import CallContext, Submission, translate_chat
from spyglass_bridge.openai.validation import parse

CONTEXT = CallContext(request_id="r", caller_key="k", timeout_s=1.0, max_image_bytes=20 << 20)
PICTURE = base64.b64encode(bytes(range(256)) * 100).decode()


def large(body: bytes) -> LargeBody:
    found = LargeBody(mmap.mmap(-1, len(body)))
    found.add(body)
    return found


def read(body: bytes) -> Submission:
    """As a small body is read."""
    return translate_chat(parse(body, ChatRequest), CONTEXT)


def read_aside(body: bytes | LargeBody) -> Submission:
    """As a large body is read."""
    rest, pictures = set_aside(large(body) if isinstance(body, bytes) else body)
    found = translate_chat(parse(rest, ChatRequest), replace(CONTEXT, set_aside=pictures))
    assert pictures.all_used
    return found


def outcome(how: Callable[[Any], Submission], body: bytes | LargeBody) -> object:
    try:
        return how(body)
    except ApiError as error:
        return error.http_status, error.code, error.param


def in_unicode(text: str) -> str:
    """A string as encoders write it that escape plus and equals signs, and slashes."""
    return text.replace("+", "\\u002B").replace("=", "\\u003d").replace("/", "\\/")


@pytest.mark.parametrize("escape", [str, in_unicode])
@pytest.mark.parametrize("data", [PICTURE, quote(PICTURE, safe=""), base64.encodebytes(bytes(30_001)).decode()])
@pytest.mark.parametrize("more", [{}, {"detail": "low"}])
def test_long_pictures_are_read_as_short_ones_are(
    escape: Callable[[str], str], data: str, more: dict[str, str]
) -> None:
    url = f"data:image/png;base64,{data}"
    parts = [{"type": "image_url", "image_url": more | {"url": url}}, {"type": "text", "text": 'a "url" \\'}] * 2
    text = json.dumps(ask(messages=[{"role": "user", "content": parts}]))
    body = text.replace(json.dumps(url), f'"{escape(json.dumps(url)[1:-1])}"').encode()
    rest, pictures = set_aside(large(body))
    assert len(pictures.urls) == 2
    assert len(rest) < 1000
    assert read_aside(body) == read(body)


@given(
    st.integers(0, 600_000), st.sampled_from(["=", "\\", "\\\\", '\\"', '"', "\n", " ", "ä", "%", "%4", "\\u002", ","])
)
def test_junk_in_a_long_picture_is_refused_as_in_a_short_one(place: int, junk: str) -> None:
    data = PICTURE * 18
    data = data[:place] + junk + data[place:]
    body = json.dumps(ask(messages=ask_about("URL"))).replace("URL", f"data:image/png;base64,{data}").encode()
    found, wanted = outcome(read_aside, body), outcome(read, body)
    assert found == wanted or wanted == (400, "invalid_request", None)  # which mistake is found first may differ
    assert isinstance(found, tuple) == isinstance(wanted, tuple)


@pytest.mark.parametrize("url", ["https://a.example/" + "x" * 300_000, PICTURE * 8, "data:text/plain," + "x" * 20_000])
def test_other_long_urls_are_refused(url: str) -> None:
    body = json.dumps(ask(messages=ask_about(url))).encode()
    with pytest.raises(ApiError, match=r"URL|base64"):
        read_aside(body)


async def test_what_looks_like_a_picture_elsewhere_stays_what_it_is(bridge: BridgeUnderTest) -> None:
    schema = {"type": "object", "image_url": {"url": "data:" + "x" * 100_000}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    status, _ = await bridge.chat(tools=[tool])
    assert status == 200
    assert json.loads(bridge.server.turns[-1].start.chat.tools[0].parameters_json) == schema


async def test_a_text_beyond_every_context_is_refused_in_the_words_of_the_api(bridge: BridgeUnderTest) -> None:
    status, answer = await bridge.chat(messages=[{"role": "user", "content": "word " * (10 << 20)}])
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


def large_bodies() -> dict[str, bytes]:
    size = 60 << 20
    escaped = json.dumps(ask(messages=[{"role": "user", "content": "URL"}]))
    pictures = json.dumps(ask(messages=ask_about("URL1", "URL2", "URL3")))
    data = "data:image/png;base64," + "A" * (size // 3 // 4 * 4)
    return {
        "text": escaped.replace("URL", "word " * (size // 5)).encode(),
        "escapes": escaped.replace("URL", '\\"' * (size // 2)).encode(),
        "pictures": re.sub("URL.", data, pictures).encode(),
        "escaped pictures": re.sub("URL.", lambda found: data.replace("AA", "\\/\\/")[: size // 3], pictures).encode(),
        "spaces": escaped.encode() + b" " * size,
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", large_bodies())
async def test_reading_a_large_body_holds_up_nobody(kind: str) -> None:
    """Best of five: others use this machine too."""
    body = large(large_bodies()[kind])
    longest = [await lag_s(lambda: outcome(read_aside, body)) for _ in range(5)]
    assert min(longest) < 0.05


async def lag_s(work: Callable[[], Any]) -> float:
    """How long an event loop stands still, at most, while a thread does some work."""
    running = asyncio.create_task(asyncio.to_thread(work))
    longest = 0.0
    while not running.done():
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        longest = max(longest, time.perf_counter() - began - 0.001)
    await running
    return longest
