"""Measures the effect of quantized weights on logits, on the next-token distribution, and on the exam.

    python benchmarks/quantization.py
    python benchmarks/quantization.py --exam 500 --dtype bfloat16 --ways fp8

On CPUs fp8 rounds weights and inputs as GPUs do. Logits of all tokens of conversations about drawn pictures, each with
and without its picture, are compared with those of --dtype. The exam asks the same questions about the same pictures
with full weights and with quantized ones; with other models than the demo model it only tests this script.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from processes import checkpoint_or_demo, run_as_engine
from spyglass_server.engine.messages import EngineRequest, ImageKey
from spyglass_server.engine.shared_images import SharedImages
from spyglass_server.engine.worker.batch import Row
from spyglass_server.prompt import PromptMaker
from spyglass_server.prompt.conversation import Message
from spyglass_server.prompt.prompt_maker import ChatInput, Prompt
from spyglass_server.runtime.checkpoint import load_model
from spyglass_server.runtime.config import load_config
from spyglass_server.runtime.launch import PAGE_SIZE
from spyglass_server.runtime.linear import CONVERTERS, Fp8Linear, Int8Linear
from spyglass_server.runtime.runner import ModelRunner

TRAINING = Path(__file__).resolve().parents[1] / "demo" / "training"
CPU = torch.device("cpu")
WAYS = ("bfloat16", *CONVERTERS)
NUM_PAGES = 64


class Weights:
    """A model with its weights stored in one way: a precision, or a quantization of it."""

    def __init__(self, folder: Path, way: str, dtype: torch.dtype) -> None:
        convert = CONVERTERS.get(way)
        dtype = dtype if convert else getattr(torch, way)
        config = load_config(folder)
        model = load_model(folder, config, dtype, CPU, convert)
        layers = [m for m in model.text.layers.modules() if isinstance(m, nn.Linear | Fp8Linear | Int8Linear)]
        self.layer_bytes = sum(t.nbytes for m in layers for t in (*m.parameters(), *m.buffers()))
        self._max_tiles = config.vision.max_tiles
        self._runner = ModelRunner(model, NUM_PAGES, PAGE_SIZE, self._max_tiles, dtype, CPU)

    def logits(self, prompt: Prompt) -> Tensor:
        """Computes the logits of all tokens of a prompt with at most one picture, float32 [tokens, vocabulary]."""
        tiles = [tuple(range(t.rows * t.columns)) for t in prompt.images]
        shared = SharedImages()
        shared.copy((ImageKey("", t.digest), t.rows, t.columns, t.pixels.data) for t in prompt.images)
        try:
            for image, places in zip(shared.inputs, tiles, strict=True):
                self._runner.take_image(image)
                while not self._runner.encode_image(image.key, places):
                    pass
        finally:
            shared.release()
        request = EngineRequest(id=0, tokens=(), max_tokens=1, image_positions=prompt.image_positions)
        pages = tuple(range(-(-len(prompt.tokens) // PAGE_SIZE)))
        found = self._runner.logits(
            Row(request=request, tokens=prompt.tokens, start=0, pages=pages, choices=(), image_tiles=tuple(tiles))
        )
        for image in shared.inputs:
            self._runner.drop_image(image.key)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far logits are from the full weights', each as a mean over tokens.

    `logits` is the root mean square difference relative to their standard deviation, `divergence` the Kullback-Leibler
    divergence in nats, `variation` the total variation distance of the distributions, `same` the share of tokens whose
    most probable successor is the same.
    """

    logits: float
    divergence: float
    variation: float
    same: float

    @classmethod
    def of(cls, near: Tensor, exact: Tensor) -> "Difference":
        p, q = exact.double().log_softmax(-1), near.double().log_softmax(-1)
        centred = (near - near.mean(-1, keepdim=True)) - (exact - exact.mean(-1, keepdim=True))
        return cls(
            logits=float((centred.square().mean(-1).sqrt() / exact.std(-1)).mean()),
            divergence=float((p.exp() * (p - q)).sum(-1).mean()),
            variation=float((p.exp() - q.exp()).abs().sum(-1).mean() / 2),
            same=float((near.argmax(-1) == exact.argmax(-1)).double().mean()),
        )


def prompts_of(maker: PromptMaker, count: int, first_seed: int) -> list[Prompt]:
    """Builds questions about `count` pictures, all kinds in turn, with and without the pictures."""
    from paired_exam import prompt_of
    from spyglass_training.exam.judge import KINDS
    from spyglass_training.exam.own_hand import example

    found = []
    for i in range(count):
        drawn = example(KINDS[i % len(KINDS)], first_seed + i)
        found.append(prompt_of(maker, drawn))
        found.append(maker.prepare(ChatInput((Message("user", (drawn.question,)),))))
    return found


def compare(folder: Path, ways: Sequence[str], dtype: str, prompts: Sequence[Prompt]) -> None:
    """Prints a row for each way: how the logits of all tokens differ from those of full weights."""
    full = Weights(folder, dtype, getattr(torch, dtype))
    exact = [full.logits(prompt) for prompt in prompts]
    print("| weights | of layers MB | logits % | KL nats | total variation | same token % |")
    print("| --- |" + " ---: |" * 5)
    print(f"| {dtype} | {full.layer_bytes / 1e6:.1f} |  |  |  |  |")
    for way in ways:
        weights = Weights(folder, way, getattr(torch, dtype))
        found = Difference.of(torch.cat([weights.logits(prompt) for prompt in prompts]), torch.cat(exact))
        figures = f"{100 * found.logits:.2f} | {found.divergence:.4f} | {found.variation:.4f} | {100 * found.same:.1f}"
        print(f"| {way} | {weights.layer_bytes / 1e6:.1f} | {figures} |", flush=True)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--model", type=Path, help="a checkpoint (default: the demo model)")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="of full weights (default: %(default)s)")
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="how weights are kept (default: all)")
    add("--pictures", type=int, default=20, help="pictures to compare logits about (default: %(default)s)")
    add("--exam", type=int, default=0, metavar="COUNT", help="questions of each kind (default: no exam)")
    add("--seconds", type=float, default=float("inf"), help="of the exam of a way, at most (default: no limit)")
    add("--seed", type=int, default=1_000_000, help="the first picture's; the others follow (default: %(default)s)")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    given = parser().parse_args(arguments)
    run_as_engine()
    sys.path.append(str(TRAINING))
    from paired_exam import exam

    folder = checkpoint_or_demo(given.model)
    if given.pictures:
        maker = PromptMaker(folder, max_image_pixels=1 << 24)
        compare(folder, given.ways, given.dtype, prompts_of(maker, given.pictures, given.seed))
    for way in (way for way in given.ways if given.exam and way in CONVERTERS):
        print()
        for line in exam(folder, given.dtype, way, given.exam, given.seed, given.seconds):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
