"""The runner: rows computed together come out as each alone, whatever lies in the memory around them."""

import math
from itertools import accumulate
from pathlib import Path

import pytest
import torch

from spyglass_server.engine.types import Row, SamplingParams
from spyglass_server.runtime.checkpoint import load_model
from spyglass_server.runtime.config import load_config
from spyglass_server.runtime.runner import ModelRunner

PAGE = 4
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture
def runner(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> ModelRunner:
    """A runner whose cache holds no number that one could compute with."""
    device = torch.device("cpu")
    model = load_model(tiny_checkpoint, load_config(tiny_checkpoint), torch.float32, device)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda shape, **options: torch.full(tuple(shape), math.nan, **options))
        return ModelRunner(model, 400, PAGE, torch.float32, device)


def row(first_page: int, start: int, tokens: tuple[int, ...]) -> Row:
    """Tokens of a sequence whose pages lie side by side."""
    pages = tuple(range(first_page, first_page + -(-(start + len(tokens)) // PAGE)))
    return Row(tokens, start, pages, GREEDY, (0,), (), ())


def test_rows_of_all_lengths_decode_together_as_alone(runner: ModelRunner) -> None:
    lengths = (1, 3, 4, 5, 30, 31, 300, 700)  # more than one group of lengths
    first_pages = [0, *accumulate(length // PAGE + 1 for length in lengths)]
    for page, length in zip(first_pages, lengths, strict=False):
        runner.execute([row(page, 0, tuple(3 + (page + i) % 40 for i in range(length)))])
    decoding = [row(page, length, (9,)) for page, length in zip(first_pages, lengths, strict=False)]
    alone = [int(runner.logits(one)[-1].argmax()) for one in decoding]
    free = first_pages[-1]
    together = runner.execute([row(free, 0, tuple(range(5, 15))), *decoding, row(free + 5, 0, (7, 8))])
    assert not any(output.error for output in together)
    assert [output.tokens[0] for output in together[1:-1]] == alone


def test_a_prompt_in_pieces_is_as_in_one(runner: ModelRunner) -> None:
    tokens = tuple(range(3, 40))
    whole = runner.logits(row(0, 0, tokens))
    pieces = [runner.logits(row(20, start, tokens[start:end])) for start, end in ((0, 1), (1, 18), (18, 19), (19, 37))]
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=0, atol=1e-5)


def test_copied_pages_go_on_as_their_source(runner: ModelRunner) -> None:
    prompt = row(0, 0, tuple(range(3, 14)))
    runner.execute([prompt])
    runner.copy_pages([(page, page + 50) for page in prompt.pages])
    source = runner.logits(row(0, prompt.end, (9,)))
    assert torch.equal(runner.logits(row(50, prompt.end, (9,))), source)


def test_one_broken_row_fails_alone(runner: ModelRunner) -> None:
    prompts = [row(i * 10, 0, tuple(range(3, 9 + i))) for i in range(3)]
    for prompt in (prompts[0], prompts[2]):
        runner.execute([prompt])
    decoding = [row(prompt.pages[0], prompt.end, (9,)) for prompt in prompts]  # nobody has computed the second one's
    outputs = runner.execute(decoding)
    assert [output.error is None for output in outputs] == [True, False, True]
    assert outputs[0] == runner.execute(decoding[:1])[0]
