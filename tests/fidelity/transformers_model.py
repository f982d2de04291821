"""Transformers' Mllama as a second witness, with its two known faults put right.

Owns the corrections and the calling conventions. Up to 5.24, intermediate vision states are taken after the
layer of their number instead of before it, and a text position that sees no image keeps what
cross-attention gave it. Text-only prompts are not affected by either.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import MllamaForConditionalGeneration, MllamaImageProcessorPil
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.mllama import modeling_mllama, processing_mllama

_CACHE = ("cache", "past_key_values")
"""What transformers calls its cache: since 5.24, and before."""


class TransformersModel:
    """A checkpoint in transformers, for one prompt at a time."""

    def __init__(self, folder: Path) -> None:
        self._model: Any = MllamaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self._processor: Any = MllamaImageProcessorPil.from_pretrained(folder)

    @torch.inference_mode()
    def prompt_logits(self, token_ids: Sequence[int], images: Sequence[Image.Image]) -> torch.Tensor:
        """Logits at every position: float32 [tokens, vocabulary]."""
        logits: torch.Tensor = self._model(**self._inputs(token_ids, images)).logits
        return logits[0].float()

    @torch.inference_mode()
    def image_attention(self, token_ids: Sequence[int], images: Sequence[Image.Image]) -> list[torch.Tensor]:
        """What the last position attends to, averaged over heads: of each cross-attention layer, float32
        [images, tiles, tokens a tile], tiles that an image does not have included."""
        found: list[torch.Tensor] = []

        def keep(module: Any, given: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
            found.append(output[1][0, :, -1].mean(dim=0))

        layers = self._model.model.language_model.layers
        hooks = [layer.cross_attn.register_forward_hook(keep) for layer in layers if hasattr(layer, "cross_attn")]
        self._model.set_attn_implementation("eager")
        try:
            self._model(**self._inputs(token_ids, images))
        finally:
            self._model.set_attn_implementation("sdpa")
            for hook in hooks:
                hook.remove()
        return [one.view(len(images), self._processor.max_image_tiles, -1) for one in found]

    @torch.inference_mode()
    def generate(self, token_ids: Sequence[int], images: Sequence[Image.Image], max_new_tokens: int) -> list[int]:
        """The tokens that greedy decoding adds, the stop token included."""
        output = self._model.generate(**self._inputs(token_ids, images), do_sample=False, max_new_tokens=max_new_tokens)
        new: list[int] = output[0, len(token_ids) :].tolist()
        return new

    def _inputs(self, token_ids: Sequence[int], images: Sequence[Image.Image]) -> dict[str, Any]:
        ids = torch.tensor([list(token_ids)])
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if images:
            pixels = self._processor([list(images)], return_tensors="pt")
            num_tiles = pixels.pop("num_tiles")
            spans = processing_mllama.get_cross_attention_token_mask(
                list(token_ids), self._model.config.image_token_index
            )
            mask = processing_mllama.convert_sparse_cross_attention_mask_to_dense(
                [spans], num_tiles, self._processor.max_image_tiles, len(token_ids)
            )
            inputs |= {**pixels, "cross_attention_mask": torch.from_numpy(mask)}
        return inputs


@contextmanager
def corrected() -> Iterator[None]:
    """While it lasts, transformers' Mllama follows Meta's reference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_mllama.MllamaVisionEncoder, "forward", _encoder_forward)
        patch.setattr(modeling_mllama.MllamaCrossAttentionDecoderLayer, "forward", _cross_layer_forward)
        yield


def _encoder_forward(
    self: Any, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> BaseModelOutput:
    """Collects the state before each layer, where transformers collects the one after it."""
    states = []
    for layer in self.layers:
        states.append(hidden_states)
        hidden_states = layer(hidden_states=hidden_states, attention_mask=attention_mask)
    return BaseModelOutput(last_hidden_state=hidden_states, hidden_states=tuple(states))


def _cross_layer_forward(
    self: Any,
    hidden_states: torch.Tensor,
    cross_attention_states: torch.Tensor | None,
    cross_attention_mask: torch.Tensor,
    attention_mask: torch.Tensor,
    full_text_row_masked_out_mask: torch.Tensor,
    **kwargs: Any,
) -> torch.Tensor:
    """Zeroes the attention's output, too, where a text position sees no image."""
    seen = full_text_row_masked_out_mask[:, 0]
    attended, _ = self.cross_attn(
        hidden_states=self.input_layernorm(hidden_states),
        attention_mask=cross_attention_mask,
        cross_attention_states=cross_attention_states,
        **{name: cache for name, cache in kwargs.items() if name in _CACHE},
    )
    hidden_states = hidden_states + self.cross_attn_attn_gate.tanh() * seen * attended
    mixed: torch.Tensor = self.mlp(self.post_attention_layernorm(hidden_states))
    result: torch.Tensor = hidden_states + self.cross_attn_mlp_gate.tanh() * seen * mixed
    return result
