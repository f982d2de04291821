"""The runner: rows computed together come out as each alone, whatever lies in the memory around them."""

import contextlib
import math
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch

from pictures import noise
from simulated_gpu import simulated_gpu
from spyglass_server.engine.messages import EngineRequest, ImageInput, ImageKey, ImageMap, Logprobs, SamplingParams
from spyglass_server.engine.shared_images import SharedImages
from spyglass_server.engine.worker.batch import DeviceLost, Row
from spyglass_server.images import tile_image
from spyglass_server.prompt.files import read_prompt_files
from spyglass_server.runtime import slot_cache
from spyglass_server.runtime.checkpoint import load_model
from spyglass_server.runtime.config import load_config
from spyglass_server.runtime.cpu import plan as plan_module
from spyglass_server.runtime.cpu.backend import CpuBackend
from spyglass_server.runtime.linear import Int8Linear
from spyglass_server.runtime.model.mllama import Mllama
from spyglass_server.runtime.model.vision import VisionLayer, whole
from spyglass_server.runtime.runner import ModelRunner

PAGE = 4
ASKED = EngineRequest(id=0, tokens=(), max_tokens=1, sampling=SamplingParams(temperature=0.0))
FOUR, SCATTERED = (0, 1, 2, 3), (9, 4, 14, 6)
"""Places for an image of four tiles."""


def model(checkpoint: Path) -> Mllama:
    return load_model(checkpoint, load_config(checkpoint), torch.float32, torch.device("cpu"))


def made(of: Mllama) -> ModelRunner:
    return ModelRunner(of, 400, PAGE, 16, torch.float32, torch.device("cpu"), max_batch=8)


WAYS = ["on a CPU", "on a CPU, long contexts apart", "as on a GPU"]


