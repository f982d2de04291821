"""An answer does not depend on what else the server does: the same requests alone and together."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from checkpoints import demo_checkpoint
from fidelity.ours import Ours
from pictures import disc, encoded, noise
from spyglass_client import Answer, AsyncClient, AsyncGeneration, ImagePart, Message, Usage, image
from spyglass_client.messages import Role
from spyglass_server.prompt import PromptMaker
from spyglass_server.prompt.conversation import Message as Turn
from spyglass_server.prompt.prompt_maker import ChatInput, ImageSlot
from stack import Stack

pytestmark = pytest.mark.slow

NEW_TOKENS = 64
NEAR_TIE = 1e-3
"""Two best logits closer than this may change places when sums are made in another order."""


@dataclass(frozen=True)
class Request:
    """A conversation, which the user begins. Parts of a turn are divided by |, and "I" is the next picture."""

    turns: tuple[str, ...]
    pictures: tuple[Image.Image, ...] = ()
    options: tuple[tuple[str, Any], ...] = (("temperature", 0), ("ignore_eos", True), ("max_tokens", NEW_TOKENS))

    def messages(self) -> list[Message]:
        """As the client takes it."""
        pictures = iter(self.pictures)

        def part(word: str | None) -> str | ImagePart:
            return image(encoded(next(pictures))) if word is None else word

        return [Message(role, tuple(map(part, parts))) for role, parts in self.parts()]

    def parts(self) -> list[tuple[Role, tuple[str | None, ...]]]:
        """Role and parts of each turn; None where a picture stands."""
        roles: tuple[Role, Role] = ("user", "assistant")
        return [
            (roles[index % 2], tuple(None if word == "I" else word for word in turn.split("|")))
            for index, turn in enumerate(self.turns)
        ]


def words(count: int) -> str:
    return " ".join(f"word{number}" for number in range(count))


TEXT = [Request((words(count),)) for count in (1, 3, 17, 60, 300)]
PICTURES = [
    Request(("I|What is it?",), (disc("red"),)),
    Request(("I|What is it?",), (disc("blue", (200, 40)),)),
    Request(("Look at this:|I",), (noise((30, 90)),)),
    Request((words(40), "Yes.", "I|And this?"), (disc("green", (90, 90)),)),
    Request(("I|What is it?",), (noise((500, 400)),)),  # too large for one message: it follows in pieces
]
SEVERAL = [
    Request(("I|I|Compare them.",), (disc("red"), disc("blue"))),
    Request((words(20) + "|I|I|" + words(30),), (noise((28, 28)), disc("yellow", (120, 30)))),
    Request(("I|What is it?", "A disc.", "I|And this?"), (disc("red"), noise((60, 60)))),
    Request(("One:|I|two:|I|three:|I|.",), (disc("red"), disc("green"), disc("blue"))),
    Request(("I|I|Compare them.", "They differ.", "I|And this?"), (disc("red"), disc("blue"), noise((56, 28)))),
]
MIXED = [request for group in zip(TEXT, PICTURES, SEVERAL, strict=True) for request in group] + [
    Request((words(80), words(5), words(2)))
]


def begin(client: AsyncClient, request: Request) -> AsyncGeneration:
    return client.stream_chat(request.messages(), **dict(request.options))


async def alone(stack: Stack, requests: Sequence[Request]) -> list[Answer]:
    """One after the other."""
    async with AsyncClient(stack.grpc, api_key=stack.key) as client:
        return [await begin(client, request).result() for request in requests]


async def together(stack: Stack, requests: Sequence[Request]) -> list[Answer]:
    """All at once, in threes; each three begin when those before them have had their first tokens."""
    async with AsyncClient(stack.grpc, api_key=stack.key) as client:
        generations = []
        for index, request in enumerate(requests):
            generations.append(begin(client, request))
            await generations[-1].begin()
            if index % 3 == 2:
                await asyncio.gather(*(generation.next_chunk() for generation in generations[-3:]))
        return list(await asyncio.gather(*(generation.result() for generation in generations)))


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first place where two answers of one length are not the same."""
    assert len(one) == len(other)
    return next((place for place, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), None)


