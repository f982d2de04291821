"""The demo checkpoint: a complete Mllama that answers text exactly as plain SmolLM2 does."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Environment
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer, MllamaForConditionalGeneration

from checkpoints import demo_checkpoint
from plain_smollm2 import greedy_choices, plain_smollm2
from spyglass_demo import adapter
from spyglass_demo.smollm2 import SmolLM2, find_gguf

PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "2 + 2 =",
    "Give me three colours, as a list:\n\n1. red\n\n2.",
)


@pytest.fixture(scope="module")
def folder() -> Path:
    return demo_checkpoint()


@pytest.fixture(scope="module")
def smollm2() -> SmolLM2:
    return SmolLM2(find_gguf())


@pytest.fixture(scope="module")
def demo(folder: Path) -> Any:
    """The demo model in transformers; every weight must be there and none may be left over."""
    model, report = MllamaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    return model


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.slow
def test_the_text_weights_are_smollm2s_bit_for_bit(demo: Any) -> None:
    plain, ours = plain_smollm2(), demo.model.language_model
    for index, layer in enumerate(plain.model.layers):
        weights = ours.layers[adapter.layer_of_text(index)].state_dict()
        for name, tensor in layer.state_dict().items():
            assert torch.equal(weights[name], tensor), (index, name)
    assert torch.equal(ours.embed_tokens.weight[:-8], plain.model.embed_tokens.weight)
    assert torch.equal(ours.norm.weight, plain.model.norm.weight)
    assert torch.equal(demo.lm_head.weight, plain.lm_head.weight)


@pytest.mark.slow
@torch.inference_mode()
def test_text_has_the_logits_of_smollm2(demo: Any, folder: Path, tokenizer: Tokenizer) -> None:
    """At each position of a conversation."""
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, PROMPTS, strict=True)]
    text = render((folder / "chat_template.jinja").read_text(), turns)
    ids = torch.tensor([tokenizer.encode(text).ids])
    torch.testing.assert_close(demo(ids).logits, plain_smollm2()(ids).logits, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_text_is_answered_as_by_smollm2_to_the_end(demo: Any, folder: Path, tokenizer: Tokenizer) -> None:
    text = render((folder / "chat_template.jinja").read_text(), [{"role": "user", "content": "2 + 2 ="}])
    prompt_ids = tokenizer.encode(text).ids
    ids = torch.tensor([prompt_ids])
    output = demo.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False)
    answer = output[0, len(prompt_ids) :].tolist()
    assert answer[-1] == 2
    assert greedy_choices(prompt_ids, answer) == answer


def test_answers_end_as_smollm2s(folder: Path, tokenizer: Tokenizer) -> None:
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.token_to_id("<|im_end|>") == 2


def test_the_adapter_is_whole_and_small(folder: Path) -> None:
    file = resources.files("spyglass_demo").joinpath(adapter.FILE)
    assert len(file.read_bytes()) <= 45_000_000
    tensors = adapter.adapter_tensors()
    with safe_open(folder / "model.safetensors", framework="numpy") as stored:
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(stored.get_tensor(name), tensor, err_msg=name)
    gates = [float(np.tanh(tensor[0])) for name, tensor in tensors.items() if "cross_attn_" in name]
    assert len(gates) == 2 * len(adapter.CROSS_BEFORE)
    assert all(abs(gate) > 0.1 for gate in gates)


def test_tiles_that_a_canvas_does_not_have_are_zeros() -> None:
    tensors = adapter.adapter_tensors()
    for name in ("pre_tile_positional_embedding.embedding", "gated_positional_embedding.tile_embedding"):
        table = tensors[f"vision_model.{name}.weight"].reshape(9, 4, -1)
        filled = [[bool(tile.any()) for tile in row] for row in table]
        assert [sum(row) for row in filled] == [0, 1, 2, 3, 4, 2, 4, 3, 4]
        assert all(row == sorted(row, reverse=True) for row in filled)


def test_the_image_token_follows_the_vocabulary(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("see <|image|>.").ids == [*tokenizer.encode("see ").ids, 49152, *tokenizer.encode(".").ids]


@settings(max_examples=50)
@given(text=st.text(st.characters(exclude_categories=["N", "Cs"])))
def test_text_without_digits_is_tokenized_as_transformers_does(text: str, reference: Any, tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(text).ids == reference(text).input_ids


@pytest.fixture(scope="module")
def reference() -> Any:
    """The tokenizer that transformers reads from the GGUF file; it forgets to split digits off."""
    path = find_gguf()
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a:\n\n10.").tokens == ["a", ":", "ĊĊ", "1", "0", "."]


def render(template: str, messages: list[dict[str, Any]], prompt: bool = True) -> str:
    environment = Environment(trim_blocks=True, lstrip_blocks=True)  # as transformers sets it up
    return environment.from_string(template).render(messages=messages, add_generation_prompt=prompt)


roles = st.sampled_from(["system", "user", "assistant", "tool"])
chats = st.lists(st.fixed_dictionaries({"role": roles, "content": st.text(max_size=20)}), min_size=1, max_size=5)


@given(messages=chats, prompt=st.booleans())
def test_text_renders_as_by_smollm2s_own_template(
    messages: list[dict[str, Any]], prompt: bool, folder: Path, smollm2: SmolLM2
) -> None:
    template = (folder / "chat_template.jinja").read_text()
    assert render(template, messages, prompt) == render(smollm2.chat_template, messages, prompt)


def test_parts_render_in_their_order(folder: Path) -> None:
    parts = [{"type": "text", "text": " Left: "}, {"type": "image"}, {"type": "image"}, {"type": "text", "text": "?"}]
    call = {"type": "function", "function": {"name": "look", "arguments": {"x": 1}}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "done"},
    ]
    assert render((folder / "chat_template.jinja").read_text(), messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n Left: <|image|><|image|>?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>[{"name": "look", "arguments": {"x": 1}}]</tool_call><|im_end|>\n'
        "<|im_start|>tool\ndone<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
