"""Greedy answers, decoded token by token through the caches, equal those of transformers' `generate`."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from fidelity.decoding import greedy
from fidelity.ours import Ours
from fidelity.prompts import PROMPTS
from fidelity.transformers_model import TransformersModel, corrected

NEW_TOKENS = 24


@pytest.mark.parametrize("name", PROMPTS)
def test_answers_are_those_of_transformers(checkpoint: Path, transformers_model: TransformersModel, name: str) -> None:
    ids, images = PROMPTS[name].token_ids(), PROMPTS[name].images()
    with corrected() if images else nullcontext():
        expected = transformers_model.generate(ids, images, NEW_TOKENS)
    stops = json.loads((checkpoint / "generation_config.json").read_text())["eos_token_id"]
    assert greedy(Ours.load(checkpoint), [(ids, images)], NEW_TOKENS, stops) == [expected]
