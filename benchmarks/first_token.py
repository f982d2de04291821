"""Measures how long the first token of an answer takes, over HTTP: about a new picture, and in a second turn.

    python benchmarks/first_token.py --count 20

Start the server first: `make run` in another terminal. Pictures and conversations are new, so none is cached.
"""

import argparse
import base64
import io
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
from PIL import Image, ImageDraw

Messages = list[Any]
"""In the openai package's format."""
DEVELOPMENT_KEY = Path(__file__).resolve().parent.parent / ".spyglass" / "dev-key"


def picture(side: int, seed: int) -> str:
    """Draws a disc on a noisy background, so that the file is not tiny; returns a data URI."""
    noise = np.random.default_rng(seed).integers(200, 256, (side, side, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    ImageDraw.Draw(image).ellipse((side // 4, side // 4, 3 * side // 4, 3 * side // 4), fill="red")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The beginning of an answer. `first_token_s` is from sending the request to its first text."""

    first_token_s: float
    text: str
    prompt_tokens: int
    cached_tokens: int


def ask(client: openai.OpenAI, model: str, messages: Messages) -> Answer:
    """Asks for a short answer, at temperature 0."""
    started = time.perf_counter()
    stream = client.chat.completions.create(
        model=model,
        messages=messages,
        temperature=0,
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
    )
    first, text = 0.0, ""
    with stream:
        for chunk in stream:
            if chunk.choices and (piece := chunk.choices[0].delta.content):
                first = first or time.perf_counter() - started
                text += piece
            if chunk.usage and text:
                details = chunk.usage.prompt_tokens_details
                cached = (details.cached_tokens or 0) if details else 0
                return Answer(
                    first_token_s=first, text=text, prompt_tokens=chunk.usage.prompt_tokens, cached_tokens=cached
                )
    raise RuntimeError("the answer was empty or had no usage")


def pictures(client: openai.OpenAI, model: str, side: int, count: int) -> str:
    """Times first tokens about new pictures."""
    times = []
    for seed in range(count):
        parts = [
            {"type": "image_url", "image_url": {"url": picture(side, seed)}},
            {"type": "text", "text": "What colour is the circle?"},
        ]
        times.append(ask(client, model, [{"role": "user", "content": parts}]).first_token_s)
    return (
        f"{count} new pictures of {side} x {side} pixels: "
        f"median {statistics.median(times):.3f} s, longest {max(times):.3f} s, first {times[0]:.3f} s"
    )


def turns(client: openai.OpenAI, model: str, count: int, sentences: int) -> str:
    """Times first tokens of new conversations of `sentences`, about 10 tokens each, and of their second turns."""
    first, second = [], []
    for round_ in range(count):
        text = f"Round {round_} of {time.time()}. " + "The quick brown fox jumps over the lazy dog. " * sentences
        messages: Messages = [{"role": "user", "content": text + "What is this about?"}]
        first.append(ask(client, model, messages))
        messages += [
            {"role": "assistant", "content": first[-1].text},
            {"role": "user", "content": "Say it in other words."},
        ]
        second.append(ask(client, model, messages))
    before, after = (statistics.median(a.first_token_s for a in answers) for answers in (first, second))
    return (
        f"{count} conversations of {first[-1].prompt_tokens:,} tokens: median {before:.3f} s; their second turns, "
        f"{second[-1].cached_tokens:,} of {second[-1].prompt_tokens:,} tokens cached: median {after:.3f} s, "
        f"{100 * after / before:.0f} % of the first"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the server is (default: %(default)s)")
    parser.add_argument("--side", type=int, default=1000, help="of the pictures, in pixels (default: %(default)s)")
    parser.add_argument("--count", type=int, default=20, help="how many are asked about (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="how many conversations are held (default: %(default)s)")
    parser.add_argument("--sentences", type=int, default=196, help="in a first turn (default: %(default)s)")
    given = parser.parse_args(arguments)
    key = os.environ.get("SPYGLASS_API_KEY") or DEVELOPMENT_KEY.read_text().strip()
    print("seconds to the first token, one request after another:")
    with openai.OpenAI(base_url=f"{given.url}/v1", api_key=key, max_retries=0) as client:
        model = client.models.list().data[0].id
        print(pictures(client, model, given.side, given.count))
        print(turns(client, model, given.turns, given.sentences))
    return 0


if __name__ == "__main__":
    sys.exit(main())
