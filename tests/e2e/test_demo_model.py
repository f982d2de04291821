"""The demo model over HTTP: it answers text as plain SmolLM2 does, and sees simple pictures."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from checkpoints import demo_checkpoint
from e2e.conftest import LLAMA
from pictures import data_uri, noise
from plain_smollm2 import greedy_choices
from spyglass_server.prompt import PromptMaker
from spyglass_server.prompt.conversation import Message
from spyglass_server.prompt.prompt_maker import ChatInput
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


def test_a_second_turn_is_cheaper_and_still_as_by_plain_smollm2(client: openai.OpenAI) -> None:
    maker = PromptMaker(demo_checkpoint(), max_image_pixels=1)
    turns = ["List three fruits and say where they grow, in a few words each.", "Which of them is the sweetest?"]
    messages: list[Any] = []
    for question in turns:
        messages.append({"role": "user", "content": question})
        answer = client.chat.completions.create(model=LLAMA, messages=messages, temperature=0, max_tokens=24)
        prompt = maker.prepare(
            ChatInput(tuple(Message(message["role"], (message["content"],)) for message in messages))
        ).tokens
        content = answer.choices[0].message.content or ""
        tokens = maker.tokenizer.encode_text(content)
        assert greedy_choices(prompt, tokens) == tokens
        messages.append({"role": "assistant", "content": content})
    assert answer.usage
    details = answer.usage.prompt_tokens_details
    assert details
    first = len(maker.prepare(ChatInput((Message("user", (turns[0],)),))).tokens)
    assert first - 16 <= (details.cached_tokens or 0) < answer.usage.prompt_tokens  # pages have 16 tokens


PICTURES = Path(__file__).parents[2] / "clients" / "examples" / "pictures"


@pytest.mark.parametrize(
    ("name", "question", "answer"),
    [
        ("red_circle", "What is in the picture?", "red circle"),
        ("red_circle", "What colour is the circle?", "red"),
        ("three_triangles", "How many triangles are there?", "three"),
        ("seven", "Which digit is this?", "7"),
    ],
)
def test_pictures_are_seen(client: openai.OpenAI, name: str, question: str, answer: str) -> None:
    shown = ask(client, example(name), text(question))
    assert answer in shown.choices[0].message.content.lower()


def test_several_pictures_in_a_conversation(client: openai.OpenAI) -> None:
    messages: list[Any] = []
    answers = []
    for parts in (
        [example("red_circle"), text("What colour is the circle?")],
        [example("three_triangles"), text("How many triangles are there?")],
        [text("What colour are they?")],
    ):
        messages.append({"role": "user", "content": parts})
        completion = client.chat.completions.create(model=LLAMA, messages=messages, temperature=0, max_tokens=24)
        answers.append(completion.choices[0].message.content or "")
        messages.append({"role": "assistant", "content": answers[-1]})
    assert "red" in answers[0].lower()
    assert "three" in answers[1].lower()
    assert "green" in answers[2].lower()


def test_a_picture_is_one_token_of_the_bill(client: openai.OpenAI) -> None:
    question = text("What colour is the circle?")
    without, red = ask(client, question), ask(client, example("red_circle"), question)
    assert red.usage.prompt_tokens == without.usage.prompt_tokens + 1
    assert red.usage.estimated_cost == pytest.approx(
        red.usage.prompt_tokens * 0.35e-6 + red.usage.completion_tokens * 0.40e-6
    )


def test_a_picture_outside_its_world_is_answered_in_words(client: openai.OpenAI) -> None:
    snow = {"type": "image_url", "image_url": {"url": data_uri(noise((400, 300)))}}
    content = ask(client, snow, text("What is this?")).choices[0].message.content
    assert re.search(r"[a-z]{3}", content)


def example(name: str) -> dict[str, Any]:
    file = base64.b64encode((PICTURES / f"{name}.png").read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{file}"}}
