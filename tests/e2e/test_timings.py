"""Where the time of an answer went, as it is told to who asks for it."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image

from both import run_both
from bridge_setup import CHAT, ask, ask_about
from fakes import FakeLoader, chat, run_test_server
from pictures import data_uri
from spyglass.v1 import options_pb2

PHASES = ("admission_ms", "upload_ms", "prepare_ms", "queue_ms", "encode_ms", "prefill_ms", "decode_ms")


@pytest.fixture
async def http(tiny_checkpoint: Path, tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    async with run_both(tiny_checkpoint, tmp_path, FakeLoader(step_s=0.01)) as both:
        yield both.http


async def timings_of(http: aiohttp.ClientSession, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The timings and the usage of an answer."""
    async with http.post(CHAT, json=ask(include=["timings"], **changes)) as response:
        assert response.status == 200
        answer = await response.json()
    return answer["timings"], answer["usage"]


async def test_the_phases_add_up(http: aiohttp.ClientSession) -> None:
    picture = ask_about(data_uri(Image.new("RGB", (30, 20), "red")))
    timings, usage = await timings_of(http, messages=picture, max_tokens=11)
    assert set(timings) == {*PHASES, "first_token_ms", "total_ms", "tokens_per_second", "cached_tokens"}
    assert all(timings[name] >= 0 for name in PHASES)
    assert sum(timings[name] for name in PHASES) == pytest.approx(timings["total_ms"], abs=0.01)
    assert timings["first_token_ms"] == pytest.approx(timings["total_ms"] - timings["decode_ms"], abs=0.01)
    assert timings["prefill_ms"] >= 10
    assert timings["decode_ms"] >= 100
    assert 0 < timings["tokens_per_second"] <= 100
    assert timings["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"] == 0


async def test_an_image_that_is_cached_is_not_encoded(http: aiohttp.ClientSession) -> None:
    picture = ask_about(data_uri(Image.new("RGB", (30, 20), "blue")))
    first, _ = await timings_of(http, messages=picture, max_tokens=2)
    again, usage = await timings_of(http, messages=picture, max_tokens=2)
    assert first["encode_ms"] is not None
    assert again["encode_ms"] is None
    assert again["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"] > 0


@pytest.mark.parametrize("usage", [None, False, True])
async def test_the_last_chunk_of_a_stream_has_them(http: aiohttp.ClientSession, usage: bool | None) -> None:
    options = {} if usage is None else {"stream_options": {"include_usage": usage}}
    async with http.post(CHAT, json=ask(include=["timings"], stream=True, max_tokens=3, **options)) as response:
        lines = (await response.text()).split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert lines[-2:] == ["data: [DONE]", ""]
    assert ["timings" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["timings"]["decode_ms"] > 0


async def test_nobody_else_gets_them(http: aiohttp.ClientSession) -> None:
    nothing: list[dict[str, Any]] = [{}, {"include": []}]
    for fields in nothing:
        async with http.post(CHAT, json=ask(max_tokens=2, **fields)) as response:
            assert "timings" not in await response.json()


async def test_over_grpc_they_come_with_every_end(tiny_checkpoint: Path, tmp_path: Path) -> None:
    wanted = options_pb2.Output(timings=True)
    async with run_test_server(tiny_checkpoint, tmp_path, FakeLoader(step_s=0.01)) as server:
        stream = server.open_stream()
        await stream.start(1, chat("hi", output=wanted, model="other"))
        await stream.start(2, chat("hi", output=wanted, stopping=options_pb2.Stopping(max_tokens=1)))
        await stream.start(3, chat("hi", output=wanted, stopping=options_pb2.Stopping(max_tokens=500)))
        await stream.until(3, "delta")
        await stream.cancel(3)
        await stream.start(4, chat("hi", stopping=options_pb2.Stopping(max_tokens=3)))
        await stream.finish()
        refused, short, cancelled, plain = (stream.finished(number) for number in (1, 2, 3, 4))
    assert [field.name for field, _ in refused.timings.ListFields()] == ["admission", "total"]
    assert not short.timings.HasField("tokens_per_second")  # there is none after the first
    assert cancelled.timings.tokens_per_second >= 0
    assert cancelled.timings.total.ToNanoseconds() > cancelled.timings.first_token.ToNanoseconds()
    assert not plain.HasField("timings")
