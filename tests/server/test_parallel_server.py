"""The whole server with a model over two ranks: the same answers as with one, and no rank is lost unnoticed."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from checkpoints import random_checkpoint
from fakes import KEY, TestServer, run_test_server
from pictures import encoded, noise
from random_weights import Sizes
from spyglass_client import AsyncClient, SpyglassError
from spyglass_server.config import EngineConfig
from spyglass_server.runtime.launch import CheckpointLoader

SIZES = Sizes(hidden_size=128, num_heads=8, num_kv_heads=4)
SETTINGS = {"image_cache_bytes": 8 << 20, "max_batch": 8, "max_step_tokens": 64}
FEW_TOKENS, MANY_TOKENS = 1 << 18, 32 << 20
"""Of cache, in bytes over all ranks."""
NUM_STREAMS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("parallel") / "model", sizes=SIZES)


def processes() -> set[int]:
    return {int(folder.name) for folder in Path("/proc").glob("[0-9]*")}


def followers(server: TestServer) -> list[int]:
    """The processes that the engine process has started."""
    engine = server.server.engine.pid
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == engine and b"followers" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except FileNotFoundError:
            continue
    return found


async def answers(server: TestServer) -> list[str]:
    """Of requests at once, of several kinds: more tokens than there are pages for, so that some are preempted."""
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    ways: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.9, "seed": 5},
        {"temperature": 0.7, "top_p": 0.9, "frequency_penalty": 0.5, "seed": 6},
        {"temperature": 1.0, "seed": 7, "json_schema": schema},
    ]
    async with AsyncClient(server.server.address, api_key=KEY) as client:
        found = await asyncio.gather(
            *(
                client.generate("What is it?", images=images, max_tokens=24, **way)
                for way in ways
                for images in ([], [encoded(noise((60, 40)))])
            )
        )
        return [answer.text for answer in found]


async def test_answers_are_those_of_one_rank(folder: Path, tmp_path: Path) -> None:
    async with run_test_server(folder, tmp_path / "one", cache_bytes=FEW_TOKENS, **SETTINGS) as one:
        expected = await answers(one)
    settings = {"cache_bytes": FEW_TOKENS // 2, "tensor_parallel_size": 2} | SETTINGS
    async with run_test_server(folder, tmp_path / "two", **settings) as server:
        assert await answers(server) == expected
        assert await answers(server) == expected  # from what is cached
        assert len(followers(server)) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_a_rank_that_is_lost_ends_the_streams_and_all_comes_back(
    folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    settings = {"cache_bytes": MANY_TOKENS, "tensor_parallel_size": 2} | SETTINGS
    async with (
        run_test_server(folder, tmp_path, **settings) as server,
        AsyncClient(server.server.address, api_key=KEY) as client,
    ):

        async def stream(started: asyncio.Event) -> tuple[float, SpyglassError]:
            """Its error, and when that came."""
            generation = client.stream("Go on", max_tokens=3000, min_tokens=3000, temperature=1.0)
            try:
                async for _ in generation:
                    started.set()
            except SpyglassError as error:
                return time.monotonic(), error
            raise AssertionError("the stream has ended by itself")

        started = [asyncio.Event() for _ in range(NUM_STREAMS)]
        streams = [asyncio.create_task(stream(one)) for one in started]
        await asyncio.gather(*(one.wait() for one in started))
        (follower,) = followers(server)
        os.kill(follower, number)
        lost = time.monotonic()
        ended = await asyncio.gather(*streams)
        assert {error.code for _, error in ended} == {grpc.StatusCode.UNAVAILABLE}
        assert max(when for when, _ in ended) - lost < (2 if number is signal.SIGKILL else 12)
        await asyncio.wait_for(server.server.engine.wait_ready(), 30)
        assert (await client.generate("Hello", max_tokens=3)).usage.completion_tokens == 3
        assert followers(server) != [follower]
        assert follower not in processes()


def test_what_cannot_be_divided_is_refused_before_anything_starts(folder: Path) -> None:
    settings = EngineConfig(
        load_format="auto", dtype="auto", quantization="none", device="cpu", max_model_len=None,
        gpu_memory_utilization=0.9, cache_bytes=8 << 20, image_cache_bytes=8 << 20, tensor_parallel_size=5,
        max_batch=8, max_step_tokens=64, max_chunk_tokens=None,
    )  # fmt: skip
    with pytest.raises(ValueError, match="cannot be divided among 5 ranks"):
        CheckpointLoader(folder=folder, settings=settings).load()
