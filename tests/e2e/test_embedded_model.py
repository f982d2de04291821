"""The embedded model over HTTP: it answers text as plain SmolLM2 does, and takes pictures without seeing them."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from checkpoints import demo_checkpoint
from e2e.conftest import LLAMA
from pictures import data_uri, disc
from plain_smollm2 import greedy_choices
from spyglass_server.prompt import PromptMaker
from spyglass_server.prompt.prepare import ChatInput
from spyglass_server.prompt.template import Message
from stack import Stack

pytestmark = pytest.mark.slow


@pytest.fixture
def client(demo: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=demo.openai_url, api_key=demo.key, max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, *parts: dict[str, Any]) -> Any:
    messages: list[Any] = [{"role": "user", "content": list(parts)}]
    return client.chat.completions.create(model=LLAMA, messages=messages, temperature=0, max_tokens=24)


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def picture(colour: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_uri(disc(colour))}}


@pytest.mark.parametrize("question", ["What is the capital of France?", "Name three fruits.", "¿Qué hora es?"])
def test_text_is_answered_as_by_plain_smollm2(client: openai.OpenAI, question: str) -> None:
    maker = PromptMaker(demo_checkpoint(), max_image_pixels=1)
    prompt = maker.prepare(ChatInput((Message("user", (question,)),))).tokens
    answer = ask(client, text(question))
    content = answer.choices[0].message.content
    assert answer.usage.prompt_tokens == len(prompt)
    tokens = maker.tokenizer.encode_text(content)
    assert len(tokens) in (answer.usage.completion_tokens, answer.usage.completion_tokens - 1)  # a stop token is unseen
    assert greedy_choices(prompt, tokens) == tokens


def test_a_picture_is_taken_and_billed_but_not_seen(client: openai.OpenAI) -> None:
    question = text("What colour is the disc?")
    without, red, blue = (
        ask(client, question),
        ask(client, picture("red"), question),
        ask(client, picture("blue"), question),
    )
    assert red.usage.prompt_tokens == without.usage.prompt_tokens + 1
    assert red.usage.estimated_cost == pytest.approx(
        red.usage.prompt_tokens * 0.35e-6 + red.usage.completion_tokens * 0.40e-6
    )
    assert red.choices == blue.choices
    assert red.choices[0].message.content
