"""The demo model's exam with the weights stored in two ways: the same pictures and questions, asked in this process.

Needs spyglass_training. Knows nothing about what is done to the weights.
"""

import functools
import hashlib
import importlib
import io
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from spyglass_server.config import EngineConfig
from spyglass_server.engine.messages import EngineRequest, ImageKey, RequestFailed, SamplingParams, TokenOutput
from spyglass_server.engine.shared_images import SharedImages
from spyglass_server.prompt import PromptMaker
from spyglass_server.prompt.conversation import Message
from spyglass_server.prompt.prompt_maker import ChatInput, ImageSlot, Prompt
from spyglass_server.runtime import fp8, linear
from spyglass_server.runtime.launch import CheckpointLoader
from spyglass_server.runtime.model.vision import Slices, VisionEncoder
from spyglass_training.exam.judge import KINDS, Example, accepts

HANDS = tuple(
    importlib.import_module(f"spyglass_training.exam.{name}_hand").example for name in ("own", "other")
)  # fmt: skip
MAX_TOKENS = 48
SEEDS_AT_ONCE = 2
PICTURES_AT_ONCE = SEEDS_AT_ONCE * len(KINDS) * len(HANDS)


def share_work() -> None:
    """Makes the exam faster.

    A picture is encoded once for all models of this process, whose encoders are the same. Weights in fp8 are widened
    once, into memory that the product does not use, and multiplied in bfloat16, which represents all of fp8's numbers
    and to which GPUs round these products.
    """
    widened = functools.cache(lambda weight: fp8.widened(weight).bfloat16())

    def product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        values, scales = fp8.to_fp8(x)
        return F.linear(values.bfloat16(), widened(weight)).float().mul_(scales).mul_(scale).to(x.dtype)

    linear.fp8_product = product
    encode, known = VisionEncoder.forward, dict[bytes, Tensor]()

    def remembering(self: VisionEncoder, pixels: Tensor, rows: int, columns: int, num_tokens: int) -> Slices[Tensor]:
        key = hashlib.blake2b(pixels.float().numpy().tobytes()).digest()
        if key not in known:
            encoded = yield from encode(self, pixels, rows, columns, num_tokens)
            while len(known) >= PICTURES_AT_ONCE:
                del known[next(iter(known))]
            known[key] = encoded
        return known[key]

    VisionEncoder.forward = remembering  # type: ignore[method-assign]


def prompt_of(maker: PromptMaker, example: Example) -> Prompt:
    """Returns the prompt with a picture and its question."""
    file = io.BytesIO()
    example.picture.save(file, "png")
    message = Message("user", (None, example.question))
    return maker.prepare(ChatInput((message,), (ImageSlot("picture"),)), (file.getvalue(),))


class Examinee:
    """The whole engine in this process, with its weights stored in one way."""

    def __init__(self, folder: Path, dtype: str, quantization: str, maker: PromptMaker) -> None:
        config = EngineConfig(
            load_format="auto",
            dtype=dtype,
            quantization=quantization,
            device="cpu",
            max_model_len=None,
            gpu_memory_utilization=0.9,
            cache_bytes=1 << 29,
            image_cache_bytes=1 << 29,
            tensor_parallel_size=1,
            max_batch=PICTURES_AT_ONCE,
            max_step_tokens=512,
            max_chunk_tokens=256,
        )
        self._core, _ = CheckpointLoader(folder=folder, settings=config).load()
        self._maker = maker
        self._ids = iter(range(1, 10**9))

    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        """Answers all prompts at once, at temperature 0."""
        tokens: dict[int, list[int]] = {}
        events: list[object] = []
        for prompt in prompts:
            request_id = next(self._ids)
            tokens[request_id] = []
            events += self._submit(request_id, prompt)
        while self._core.has_work:
            events += self._core.step()
        for event in events:
            if isinstance(event, RequestFailed):
                raise RuntimeError(event.detail)
            if isinstance(event, TokenOutput) and event.token not in self._maker.stop_token_ids:
                tokens[event.id].append(event.token)
        written = self._maker.tokenizer.written
        return [b"".join(map(written, one)).decode(errors="replace") for one in tokens.values()]

    def _submit(self, request_id: int, prompt: Prompt) -> Sequence[object]:
        shared = SharedImages()
        try:
            shared.copy((ImageKey("", t.digest), t.rows, t.columns, t.pixels.data) for t in prompt.images)
            request = EngineRequest(
                id=request_id,
                tokens=prompt.tokens,
                max_tokens=MAX_TOKENS,
                stop_token_ids=self._maker.stop_token_ids,
                sampling=SamplingParams(temperature=0.0),
                images=shared.inputs,
                image_positions=prompt.image_positions,
            )
            return self._core.submit(request)
        finally:
            shared.release()


@dataclass(slots=True)
class Score:
    """Results for the questions of a kind: whether the first and the second model answered each correctly."""

    pairs: list[tuple[bool, bool]] = field(default_factory=list)

    def row(self, kind: str) -> str:
        """Returns the table row: percentages, their difference with its standard error, and changed answers."""
        count = len(self.pairs)
        first, second = (sum(pair[i] for pair in self.pairs) for i in (0, 1))
        lost = sum(a and not b for a, b in self.pairs)
        won = sum(b and not a for a, b in self.pairs)
        difference = (second - first) / count
        error = math.sqrt(max(0.0, (lost + won) / count - difference**2) / count)
        percents = (
            f"{100 * first / count:.1f} | {100 * second / count:.1f} | {100 * difference:+.1f} ± {100 * error:.1f}"
        )
        return f"| {kind} | {count} | {percents} | {lost} | {won} |"


def exam(folder: Path, dtype: str, quantization: str, count: int, first_seed: int, seconds: float) -> Iterator[str]:
    """Asks `count` questions of each kind, drawn by the hands in turn; yields the lines of the table.

    No more are started after `seconds`.
    """
    share_work()
    started = time.monotonic()
    maker = PromptMaker(folder, max_image_pixels=1 << 24)
    examinees = [Examinee(folder, dtype, kept, maker) for kept in ("none", quantization)]
    scores = {kind: Score() for kind in KINDS}
    seeds = range(first_seed, first_seed + math.ceil(count / len(HANDS)))
    for first in range(0, len(seeds), SEEDS_AT_ONCE):
        if time.monotonic() - started > seconds:
            break
        some = seeds[first : first + SEEDS_AT_ONCE]
        examples = [hand(kind, seed) for seed in some for kind in KINDS for hand in HANDS]
        prompts = [prompt_of(maker, example) for example in examples]
        answers = [examinee.answers(prompts) for examinee in examinees]
        for example, *both in zip(examples, *answers, strict=True):
            scores[example.kind].pairs.append((accepts(both[0], example), accepts(both[1], example)))
        taken = time.monotonic() - started
        print(f"\r{first + len(some)} of {len(seeds)} seeds, {taken:.0f} s ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    yield f"| kind | questions | {dtype} % | {quantization} % | difference | right before only | right after only |"
    yield "| --- |" + " ---: |" * 6
    yield from (score.row(kind) for kind, score in scores.items() if score.pairs)
