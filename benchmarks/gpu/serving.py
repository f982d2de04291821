"""A part of the check: the product's server over gRPC, as its clients see it: first tokens, gaps, tokens per second."""

import asyncio
import random
import tempfile
import time
from pathlib import Path

from dummy_folder import write_dummy_folder
from engine import config_of
from fakes import KEY, run_test_server
from load import Sample, closed_loop
from part import Part
from spyglass_client import AsyncClient

LOADS = ((1, 512, 64), (8, 512, 128), (32, 512, 128), (64, 512, 128))
"""Requests at once, tokens of a prompt, tokens of an answer."""
SMOKE_LOADS = ((2, 30, 6),)
SMOKE_OPTIONS = {"cache_bytes": 10_000_000, "image_cache_bytes": 10_000_000}


async def serve(part: Part) -> None:
    """Asks a server that is started for it, so many at once in each load; the first round of each warms up."""
    options = SMOKE_OPTIONS if part.is_smoke else {}
    with tempfile.TemporaryDirectory() as name:
        folder = write_dummy_folder(Path(name) / "model", config_of(part.size))
        started = time.perf_counter()
        async with run_test_server(
            folder, Path(name) / "data", load_format="dummy", device=part.device.type, **options
        ) as running:
            part.record("server start", seconds=round(time.perf_counter() - started, 1))
            async with AsyncClient(running.server.address, api_key=KEY) as client:
                for together, prompt, answer in SMOKE_LOADS if part.is_smoke else LOADS:
                    for first in (0, together):
                        seeds = range(1000 * together + first, 1000 * together + first + together)
                        summary = await closed_loop(
                            lambda seed: ask(client, seed, prompt, answer),  # noqa: B023
                            seeds,
                            together,
                        )
                    part.record_load("serving", summary, together=together, num_images=0)


async def ask(client: AsyncClient, seed: int, prompt: int, answer: int) -> Sample:
    """One answer, to a prompt that no other seed has."""
    tokens = random.Random(seed).choices(range(10, 250), k=prompt)
    sample = Sample(started=time.perf_counter(), prompt_tokens=prompt)
    generation = client.stream(
        tokens=tokens, max_tokens=answer, min_tokens=answer, temperature=0.6, top_p=0.9, seed=seed
    )
    async for _ in generation:
        sample.pieces.append(time.perf_counter())
    sample.tokens = generation.answer.usage.completion_tokens
    return sample


def main() -> None:
    """Runs the part."""
    part = Part.from_arguments()
    part.stage("serving", 45.0, lambda: asyncio.run(serve(part)))


if __name__ == "__main__":
    main()