@pytest.fixture(params=WAYS)
def runner(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[ModelRunner]:
    """A runner whose cache holds no number that one could compute with."""
    if request.param == "on a CPU, long contexts apart":
        monkeypatch.setattr(plan_module, "_LONG", 8)
    monkeypatch.setattr(plan_module, "_MAX_PADDING", 64)
    loaded = model(small_checkpoint)
    with simulated_gpu() if request.param == "as on a GPU" else contextlib.nullcontext():
        with monkeypatch.context() as patch:
            patch.setattr(slot_cache, "torch", EmptyIsNan())
            made_so = made(loaded)
        yield made_so


class EmptyIsNan:
    """torch, whose new memory holds no numbers."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, shape: Sequence[int], **options: Any) -> torch.Tensor:
        return torch.full(shape, math.nan, **options)


def row(first_page: int, start: int, tokens: tuple[int, ...]) -> Row:
    """Tokens of a sequence whose pages lie side by side."""
    pages = tuple(range(first_page, first_page + -(-(start + len(tokens)) // PAGE)))
    return Row(request=ASKED, tokens=tokens, start=start, pages=pages, choices=(0,))


def test_rows_of_all_lengths_decode_together_as_alone(runner: ModelRunner) -> None:
    lengths = (1, 4, 5, 30, 31, 100)  # more than one group of lengths
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


def test_prompt_logprobs_in_pieces_are_as_in_one(runner: ModelRunner) -> None:
    tokens = tuple(range(3, 25))
    asked = replace(ASKED, tokens=tokens, prompt_logprobs=True, top_logprobs=2)
    [whole] = runner.execute([replace(row(0, 0, tokens), request=asked)])
    pieces: list[Logprobs] = []
    for start, end in ((0, 1), (1, 18), (18, 19), (19, 22)):
        piece = replace(row(20, start, tokens[start:end]), request=asked, choices=())
        pieces += runner.execute([row(40, 0, (9,)), piece])[1].prompt_logprobs
    assert [one.top_tokens for one in pieces] == [one.top_tokens for one in whole.prompt_logprobs]
    assert [one.chosen for one in pieces] == pytest.approx([one.chosen for one in whole.prompt_logprobs], abs=1e-5)
    assert len(pieces) == len(tokens) - 1


def test_a_second_runner_follows_by_plans_alone(runner: ModelRunner, small_checkpoint: Path) -> None:
    follower = made(model(small_checkpoint))
    prompts = [row(0, 0, tuple(range(3, 24))), row(10, 0, tuple(range(5, 9)))]
    for rows in (prompts, [row(0, 21, (9,)), row(10, 4, (9,))], [row(10, 5, (7,)), row(0, 22, (7, 8))]):
        plan = runner.plan(rows)
        expected, followed = runner.forward(plan).logits, follower.forward(pickle.loads(pickle.dumps(plan))).logits
        assert expected is not None
        assert followed is not None
        assert torch.equal(followed, expected)


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


def take(
    runner: ModelRunner, checkpoint: Path, *keys: ImageKey, size: tuple[int, int] = (300, 300)
) -> tuple[ImageInput, ...]:
    """Gives the runner a picture, of four tiles when no size is given, under some keys."""
    tiles = tile_image(noise(size), read_prompt_files(checkpoint).image_spec)
    shared = SharedImages()
    try:
        shared.copy([(key, tiles.rows, tiles.columns, tiles.pixels.data) for key in keys])
        for image in shared.inputs:
            runner.take_image(image)
        return tuple(shared.inputs)
    finally:
        shared.release()


def logits_seeing(runner: ModelRunner, tiles: tuple[int, ...]) -> torch.Tensor:
    return runner.logits(seeing(row(0, 0, (3, 5, 9, 8)), tiles))


def seeing(one: Row, tiles: tuple[int, ...]) -> Row:
    """The row with an image at position 1 of its sequence."""
    return replace(one, request=replace(one.request, image_positions=(1,)), image_tiles=(tiles,))


def test_images_in_slices_by_turns_are_seen_as_in_one(small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [ImageKey("t", name) for name in (b"one", b"two")]
    runner = made(model(small_checkpoint))
    take(runner, small_checkpoint, keys[0])
    assert runner.encode_image(keys[0], FOUR)
    whole = logits_seeing(runner, FOUR)
    monkeypatch.setattr(CpuBackend, "slice_tokens", 7)
    monkeypatch.setattr(CpuBackend, "slice_operations", 1.0)
    slow = made(model(small_checkpoint))
    take(slow, small_checkpoint, *keys)
    places = {keys[0]: FOUR, keys[1]: SCATTERED}
    unfinished, slices = list(keys), 0
    while unfinished:
        unfinished = [key for key in unfinished if not slow.encode_image(key, places[key])]
        slices += 1
    assert slices > 20
    for tiles in places.values():
        torch.testing.assert_close(logits_seeing(slow, tiles), whole, rtol=0, atol=1e-5)


def test_images_of_all_sizes_are_seen_together_as_alone(runner: ModelRunner, small_checkpoint: Path) -> None:
    """Two of four tiles, one of them in places far apart, one of a single tile, and a text that sees none."""
    take(runner, small_checkpoint, ImageKey("t", b"one"), ImageKey("t", b"two"))
    take(runner, small_checkpoint, ImageKey("t", b"small"), size=(20, 20))
    for name, tiles in ((b"one", FOUR), (b"two", SCATTERED), (b"small", (12,))):
        assert runner.encode_image(ImageKey("t", name), tiles)
    prompts = [seeing(row(i * 20, 0, tuple(range(3, 9 + 9 * i))), t) for i, t in enumerate((FOUR, SCATTERED, (12,)))]
    prompts.append(row(80, 0, tuple(range(4, 9))))
    for prompt in prompts:
        runner.execute([prompt])
    decoding = [replace(p, tokens=(9,), start=p.end, pages=row(p.pages[0], p.end, (9,)).pages) for p in prompts]
    alone = [int(runner.logits(one)[-1].argmax()) for one in decoding]
    fresh = seeing(row(200, 0, tuple(range(6, 20))), FOUR)
    together = runner.execute([decoding[0], fresh, *decoding[1:]])
    assert [together[i].tokens[0] for i in (0, 2, 3, 4)] == alone
    assert together[1].tokens[0] == int(runner.logits(fresh)[-1].argmax())


def test_answers_that_grow_token_by_token_are_those_of_the_whole(runner: ModelRunner, small_checkpoint: Path) -> None:
    take(runner, small_checkpoint, ImageKey("t", b"one"))
    assert runner.encode_image(ImageKey("t", b"one"), SCATTERED)
    rows = [row(0, 0, (3, 5, 9, 8, 7)), seeing(row(20, 0, tuple(range(5, 20))), SCATTERED), row(40, 0, (6, 7))]
    known = [list(one.tokens) for one in rows]
    for step in range(9):  # all three and two of them by turns, which are of one shape where shapes are fixed
        now = rows[step % 3 == 0 :]
        for i, output in enumerate(runner.execute(now), start=len(rows) - len(now)):
            known[i] += output.tokens
            end = rows[i].end
            pages = row(rows[i].pages[0], end, (0,)).pages
            rows[i] = replace(rows[i], tokens=output.tokens, start=end, pages=pages)
    for tokens, one in zip(known, rows, strict=True):
        whole = replace(one, tokens=tuple(tokens[:-1]), start=0, pages=row(60, 0, tuple(tokens)).pages)
        best = runner.logits(whole).argmax(-1).tolist()
        assert tokens[-6:] == best[-6:]


def test_attention_is_told_of_the_rows_that_ask_beside_others(runner: ModelRunner, small_checkpoint: Path) -> None:
    """In a prompt and while decoding, whatever stands in the batch; the tokens are those of a row that does not."""
    keys = [ImageKey("t", name) for name in (b"one", b"two")]
    images = take(runner, small_checkpoint, *keys)
    for key, tiles in zip(keys, (FOUR, SCATTERED), strict=True):
        assert runner.encode_image(key, tiles)

    def asking(one: Row, image: ImageInput, count: int) -> Row:
        return replace(one, request=replace(one.request, images=(image,), attention_tokens=count))

    first = seeing(row(0, 0, tuple(range(3, 12))), FOUR)
    second = seeing(row(20, 0, tuple(range(5, 11))), SCATTERED)
    text = row(40, 0, (6, 7))
    alone = [runner.execute([asking(one, image, 99)])[0] for one, image in zip((first, second), images, strict=True)]
    together = runner.execute([text, asking(second, images[1], 99), asking(first, images[0], 99)])
    assert [one.attention is None for one in together] == [True, False, False]
    assert near(together[2].attention, alone[0].attention)
    assert near(together[1].attention, alone[1].attention)
    assert not near(together[2].attention, together[1].attention)
    told = [one.tokens for one in alone]
    decoding = [
        replace(one, tokens=tokens, start=one.end, pages=row(one.pages[0], one.end, (9,)).pages)
        for one, tokens in zip((first, second), told, strict=True)
    ]
    plain = [runner.execute([one])[0] for one in decoding]
    mixed = runner.execute([decoding[0], asking(decoding[1], images[1], 99)])
    assert [one.tokens for one in mixed] == [one.tokens for one in plain]
    assert mixed[0].attention is None
    assert mixed[1].attention is not None
    no_more = runner.execute([asking(decoding[1], images[1], decoding[1].end)])[0]
    assert no_more.attention is None


def near(one: Sequence[ImageMap | None] | None, other: Sequence[ImageMap | None] | None) -> bool:
    assert one
    assert other
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    assert pairs
    return all(
        abs(a.scale - b.scale) < 1e-5 and max(abs(x - y) for x, y in zip(a.data, b.data, strict=True)) <= 1
        for a, b in pairs
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_in_8_bits_are_near_and_take_the_less_memory(tiny_checkpoint: Path, dtype: torch.dtype) -> None:
    config, device = load_config(tiny_checkpoint), torch.device("cpu")
    full = load_model(tiny_checkpoint, config, dtype, device)
    small = load_model(tiny_checkpoint, config, dtype, device, Int8Linear)
    matrices = [m.weight for m in full.text.layers.modules() if isinstance(m, torch.nn.Linear)]
    kept = [m for m in small.text.layers.modules() if isinstance(m, Int8Linear)]
    assert len(kept) == len(matrices) > 10
    assert sum(buffer.nbytes for m in kept for buffer in m.buffers()) < 1.1 * sum(matrix.numel() for matrix in matrices)
    prompt = row(0, 0, tuple(range(3, 40)))
    exact, near = (ModelRunner(m, 20, PAGE, 0, dtype, device).logits(prompt) for m in (full, small))
    assert 0 < (near - exact).square().mean().sqrt() < 0.05 * exact.std()


def test_the_encoders_residual_stream_is_float32_in_every_precision(tiny_checkpoint: Path) -> None:
    config = load_config(tiny_checkpoint)
    vision = load_model(tiny_checkpoint, config, torch.bfloat16, torch.device("cpu")).vision
    seen: list[torch.dtype] = []
    for layer in (*vision.layers, *vision.global_layers):
        assert isinstance(layer, VisionLayer)
        for norm in (layer.attention_norm, layer.mlp_norm):
            norm.register_forward_pre_hook(lambda module, given: seen.append(given[0].dtype))
    side = config.vision.tile_size
    with torch.inference_mode():
        whole(vision(torch.randn(1, 2, 3, side, side).bfloat16(), 1, 2, 1000))
    assert len(seen) >= 2 * (config.vision.num_layers + config.vision.num_global_layers)
    assert set(seen) == {torch.float32}


def test_a_lost_device_is_told_from_a_bad_batch(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first is no row's fault: the process must end and start again."""

    def failing(error: Exception) -> None:
        def fail(*args: object) -> None:
            raise error

        monkeypatch.setattr(runner._backend, "forward", fail)

    failing(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(DeviceLost, match="illegal memory access"):
        runner.execute([row(0, 0, (1, 2, 3))])
    failing(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        runner.execute([row(0, 0, (1, 2, 3))])
