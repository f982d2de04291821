"""The runner: rows computed together come out as each alone, whatever lies in the memory around them."""

import math
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch

from pictures import noise
from spyglass_server.engine.shared import SharedTiles
from spyglass_server.engine.types import DeviceLost, ImageKey, Row, SamplingParams
from spyglass_server.prompt.files import read_prompt_files
from spyglass_server.prompt.images import tile_image
from spyglass_server.runtime import runner as runner_module
from spyglass_server.runtime.checkpoint import load_model
from spyglass_server.runtime.config import load_config
from spyglass_server.runtime.model.mllama import Mllama
from spyglass_server.runtime.runner import ModelRunner

PAGE = 4
GREEDY = SamplingParams(temperature=0.0)


def model(checkpoint: Path) -> Mllama:
    return load_model(checkpoint, load_config(checkpoint), torch.float32, torch.device("cpu"))


def made(of: Mllama) -> ModelRunner:
    return ModelRunner(of, 400, PAGE, torch.float32, torch.device("cpu"))


@pytest.fixture
def runner(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> ModelRunner:
    """A runner whose cache holds no number that one could compute with."""
    loaded = model(tiny_checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda shape, **options: torch.full(shape, math.nan, **options))
        return made(loaded)


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


def take(runner: ModelRunner, checkpoint: Path, *keys: ImageKey) -> None:
    """Gives the runner a picture of four tiles under some keys."""
    tiles = tile_image(noise((300, 300)), read_prompt_files(checkpoint).image_spec)
    shared = SharedTiles()
    try:
        shared.copy([(key, tiles.rows, tiles.columns, tiles.pixels.data) for key in keys])
        for image in shared.inputs:
            runner.take_image(image)
    finally:
        shared.release()


def logits_seeing(runner: ModelRunner, key: ImageKey) -> torch.Tensor:
    return runner.logits(replace(row(0, 0, (3, 5, 9, 8)), image_keys=(key,), image_positions=(1,)))


def test_images_in_slices_by_turns_are_seen_as_in_one(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [ImageKey("t", name) for name in (b"one", b"two")]
    runner = made(model(tiny_checkpoint))
    take(runner, tiny_checkpoint, keys[0])
    assert runner.encode_image(keys[0])
    whole = logits_seeing(runner, keys[0])
    monkeypatch.setattr(runner_module, "_SLICE_TOKENS", 7)
    monkeypatch.setattr(runner_module, "_SLICE_OPERATIONS", {"cpu": 1.0})
    slow = made(model(tiny_checkpoint))
    take(slow, tiny_checkpoint, *keys)
    unfinished, slices = list(keys), 0
    while unfinished:
        unfinished = [key for key in unfinished if not slow.encode_image(key)]
        slices += 1
    assert slices > 20
    for key in keys:
        torch.testing.assert_close(logits_seeing(slow, key), whole, rtol=0, atol=1e-5)


def test_a_lost_device_is_told_from_a_bad_batch(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first is no row's fault: the process must end and start again."""

    def failing(error: Exception) -> None:
        def fail(*args: object) -> None:
            raise error

        monkeypatch.setattr(runner._model.text, "forward", fail)

    failing(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(DeviceLost, match="illegal memory access"):
        runner.execute([row(0, 0, (1, 2, 3))])
    failing(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        runner.execute([row(0, 0, (1, 2, 3))])
