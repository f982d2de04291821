"""A stage of the check: the product's server and bridge, as clients see them, over gRPC and over HTTP.

Each runs in its own process with its own settings, as the product's images run them. First tokens, gaps, tokens per
second, of the loads that the stage for the engine runs in process.
"""

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp

import costs
from dummy_folder import write_dummy_folder
from engine import LOADS
from harness import config_of
from load import Sample, Summary, closed_loop
from processes import free_ports, until_ready
from spyglass_client import AsyncClient
from stage_run import StageRun
from timing import DeviceLimits

SMOKE_LOADS = ((2, 20, 4, 0),)
SMOKE_OPTIONS = ("--cache-bytes", "10000000", "--image-cache-bytes", "10000000")
KEY, BRIDGE_KEY, MODEL = "check", "check-of-the-bridge", "dummy"
Ask = Callable[[int, int, int], Awaitable[Sample]]
"""Asks a question of a seed, so many tokens long, for an answer of so many tokens."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where server and bridge listen on this machine."""

    http: str
    grpc: str


@contextlib.contextmanager
def serving(run: StageRun, folder: Path) -> Iterator[Ports]:
    """Runs a server and a bridge until they are ready, with dummy weights and what a folder has beside these."""
    ports = Ports(*(f"127.0.0.1:{port}" for port in free_ports(2)))
    keys = {"SPYGLASS_API_KEY": KEY, "SPYGLASS_BRIDGE_KEY": BRIDGE_KEY, "SPYGLASS_GRPC": ports.grpc}
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SPYGLASS_")} | keys
    options = ["--model", str(folder), "--served-model-name", MODEL, "--load-format", "dummy"]
    options += ["--device", run.device.type, "--data-dir", str(folder / "data")]
    options += SMOKE_OPTIONS if run.is_smoke else ()
    with contextlib.ExitStack() as stack:
        processes = []
        for command in (("spyglass_server", *options), ("spyglass_bridge", "--http", ports.http)):
            process = subprocess.Popen([sys.executable, "-m", *command], env=environ)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            processes.append(process)
        started = time.perf_counter()
        asyncio.run(until_ready(f"http://{ports.http}/ready", *processes))
        run.record("server start", seconds=round(time.perf_counter() - started, 1))
        yield ports


async def ask_grpc(client: AsyncClient, seed: int, prompt: int, answer: int) -> Sample:
    """One answer, to a prompt that no other seed has."""
    sample = Sample(started=time.perf_counter(), prompt_tokens=prompt)
    generation = client.stream(
        tokens=tokens_of(seed, prompt), max_tokens=answer, min_tokens=answer, temperature=0.6, top_p=0.9, seed=seed
    )
    async for _ in generation:
        sample.pieces.append(time.perf_counter())
    sample.tokens = generation.answer.usage.completion_tokens
    return sample


async def ask_http(session: aiohttp.ClientSession, seed: int, prompt: int, answer: int) -> Sample:
    """The same from the bridge."""
    body = {
        "model": MODEL,
        "prompt": tokens_of(seed, prompt),
        "max_tokens": answer,
        "min_tokens": answer,
        "temperature": 0.6,
        "top_p": 0.9,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sample = Sample(started=time.perf_counter(), prompt_tokens=prompt)
    async with session.post("/v1/openai/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if event.get("usage"):
                    sample.tokens = event["usage"]["completion_tokens"]
                if event["choices"]:
                    sample.pieces.append(time.perf_counter())
    return sample


def tokens_of(seed: int, count: int) -> list[int]:
    """Tokens of a prompt."""
    return random.Random(seed).choices(range(10, 250), k=count)


async def measure(run: StageRun, ports: Ports) -> None:
    """Runs all loads in both ways."""
    config, limits = config_of(run.size), DeviceLimits.kept_in(run.out, run.device)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        AsyncClient(ports.grpc, api_key=KEY) as client,
        aiohttp.ClientSession(f"http://{ports.http}", headers=headers) as session,
    ):
        ways: dict[str, Ask] = {"gRPC": partial(ask_grpc, client), "HTTP": partial(ask_http, session)}
        for together, prompt, answer, num_images in SMOKE_LOADS if run.is_smoke else LOADS:
            if num_images:
                continue
            context = together * (prompt + answer // 2)
            weights = costs.layer_bytes(config, sees_image=False) + costs.head_bytes(config)
            limit_ms = limits.ms(weights + costs.kv_bytes(config, context, 0))
            for number, (way, ask) in enumerate(ways.items()):
                summary = await closed(ask, 10_000 * together + 1000 * number, together, prompt, answer)
                run.load(f"serving over {way}", summary, limit_ms, together=together)


async def closed(ask: Ask, seed: int, together: int, prompt: int, answer: int) -> Summary:
    """So many requests at once, and as many before them that are not counted."""
    for first in (seed, seed + together):
        seeds = range(first, first + together)
        summary = await closed_loop(lambda one: ask(one, prompt, answer), seeds, together)
    return summary


def run(run: StageRun) -> None:
    """Runs the stage."""
    with tempfile.TemporaryDirectory() as name:
        folder = write_dummy_folder(Path(name) / "model", config_of(run.size))
        with serving(run, folder) as ports:
            asyncio.run(measure(run, ports))
