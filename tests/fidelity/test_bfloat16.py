"""In bfloat16 the results stray from those in float32 no further than Meta's reference does."""

from pathlib import Path

import torch

from fidelity.meta_imports import Meta
from fidelity.meta_model import MetaModel
from fidelity.ours import Ours
from fidelity.prompts import PROMPTS

GREATEST = 1.5  # times the reference's own greatest difference, in each prompt
TYPICAL = 1.0  # times the root of its mean square, over all prompts


def test_bfloat16_is_as_close_to_float32_as_metas(checkpoint: Path, meta: Meta, meta_model: MetaModel) -> None:
    rounded, ours = MetaModel(meta, checkpoint, torch.bfloat16), Ours.load(checkpoint, torch.bfloat16)
    all_theirs, all_own = [], []
    for name, prompt in PROMPTS.items():
        ids, images = prompt.token_ids(), prompt.images()
        exact = meta_model.prompt_logits(ids, images)
        theirs = rounded.prompt_logits(ids, images) - exact
        own = ours.logits(ids, images) - exact
        assert 0 < own.abs().max() <= GREATEST * theirs.abs().max(), name
        all_theirs.append(theirs)
        all_own.append(own)
    theirs, own = torch.cat(all_theirs), torch.cat(all_own)
    assert own.square().mean().sqrt() <= TYPICAL * theirs.square().mean().sqrt()
