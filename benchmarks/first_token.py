"""Measures how long the first token of an answer about a new picture takes, over HTTP.

    python benchmarks/first_token.py --count 20

Start the server first: `make run` in another terminal. Every picture is new, so none is in a cache.
"""

import argparse
import base64
import io
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openai
from PIL import Image, ImageDraw

DEVELOPMENT_KEY = Path(__file__).resolve().parent.parent / ".spyglass" / "dev-key"


def picture(side: int, seed: int) -> str:
    """A disc on a ground with some noise, so that the file is not tiny, as a data URI."""
    noise = np.random.default_rng(seed).integers(200, 256, (side, side, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    ImageDraw.Draw(image).ellipse((side // 4, side // 4, 3 * side // 4, 3 * side // 4), fill="red")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def first_token_s(client: openai.OpenAI, model: str, uri: str) -> float:
    """Seconds from sending the request to the first text of its answer."""
    started = time.perf_counter()
    parts = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "What colour is the circle?"}]
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": parts}],  # type: ignore[misc, list-item]
        temperature=0,
        max_tokens=8,
        stream=True,
    )
    with stream:
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                return time.perf_counter() - started
    raise RuntimeError("the answer was empty")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the server is (default: %(default)s)")
    parser.add_argument("--side", type=int, default=1000, help="of the pictures, in pixels (default: %(default)s)")
    parser.add_argument("--count", type=int, default=20, help="how many are asked about (default: %(default)s)")
    given = parser.parse_args(arguments)
    key = os.environ.get("SPYGLASS_API_KEY") or DEVELOPMENT_KEY.read_text().strip()
    with openai.OpenAI(base_url=f"{given.url}/v1", api_key=key, max_retries=0) as client:
        model = client.models.list().data[0].id
        times = [first_token_s(client, model, picture(given.side, seed)) for seed in range(given.count)]
    print(f"first token of {given.count} pictures of {given.side} x {given.side} pixels, one after another:")
    print(f"median {statistics.median(times):.3f} s, longest {max(times):.3f} s, first {times[0]:.3f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
