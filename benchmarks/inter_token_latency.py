"""Measures the inter-token latency of running answers while new images and a long prompt arrive.

    python benchmarks/inter_token_latency.py

Eight streams decode. First nothing else happens; then four new images of four tiles and a prompt of 4,000 tokens
arrive at once. Prints how long the streams wait from one token to the next, in both phases. The model has the demo
model's text layers, or another's, and an encoder of width 384 for tiles of 560 pixels (large_encoder.py). Uses gRPC, so
that each token is seen.
"""

import argparse
import asyncio
import io
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from large_encoder import TILE, make_large_encoder
from load import percentile
from processes import MODEL, Spyglass, checkpoint_or_demo
from spyglass_client import AsyncClient


def picture(seed: int, tile: int) -> bytes:
    """Returns a new picture's file that fills four tiles."""
    noise = np.random.default_rng(seed).integers(0, 256, (2 * tile, 2 * tile, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=80)
    return file.getvalue()


async def stream(client: AsyncClient, number: int, times: list[float]) -> None:
    """Decodes until cancelled, and records when each piece arrived."""
    generation = client.stream(
        f"Tell a long story, number {number}.", model=MODEL, temperature=0, ignore_eos=True, max_tokens=4000
    )
    async for _ in generation:
        times += [time.perf_counter()]


async def until_each_has(times: Sequence[Sequence[float]], count: int, running: Sequence["asyncio.Task[None]"]) -> None:
    """Waits until `count` pieces of each stream have arrived."""
    while min(map(len, times)) < count:
        check_running(running)
        await asyncio.sleep(0.05)


def check_running(streams: Sequence["asyncio.Task[None]"]) -> None:
    """Exits if a stream has ended."""
    if ended := [task for task in streams if task.done()]:
        ended[0].result()
        sys.exit("a stream ended too soon: its answer is at its longest")


async def measure(spyglass: Spyglass, given: argparse.Namespace) -> list[str]:
    """Runs both phases, and returns the lines of the table."""
    async with AsyncClient(spyglass.grpc, api_key=spyglass.key) as client:
        times: list[list[float]] = [[] for _ in range(given.streams)]
        running = [asyncio.create_task(stream(client, i, times[i])) for i in range(given.streams)]
        await asyncio.sleep(given.settle)
        await until_each_has(times, 1, running)
        quiet_from = time.perf_counter()
        await asyncio.sleep(given.quiet)
        await until_each_has(times, 3, running)
        busy_from = time.perf_counter()
        first: list[float] = []

        async def ask(question: str, pictures: Sequence[bytes]) -> None:
            await client.generate(question, images=pictures, model=MODEL, temperature=0, max_tokens=1)
            first.append(time.perf_counter() - busy_from)

        long_prompt = client.generate(
            tokens=[20 + number % 200 for number in range(given.prompt)], model=MODEL, temperature=0, max_tokens=1
        )
        pictures = [picture(i, given.tile) for i in range(given.images)]
        await asyncio.gather(*(ask("What is it?", [file]) for file in pictures), long_prompt)
        busy_until = time.perf_counter()
        check_running(running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    quiet, busy = (
        [1000 * (b - a) for one in times for a, b in itertools.pairwise(one) if begin <= a and b <= end]
        for begin, end in ((quiet_from, busy_from), (busy_from, busy_until))
    )
    lines = ["| between tokens, ms | median | p99 | longest | tokens |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, gaps in (("quiet", quiet), ("images and a long prompt arrive", busy)):
        found = percentile(gaps, 0.5), percentile(gaps, 0.99), max(gaps)
        lines.append(f"| {name} | {' | '.join(f'{value:.0f}' for value in found)} | {len(gaps)} |")
    lines.append("")
    lines.append(f"p99 is {percentile(busy, 0.99) / percentile(quiet, 0.99):.2f} times that of the quiet time.")
    lines.append(f"The images were seen after {', '.join(f'{s:.1f}' for s in sorted(first))} s;")
    lines.append(f"all was done after {busy_until - busy_from:.1f} s.")
    return lines


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--model", type=Path, help="the checkpoint that has the text layers (default: the demo model)")
    add("--tile", type=int, default=TILE, help="side of a tile in pixels, a multiple of 14 (default: %(default)s)")
    add("--streams", type=int, default=8, help="answers that run (default: %(default)s)")
    add("--images", type=int, default=4, help="new images of four tiles (default: %(default)s)")
    add("--prompt", type=int, default=4000, help="tokens of the long prompt (default: %(default)s)")
    add("--settle", type=float, default=6.0, help="seconds before the measurement (default: %(default)s)")
    add("--quiet", type=float, default=15.0, help="seconds before they come (default: %(default)s)")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    given = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = make_large_encoder(Path(name), checkpoint_or_demo(given.model), given.tile)
        with Spyglass.started(folder) as spyglass:
            lines = asyncio.run(measure(spyglass, given))
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
