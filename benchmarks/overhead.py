"""Measures the cost of the stack without the model: a fake one gives each stream a token in every step.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --streams 64 --step-ms 25.6

By default 256 streams get a token every 25.6 ms, 10,000 a second in all, over HTTP. Scheduler, engine process, server,
bridge and detokenizing are the product's. Prints, for each token, the processor time of each process, the SSE events,
and the time from the end of its step until the client received it. The client runs on the same cores.
"""

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import uvloop

from load import percentile
from processes import MODEL, checkpoint_or_demo, family, free_ports, name_of, until_ready
from spyglass_server.app import Server
from spyglass_server.config import resolve
from spyglass_server.engine.handle.async_engine import AsyncEngine
from spyglass_server.engine.messages import EngineInfo, ImageInput, ImageKey, MemoryInfo
from spyglass_server.engine.worker.batch import Pending, Row, RowOutput
from spyglass_server.engine.worker.budget import Limits
from spyglass_server.engine.worker.core import EngineCore
from spyglass_server.engine.worker.image_cache import ImageCache
from spyglass_server.engine.worker.page_pool import PagePool
from spyglass_server.engine.worker.scheduler import Scheduler
from spyglass_server.settings import SETTINGS

_NUM_WORDS = 512
_PAGE_SIZE, _NUM_PAGES = 16, 65_536
_WATCHED = 8
"""One in this many streams is checked word by word; the others' events are only counted."""
_FIRST_WORD_S = 60.0
_SCRAPE_S = 1.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Clock:
    """When each step ended, in a file that several processes share: a step's word identifies it to the client."""

    def __init__(self, file: Path) -> None:
        if not file.exists():
            file.write_bytes(bytes(8 * (_NUM_WORDS + 1)))
        self._times = np.memmap(file, np.float64, "r+", shape=(_NUM_WORDS + 1,))

    @property
    def steps(self) -> int:
        """The number of steps so far."""
        return int(self._times[-1])

    def tick(self) -> int:
        """Records the end of a step, and returns the number of its word."""
        number = self.steps % _NUM_WORDS
        self._times[number] = time.monotonic()
        self._times[-1] += 1
        return number

    def age_s(self, number: int) -> float:
        """Returns how long ago the last step with this word ended."""
        return time.monotonic() - float(self._times[number])


class Metronome:
    """A runner that computes nothing: every step takes the same time and gives every sequence the same token."""

    looks_ahead = False

    def __init__(self, tokens: Sequence[int], step_s: float, clock: Clock) -> None:
        self._tokens, self._step_s, self._clock = tokens, step_s, clock
        self._due = time.monotonic()

    def close(self) -> None:
        """There are no other processes."""

    def execute(self, rows: Sequence[Row]) -> list[RowOutput]:
        self._due = max(self._due + self._step_s, time.monotonic())
        time.sleep(max(0.0, self._due - time.monotonic()))
        token = self._tokens[self._clock.tick()]
        return [RowOutput(tokens=(token,) * len(row.choices)) for row in rows]

    def start(self, rows: Sequence[Row]) -> Pending:
        raise NotImplementedError

    def take_image(self, image: ImageInput) -> None:
        raise NotImplementedError

    def drop_image(self, key: ImageKey) -> None:
        raise NotImplementedError

    def encode_image(self, key: ImageKey, tiles: Sequence[int]) -> bool:
        raise NotImplementedError

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        """There are no pages."""


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Loads an engine with a Metronome."""

    tokens: tuple[int, ...]
    step_s: float
    clock: Path
    streams: int

    def load(self) -> tuple[EngineCore, EngineInfo]:
        limits = Limits(max_batch=self.streams, max_step_tokens=8192)
        scheduler = Scheduler(limits, PagePool(_NUM_PAGES, _PAGE_SIZE), ImageCache(16))
        info = EngineInfo(
            dtype="float32",
            quantization="none",
            device="fake",
            max_tokens=_NUM_PAGES * _PAGE_SIZE,
            max_image_tiles=16,
            max_choices=self.streams,
            num_cross_layers=0,
            patches_per_side=1,
            ranks=(
                MemoryInfo(
                    host="here",
                    device_name="fake",
                    device_bytes=1 << 30,
                    weight_bytes=1 << 20,
                    kv_cache_tokens=_NUM_PAGES * _PAGE_SIZE,
                    kv_cache_bytes=_NUM_PAGES * _PAGE_SIZE,
                    image_cache_tiles=16,
                    image_cache_bytes=16,
                ),
            ),
        )
        return EngineCore(scheduler, Metronome(self.tokens, self.step_s, Clock(self.clock))), info


def words(folder: Path) -> dict[str, int]:
    """Returns words of the model's vocabulary that are one token each, with a leading space."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    found = {word[1:]: token for word, token in vocabulary.items() if word[0] == "Ġ" and word[1:].isascii()}
    chosen = dict([(word, token) for word, token in found.items() if word.isalpha()][:_NUM_WORDS])
    if len(chosen) < _NUM_WORDS:
        sys.exit(f"the vocabulary in {folder} has {len(chosen)} words that are one token each, not {_NUM_WORDS}")
    return chosen


