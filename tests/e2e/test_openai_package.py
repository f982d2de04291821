"""The openai package, talking to the whole stack."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import CompletionUsage

from pictures import data_uri, disc, noise
from stack import Stack

pytestmark = pytest.mark.slow

HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
def client(tiny: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=tiny.openai_url, api_key=tiny.key, max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, messages: list[Any] = HELLO, **options: Any) -> Any:
    """A greedy answer of at most 24 tokens, unless the options say otherwise."""
    return client.chat.completions.create(
        model="tiny", messages=messages, **({"temperature": 0, "max_tokens": 24} | options)
    )


def text_of(answer: Any) -> str:
    content = answer.choices[0].message.content
    assert isinstance(content, str)
    return content


def prompt_tokens(answer: Any) -> int:
    assert isinstance(answer.usage, CompletionUsage)
    return answer.usage.prompt_tokens


def about(text: str, *pictures: str) -> dict[str, Any]:
    """A user's turn: pictures, then text."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def test_a_question(client: openai.OpenAI) -> None:
    answer = ask(client)
    assert text_of(answer)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens <= 24


def test_a_streams_deltas_join_to_the_plain_answer(client: openai.OpenAI) -> None:
    plain = ask(client, max_tokens=200)
    chunks = list(ask(client, max_tokens=200, stream=True))
    assert len(chunks) > 10
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text_of(plain)
    assert chunks[-1].choices[0].finish_reason == plain.choices[0].finish_reason
    assert chunks[-1].usage == plain.usage


async def test_the_async_client(tiny: Stack, client: openai.OpenAI) -> None:
    async with openai.AsyncOpenAI(base_url=tiny.openai_url, api_key=tiny.key, max_retries=0) as aclient:
        options: Any = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 24}
        plain = await aclient.chat.completions.create(**options)
        stream = await aclient.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    assert text_of(plain) == text_of(ask(client))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text_of(plain)
    assert (chunks[-1].choices, chunks[-1].usage) == ([], plain.usage)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_seen_and_counts_as_one_token(client: openai.OpenAI, kind: str) -> None:
    without = ask(client, [about("What is it?")])
    red = ask(client, [about("What is it?", data_uri(disc("red"), kind))])
    blue = ask(client, [about("What is it?", data_uri(disc("blue"), kind))])
    assert prompt_tokens(red) == prompt_tokens(without) + 1
    assert len({text_of(without), text_of(red), text_of(blue)}) == 3


def test_a_large_picture_travels_in_pieces(client: openai.OpenAI) -> None:
    uri = data_uri(noise((1200, 1200)))
    assert len(uri) > 4 << 20  # more than one message of gRPC can hold
    assert (
        prompt_tokens(ask(client, [about("What is it?", uri)]))
        == prompt_tokens(ask(client, [about("What is it?")])) + 1
    )


def test_pictures_over_several_turns(client: openai.OpenAI) -> None:
    def talk(*colours: str) -> Any:
        first, second, third = (data_uri(disc(colour)) for colour in colours)
        said = {"role": "assistant", "content": "Two discs."}
        return ask(client, [about("What are they?", first, second), said, about("And this?", third)])

    def words() -> Any:
        return ask(
            client, [about("What are they?"), {"role": "assistant", "content": "Two discs."}, about("And this?")]
        )

    answer = talk("red", "green", "blue")
    assert prompt_tokens(answer) == prompt_tokens(words()) + 3
    assert text_of(answer) == text_of(talk("red", "green", "blue"))
    assert text_of(answer) != text_of(talk("red", "green", "yellow"))


def test_several_choices_are_independent_and_all_billed(client: openai.OpenAI) -> None:
    answer = ask(client, n=3, temperature=1, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert 24 < answer.usage.completion_tokens <= 72
    assert prompt_tokens(answer) == prompt_tokens(ask(client))


def test_a_seed_repeats_an_answer(client: openai.OpenAI) -> None:
    texts = [text_of(ask(client, temperature=1, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_an_answer_ends_before_a_stop_string(client: openai.OpenAI) -> None:
    whole = ask(client)
    text = text_of(whole)
    stop = text[4:6]
    stopped = ask(client, stop=[stop])
    assert text_of(stopped) == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.usage.completion_tokens < whole.usage.completion_tokens


def test_errors_have_their_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as unknown:
        ask(client.with_options(api_key="sk-unknown"))
    assert unknown.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as hot:
        ask(client, temperature=3)
    assert hot.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as broken:
        ask(client, [about("What is it?", "data:image/png;base64,aGVsbG8=")])
    assert broken.value.param == "messages[0].content[0].image_url.url"
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, [{"role": "user", "content": "x" * 5000}])
    assert long.value.code == "context_length_exceeded"
    assert "This model's maximum context length is 4096 tokens. However, " in long.value.message


def test_max_tokens_is_capped_to_what_fits(client: openai.OpenAI) -> None:
    answer = ask(client, [{"role": "user", "content": "x" * 4000}], max_tokens=1_000_000)
    assert answer.usage.total_tokens <= 4096
    assert answer.choices[0].finish_reason in ("length", "stop")


def test_models_are_listed_with_their_prices(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert (model.id, model.object) == ("tiny", "model")
    extra: Any = model.model_extra
    assert extra["metadata"]["context_length"] == 4096
    assert (extra["metadata"]["pricing"]["input_tokens"], extra["metadata"]["pricing"]["output_tokens"]) == (0.35, 0.40)
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
