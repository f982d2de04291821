"""Measures how long a picture delays the first token, against transformers on the same weights.

    python benchmarks/image_latency.py

The model has the demo model's text layers, or another's, and an encoder of width 384 for tiles of 560 pixels
(large_encoder.py), in float32. Spyglass is asked over HTTP, one request after another, about new pictures, then again
about the same ones, and without a picture with as many tokens; transformers computes the same prompts in this process
while Spyglass idles.
"""

import argparse
import base64
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import torch
from transformers import MllamaForConditionalGeneration, MllamaImageProcessorPil
from transformers.models.mllama import processing_mllama

from first_token import ask, picture
from large_encoder import TILE, make_large_encoder
from processes import MODEL, Spyglass, checkpoint_or_demo, run_as_engine
from spyglass_server.images import decode_image
from spyglass_server.prompt import PromptMaker
from spyglass_server.prompt.conversation import Message
from spyglass_server.prompt.prompt_maker import ChatInput, ImageSlot

_QUESTION = "What colour is the circle?"
_AGAIN = "Which shape do you see here?"
_WORDS = itertools.cycle(("Now", "But", "And", "So", "Then", "Well", "Oh", "Yes", "Hello", "Please", "Look", "Tell"))


class Transformers:
    """The first token of an answer about a picture, by transformers."""

    def __init__(self, folder: Path) -> None:
        self._model: Any = MllamaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self._processor: Any = MllamaImageProcessorPil.from_pretrained(folder)
        self._maker = PromptMaker(folder, max_image_pixels=1 << 30)

    @torch.inference_mode()
    def first_token_s(self, file: bytes, question: str) -> float:
        """Returns the seconds from the picture's file to the token."""
        started = time.perf_counter()
        chat = ChatInput((Message("user", (None, question)),), (ImageSlot("image"),))
        ids = list(self._maker.prepare(chat, [file]).tokens)
        found = self._processor([[decode_image(file, 1 << 30)]], return_tensors="pt")
        spans = processing_mllama.get_cross_attention_token_mask(ids, self._model.config.image_token_index)
        mask = processing_mllama.convert_sparse_cross_attention_mask_to_dense(
            [spans], found.pop("num_tiles"), self._processor.max_image_tiles, len(ids)
        )
        tokens = torch.tensor([ids])
        self._model.generate(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), cross_attention_mask=torch.from_numpy(mask),
            **found, do_sample=False, max_new_tokens=1,
        )  # fmt: skip
        return time.perf_counter() - started


def median_s(client: openai.OpenAI, questions: Sequence[Sequence[Any]]) -> float:
    """Returns the median time to the first token of questions, each given as the parts of a message."""
    return statistics.median(
        ask(client, MODEL, [{"role": "user", "content": list(parts)}]).first_token_s for parts in questions
    )


def text_of(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def measure(client: openai.OpenAI, peer: Transformers, side: int, count: int) -> str:
    """Measures pictures of one size; returns a line of the table."""
    uris = [picture(side, 1000 * side + number) for number in range(count)]
    shown = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
    new = median_s(client, [[image, text_of(_QUESTION)] for image in shown])
    again = median_s(client, [[image, text_of(_AGAIN)] for image in shown])
    # a word replaces the picture, a different one each time, so that nothing is cached
    plain = median_s(client, [[text_of(f"{next(_WORDS)} {_AGAIN}")] for _ in range(count)])
    theirs = statistics.median(peer.first_token_s(base64.b64decode(uri.partition(",")[2]), _QUESTION) for uri in uris)
    cells = f"{new:.3f}", f"{theirs:.3f}", f"{new / theirs:.2f}", f"{again:.3f}", f"{plain:.3f}", f"{again / plain:.2f}"
    return f"| {side} x {side} | {' | '.join(cells)} |"


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--model", type=Path, help="the checkpoint that has the text layers (default: the demo model)")
    add("--tile", type=int, default=TILE, help="side of a tile in pixels, a multiple of 14 (default: %(default)s)")
    add("--count", type=int, default=3, help="pictures of each size (default: %(default)s)")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    given = parser().parse_args(arguments)
    run_as_engine()
    with tempfile.TemporaryDirectory() as name:
        folder = make_large_encoder(Path(name), checkpoint_or_demo(given.model), given.tile)
        peer = Transformers(folder)
        with Spyglass.started(folder) as spyglass:
            url = f"http://{spyglass.http}/v1"
            with openai.OpenAI(base_url=url, api_key=spyglass.key, max_retries=0) as client:
                print("first token, s:\n")
                print("| pictures of | new picture | transformers | ratio | same picture | no picture | ratio |")
                print("| --- |" + " ---: |" * 6)
                for side in (given.tile, 2 * given.tile):
                    print(measure(client, peer, side, given.count), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
