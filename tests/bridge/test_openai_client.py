"""The openai package against a bridge, as its users use it."""

import asyncio
import base64
from collections.abc import AsyncIterator

import openai
import pytest
from google.rpc import code_pb2

from bridge_setup import MODEL, BridgeUnderTest
from fake_service import USER_KEY, Reply
from spyglass_common.status import make_status


@pytest.fixture
async def client(bridge: BridgeUnderTest) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{bridge.url}/v1/openai", api_key=USER_KEY, max_retries=0) as client:
        yield client


async def test_a_question(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "Respond like a michelin starred chef."},
            {"role": "user", "content": "Can you name at least two different techniques to cook lamb?"},
            {"role": "assistant", "content": "Bonjour!"},
            {"role": "user", "content": "Tell me more about the second method."},
        ],
    )
    assert answer.choices[0].message.content == "Hello!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 14


async def test_an_answer_sent_back(client: openai.AsyncOpenAI, bridge: BridgeUnderTest) -> None:
    first = await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}])
    await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hi"}, first.choices[0].message, {"role": "user", "content": "Go on"}],  # type: ignore[list-item]
    )
    assert bridge.server.turns[1].start.chat.messages[1].parts[0].text == "Hello!"


async def test_a_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hello!"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello!"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


async def test_the_synchronous_client(bridge: BridgeUnderTest) -> None:
    def talk() -> list[str | None]:
        with openai.OpenAI(base_url=f"{bridge.url}/v1", api_key=USER_KEY, max_retries=0) as client:
            messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hello!"}]
            plain = client.chat.completions.create(model=MODEL, messages=messages)
            stream = client.chat.completions.create(model=MODEL, messages=messages, stream=True)
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            return [plain.choices[0].message.content, streamed, client.models.list().data[0].id]

    assert await asyncio.to_thread(talk) == ["Hello!", "Hello!", MODEL]


async def test_an_image(client: openai.AsyncOpenAI, bridge: BridgeUnderTest) -> None:
    url = "data:image/jpeg;base64," + base64.b64encode(b"a picture").decode()
    answer = await client.chat.completions.create(
        model=MODEL,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": url, "detail": "auto"}},
                    {"type": "text", "text": "What is in this image?"},
                ],
            }
        ],
    )
    assert answer.choices[0].message.content == "Hello!"
    assert bridge.server.turns[0].start.chat.messages[0].parts[0].image.data == b"a picture"


async def test_errors_have_their_classes(client: openai.AsyncOpenAI, bridge: BridgeUnderTest) -> None:
    async def hello() -> None:
        await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello!"}])

    refusals: list[tuple[int, str, type[openai.APIStatusError]]] = [
        (code_pb2.INVALID_ARGUMENT, "context_length_exceeded", openai.BadRequestError),
        (code_pb2.NOT_FOUND, "model_not_found", openai.NotFoundError),
        (code_pb2.RESOURCE_EXHAUSTED, "too_many_requests", openai.RateLimitError),
        (code_pb2.UNAVAILABLE, "server_draining", openai.InternalServerError),
    ]
    for code, reason, kind in refusals:
        bridge.server.script = Reply(refusal=make_status(code, "so it is", reason))
        with pytest.raises(kind) as caught:
            await hello()
        assert (caught.value.code, caught.value.message.count("so it is") > 0) == (reason, True)
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": ""}], store=True)
    assert bad.value.param == "store"


async def test_an_error_in_a_stream_is_raised(client: openai.AsyncOpenAI, bridge: BridgeUnderTest) -> None:
    bridge.server.script = Reply(failure=make_status(code_pb2.UNAVAILABLE, "gone", "engine_restarted"), fail_after=1)
    stream = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello!"}], stream=True
    )
    with pytest.raises(openai.APIError, match="gone"):
        async for _ in stream:
            pass


async def test_a_busy_server_is_tried_again(client: openai.AsyncOpenAI, bridge: BridgeUnderTest) -> None:
    refusal = make_status(code_pb2.RESOURCE_EXHAUSTED, "full", "too_many_requests", retry_after_s=0.1)
    bridge.server.script = lambda turn: Reply(refusal=None if bridge.server.turns[1:] else refusal)(turn)
    answer = await client.with_options(max_retries=1).chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello!"}]
    )
    assert answer.choices[0].message.content == "Hello!"
