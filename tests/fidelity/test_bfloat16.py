"""In bfloat16 the results stray from those in float32 no further than Meta's reference does."""

from pathlib import Path

import pytest
import torch

from fidelity.meta_imports import Meta
from fidelity.meta_model import MetaModel
from fidelity.ours import Ours
from fidelity.prompts import PROMPTS, Prompt

GREATEST = 1.5  # times the reference's own greatest difference
TYPICAL = 1.25  # times the root of its mean square


@pytest.mark.parametrize("with_images", [False, True], ids=["text", "images"])
def test_bfloat16_is_as_close_to_float32_as_metas(
    checkpoint: Path, meta: Meta, meta_model: MetaModel, with_images: bool
) -> None:
    rounded, ours = MetaModel(meta, checkpoint, torch.bfloat16), Ours.load(checkpoint, torch.bfloat16)

    def errors(prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
        """How far Meta's rounded logits and ours are from the exact ones."""
        ids, images = prompt.token_ids(), prompt.images()
        exact = meta_model.prompt_logits(ids, images)
        return rounded.prompt_logits(ids, images) - exact, ours.logits(ids, images) - exact

    pairs = [errors(prompt) for prompt in PROMPTS.values() if bool(prompt.sizes) == with_images]
    theirs, own = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    assert 0 < own.abs().max() <= GREATEST * theirs.abs().max()
    assert own.square().mean().sqrt() <= TYPICAL * theirs.square().mean().sqrt()
