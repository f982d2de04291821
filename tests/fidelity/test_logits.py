"""Logits of every prompt position equal those of Meta's reference."""

from pathlib import Path

import pytest
import torch

from checkpoints import random_checkpoint
from fidelity import ours
from fidelity.meta_imports import Meta
from fidelity.meta_model import MetaModel
from fidelity.prompts import PROMPTS
from fidelity.transformers_model import TransformersModel, corrected

TOLERANCE = 1e-4


@pytest.mark.parametrize("name", PROMPTS)
def test_float32_logits_are_metas(checkpoint: Path, meta_model: MetaModel, name: str) -> None:
    ids, images = PROMPTS[name].token_ids(), PROMPTS[name].images()
    expected = meta_model.prompt_logits(ids, images)
    assert expected.std() >= 1
    torch.testing.assert_close(ours.prompt_logits(checkpoint, ids, images), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("seed", [2, 3])
def test_other_weights_in_several_files(meta: Meta, tmp_path: Path, seed: int) -> None:
    """Sharded, and stored in bfloat16 but computed in float32."""
    folder = random_checkpoint(tmp_path, seed=seed, dtype=torch.bfloat16, num_shards=3)
    prompt = PROMPTS["two images, then one"]
    expected = MetaModel(meta, folder, torch.float32).prompt_logits(prompt.token_ids(), prompt.images())
    got = ours.prompt_logits(folder, prompt.token_ids(), prompt.images())
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", PROMPTS)
def test_the_two_references_agree(meta_model: MetaModel, transformers_model: TransformersModel, name: str) -> None:
    """Transformers, its two faults put right, vouches for how Meta's reference is run here."""
    ids, images = PROMPTS[name].token_ids(), PROMPTS[name].images()
    with corrected():
        got = transformers_model.prompt_logits(ids, images)
    torch.testing.assert_close(got, meta_model.prompt_logits(ids, images), rtol=0, atol=TOLERANCE)


def test_the_faults_of_transformers_matter(meta_model: MetaModel, transformers_model: TransformersModel) -> None:
    """When this fails, transformers was mended and the corrections can go."""
    ids, images = PROMPTS["text, image, text"].token_ids(), PROMPTS["text, image, text"].images()
    got = transformers_model.prompt_logits(ids, images)
    assert (got - meta_model.prompt_logits(ids, images)).abs().max() > 1
