"""The demo model: run as Meta's reference would, and answering text as plain SmolLM2 does."""

from pathlib import Path

import pytest
import torch

from checkpoints import demo_checkpoint
from fidelity.decoding import greedy
from fidelity.meta_imports import Meta
from fidelity.meta_model import MetaModel
from fidelity.ours import Ours
from fidelity.prompts import Prompt
from plain_smollm2 import greedy_choices
from spyglass_server.prompt import PromptMaker
from spyglass_server.prompt.conversation import Message
from spyglass_server.prompt.prompt_maker import ChatInput

pytestmark = pytest.mark.slow

NEW_TOKENS = 24
QUESTIONS = (
    "What is the capital of France?",
    "Hello!",
    "Write a haiku about autumn.",
    "Explain gravity to a child.",
    "2 + 2 =",
    "List three fruits, one on each line:\n\n1. apple\n\n2.",
    "Translate 'good morning' into Spanish.",
    "Why is the sky blue?",
    "Write a Python function that adds two numbers.",
    "Who wrote Hamlet?",
    "Tell me a joke.",
    "What is 15 percent of 80?",
    "Summarise the story of Cinderella in one sentence.",
    "What should I cook with rice, eggs and peas?",
    "Give me a name for a cat.",
    "¿Qué hora es?",
    "Complete: The quick brown fox",
    "Is water wet? Answer yes or no.",
    "How do I tie my shoes?",
    "Say something in JSON.",
)


@pytest.fixture(scope="module")
def folder() -> Path:
    return demo_checkpoint()


@pytest.mark.parametrize("prompt", [Prompt("40"), Prompt("9 I 20", ((300, 200),))], ids=["text", "image"])
def test_logits_are_metas(meta: Meta, folder: Path, prompt: Prompt) -> None:
    """Trained weights make logits of 40 and look sharply: here float32 itself may stray by more than 1e-4.

    So the reference runs in float64, and we may stray from it twice as far as it does in float32.
    """
    ids, images = prompt.token_ids(image_token=49152), prompt.images()
    exact = MetaModel(meta, folder, torch.float64).prompt_logits(ids, images)
    theirs = MetaModel(meta, folder, torch.float32).prompt_logits(ids, images) - exact
    own = Ours.load(folder).logits(ids, images) - exact
    assert own.square().mean().sqrt() <= 1e-4
    assert own.square().mean().sqrt() <= 2 * theirs.square().mean().sqrt()


def test_text_is_answered_as_by_plain_smollm2(folder: Path) -> None:
    maker = PromptMaker(folder, max_image_pixels=1)
    prompts = [list(maker.prepare(ChatInput((Message("user", (question,)),))).tokens) for question in QUESTIONS]
    ours = Ours.load(folder, num_pages=256)
    answers = greedy(ours, [(prompt, []) for prompt in prompts], NEW_TOKENS, maker.stop_token_ids)
    for question, prompt, answer in zip(QUESTIONS, prompts, answers, strict=True):
        assert greedy_choices(prompt, answer) == answer, question
