"""Probabilities that are told with an answer are those of Meta's reference."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fidelity.meta_model import MetaModel
from fidelity.ours import Ours
from fidelity.prompts import PROMPTS

TOLERANCE = 1e-3
TOP = 20


@pytest.mark.parametrize("name", PROMPTS)
def test_told_probabilities_are_those_of_the_reference(checkpoint: Path, meta_model: MetaModel, name: str) -> None:
    ids, images = PROMPTS[name].token_ids(), PROMPTS[name].images()
    expected = meta_model.prompt_logits(ids, images).double().log_softmax(-1)
    ours = Ours.load(checkpoint)
    known = [token for token in ids[1:] if token < expected.shape[1]]  # the image token has no probability
    row = ours.row(ids, images, (0,))
    row = replace(row, request=replace(row.request, top_logprobs=TOP, prompt_logprobs=len(known) == len(ids) - 1))
    [output] = ours.runner.execute([row])
    [last] = output.logprobs
    best = expected[-1].topk(TOP)
    torch.testing.assert_close(torch.tensor(last.top).double(), best.values, rtol=0, atol=TOLERANCE)
    assert last.chosen == pytest.approx(float(best.values[0]), abs=TOLERANCE)
    assert torch.tensor(last.top).exp().sum() <= 1
    expected_told = [float(expected[position, token]) for position, token in enumerate(row.prompt_targets)]
    assert [one.chosen for one in output.prompt_logprobs] == pytest.approx(expected_told, abs=TOLERANCE)