async def serve(given: argparse.Namespace) -> None:
    """Runs the server's process."""
    folder = checkpoint_or_demo(given.model)
    loader = Loader(
        tokens=tuple(words(folder).values()), step_s=given.step_ms / 1000, clock=given.clock, streams=given.streams
    )
    settings = {setting.dest: setting.default for setting in SETTINGS}
    settings |= {"grpc": given.serve, "api_key": (given.key,), "bridge_key": given.key[::-1]}
    settings["server_metrics"] = given.serve_metrics
    settings |= {"model": str(folder), "served_model_name": (MODEL,), "data_dir": str(given.clock.parent)}
    settings |= {"max_pending": 2 * given.streams, "max_step_tokens": 8192}
    server = Server(resolve(argparse.Namespace(**settings)), folder, AsyncEngine(loader))
    await server.start()
    try:
        await asyncio.to_thread(sys.stdin.read)
    finally:
        await server.stop()


@dataclass(slots=True)
class Seen:
    """What the client has seen so far."""

    events: int = 0
    latencies_s: list[float] = field(default_factory=list)


class Client:
    """Many streams at once."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, key: str, clock: Clock, numbers: dict[str, int]
    ) -> None:
        self._session, self._url = session, f"{url}/v1/chat/completions"
        self._headers = {"Authorization": f"Bearer {key}"}
        self._clock, self._numbers = clock, numbers
        self.seen = Seen()
        self.has_heard = asyncio.Event()
        """Whether a word has arrived."""

    async def listen(self, number: int) -> None:
        """Reads one stream until cancelled."""
        message = {"role": "user", "content": f"Go on, number {number}."}
        body = {"model": MODEL, "messages": [message], "temperature": 0, "max_tokens": 8192, "stream": True}
        async with self._session.post(self._url, json=body, headers=self._headers) as answer:
            answer.raise_for_status()
            if number % _WATCHED == 0:
                async for line in answer.content:
                    if line.startswith(b"data: {"):
                        self._look_at(json.loads(line[6:]))
            async for data in answer.content.iter_any():
                self.seen.events += data.count(b"data: {")

    def _look_at(self, event: dict[str, Any]) -> None:
        self.seen.events += 1
        text = event["choices"][0]["delta"].get("content") or ""
        self.seen.latencies_s += [self._clock.age_s(self._numbers[word]) for word in text.split()]
        if self.seen.latencies_s:
            self.has_heard.set()


@dataclass(frozen=True, slots=True)
class Process:
    """A process, named by its role."""

    name: str
    pid: int

    def busy_s(self) -> float:
        """Returns the processor time so far, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