def margins(ours: Ours, maker: PromptMaker, request: Request, answer: Sequence[int]) -> list[float]:
    """How far the best logit is above the second at each token of an answer.

    Asserts that the answer has taken the best one wherever that is clear.
    """
    roles = ChatInput(
        tuple(Turn(role, parts) for role, parts in request.parts()), tuple(ImageSlot("") for _ in request.pictures)
    )
    prompt = list(maker.prepare(roles, [encoded(picture) for picture in request.pictures]).tokens)
    logits = ours.logits([*prompt, *answer], list(request.pictures))[len(prompt) - 1 : -1]
    best = logits.topk(2)
    gaps: list[float] = (best.values[:, 0] - best.values[:, 1]).tolist()
    chosen: list[int] = best.indices[:, 0].tolist()
    assert all(token == wanted for token, wanted, gap in zip(answer, chosen, gaps, strict=True) if gap > NEAR_TIE)
    return gaps


def assert_same(
    ours: Ours, maker: PromptMaker, requests: Sequence[Request], one: list[Answer], other: list[Answer]
) -> None:
    """The answers are the same up to the first near tie."""
    for request, lone, joint in zip(requests, one, other, strict=True):
        assert len(lone.token_ids) == dict(request.options)["max_tokens"]
        gaps = margins(ours, maker, request, lone.token_ids)
        place = first_difference(lone.token_ids, joint.token_ids)
        assert place is None or gaps[place] <= NEAR_TIE, (request.turns, place)


def billed(usage: Usage) -> Usage:
    """Without what depends on what was asked before, or on how much else there is to do."""
    return replace(usage, cached_tokens=0, accepted_prediction_tokens=0, rejected_prediction_tokens=0)


async def test_mixed_requests_are_answered_as_alone(tiny: Stack, tiny_checkpoint: Path) -> None:
    assert len(MIXED) == 16
    lone = await alone(tiny, MIXED)
    assert len({answer.token_ids for answer in lone}) == 16
    joint = await together(tiny, MIXED)
    ours = Ours.load(tiny_checkpoint, num_pages=256)
    assert_same(ours, PromptMaker(tiny_checkpoint, max_image_pixels=10**6), MIXED, lone, joint)
    assert any(answer.usage.cached_tokens for answer in joint), "what was asked before is not computed again"
    assert [billed(answer.usage) for answer in joint] == [billed(answer.usage) for answer in lone]


async def test_sampled_requests_are_answered_as_alone(tiny: Stack) -> None:
    sampling: dict[str, Any] = {"temperature": 0.7, "top_p": 0.95, "ignore_eos": True, "max_tokens": NEW_TOKENS}
    requests = [
        Request(request.turns, request.pictures, tuple((sampling | {"seed": seed}).items()))
        for seed, request in enumerate([*MIXED[:6], *MIXED[:2]])
    ]
    lone = await alone(tiny, requests)
    assert len({answer.token_ids for answer in lone}) == len(requests)
    assert [answer.token_ids for answer in await together(tiny, requests)] == [answer.token_ids for answer in lone]


async def test_the_demo_model_answers_as_alone(demo: Stack) -> None:
    options = (("temperature", 0), ("ignore_eos", True), ("max_tokens", 12))
    questions = (
        "Hello!",
        "Why is the sky blue?",
        "2 + 2 =",
        "Who wrote Hamlet?",
        words(40),
        "Tell me a joke.",
        "Hi",
        "¿Qué?",
    )
    requests = [Request((question,), options=options) for question in questions]
    lone = await alone(demo, requests)
    joint = await together(demo, requests)
    folder = demo_checkpoint()
    assert_same(Ours.load(folder), PromptMaker(folder, max_image_pixels=1), requests, lone, joint)