@contextlib.contextmanager
def scraped(pages: Sequence[str]) -> Iterator[None]:
    """Asks for metrics every second, as Prometheus does."""
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(_SCRAPE_S):
            for page in pages:
                urllib.request.urlopen(f"http://{page}/metrics", timeout=10).read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def stack(given: argparse.Namespace, model: Path, folder: Path) -> Iterator[tuple[str, str, Clock, list[Process]]]:
    """Runs server and bridge. Yields the bridge's URL, a key, the clock, and the processes."""
    http, grpc = (f"127.0.0.1:{port}" for port in free_ports(2))
    key, clock = secrets.token_hex(8), folder / "clock"
    ticks = Clock(clock)
    options = ["--streams", str(given.streams), "--step-ms", str(given.step_ms), "--model", str(model)]
    serve = [sys.executable, __file__, *options, "--serve", grpc, "--key", key, "--clock", str(clock)]
    bridge = [str(Path(sys.executable).parent / "spyglass-bridge"), "--http", http, "--grpc", grpc]
    errors = None if given.verbose else subprocess.DEVNULL
    pages: list[str] = []
    if given.metrics:
        pages = [f"127.0.0.1:{port}" for port in free_ports(2)]
        serve += ["--serve-metrics", pages[0]]
        bridge += ["--bridge-metrics", pages[1]]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            subprocess.Popen(serve, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors)
        )
        front = stack.enter_context(
            subprocess.Popen([*bridge, "--bridge-key", key[::-1]], stdout=subprocess.DEVNULL, stderr=errors)
        )
        stack.callback(front.terminate)
        asyncio.run(until_ready(f"http://{http}/ready", front, server))
        engine = next(pid for pid in family(server.pid) if name_of(pid) == "spyglass-engine")
        if pages:
            stack.enter_context(scraped(pages))
        processes = [Process("server", server.pid), Process("engine", engine), Process("bridge", front.pid)]
        yield f"http://{http}", key, ticks, processes


async def measure(
    given: argparse.Namespace, model: Path, url: str, key: str, clock: Clock, processes: list[Process]
) -> list[str]:
    """Runs all streams, and returns the lines of the table."""
    numbers = {word: number for number, word in enumerate(words(model))}
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        client = Client(session, url, key, clock, numbers)
        running = [asyncio.create_task(client.listen(number)) for number in range(given.streams)]
        await asyncio.sleep(given.settle)
        async with asyncio.timeout(_FIRST_WORD_S):
            await client.has_heard.wait()
        client.seen = seen = Seen()
        steps, started = clock.steps, time.monotonic()
        before = [process.busy_s() for process in processes]
        await asyncio.sleep(given.seconds)
        tokens, took_s = (clock.steps - steps) * given.streams, time.monotonic() - started
        busy = [process.busy_s() - earlier for process, earlier in zip(processes, before, strict=True)]
        if ended := [task for task in running if task.done()]:
            ended[0].result()
            sys.exit("a stream ended too soon")
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    late = [1000 * latency for latency in seen.latencies_s]
    lines = ["| | |", "| --- | ---: |"]
    lines.append(f"| tokens a second | {tokens / took_s:.0f} |")
    lines += [
        f"| {process.name}, us of processor time a token | {1e6 * spent / tokens:.1f} |"
        for process, spent in zip(processes, busy, strict=True)
    ]
    lines.append(f"| SSE events a token | {seen.events / tokens:.3f} |")
    lines.append(f"| from step to client, median ms | {percentile(late, 0.5):.1f} |")
    lines.append(f"| p99 ms | {percentile(late, 0.99):.1f} |")
    return lines


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--model", type=Path, help="the checkpoint whose words are given (default: the demo model)")
    add("--streams", type=int, default=256, help="answers at once (default: %(default)s)")
    add("--step-ms", type=float, default=25.6, help="how long a step takes (default: %(default)s)")
    add("--settle", type=float, default=8.0, help="seconds before the measurement (default: %(default)s)")
    add("--seconds", type=float, default=20.0, help="how long it takes (default: %(default)s)")
    add("--metrics", action="store_true", help="has both answer Prometheus, who asks every second")
    add("--verbose", action="store_true", help="shows what server and bridge say")
    for flag, kind in (("--serve", str), ("--serve-metrics", str), ("--key", str), ("--clock", Path)):
        add(flag, type=kind, help=argparse.SUPPRESS)  # for the server's process
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    given = parser().parse_args(arguments)
    if given.serve:
        uvloop.run(serve(given))
        return 0
    model = checkpoint_or_demo(given.model)
    with tempfile.TemporaryDirectory() as folder, stack(given, model, Path(folder)) as (url, key, clock, processes):
        lines = asyncio.run(measure(given, model, url, key, clock, processes))
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
