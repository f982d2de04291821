"""Measures how one key's worst misuse affects another key's calls, through the whole stack.

    python benchmarks/fairness.py
    python benchmarks/fairness.py --ways "large bodies"

A server with a scripted model and a bridge. One key misuses them from its own process, with low priority: schemas that
are costly to compile, huge pictures, slow sources of pictures, images that never arrive, large bodies
(benchmarks/misuse.py); each way alone, then all at once. The other key has a few running streams, and asks now and
then, plainly and with a small schema. Prints its longest waits, also without any misuse.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from bars import Bar, report
from misuse import BODY_BYTES, WAYS, chat, misuse
from processes import checkpoint_or_demo
from service import Service

_WORST, _OTHER = "sk-worst", "sk-other"
_TIMES_ALONE, _FIRST_TOKEN_S = 3, 0.3
_GAP_S = 0.5
_READY_S = 0.3
"""Limit for /ready, which asks the server for its status."""
_PAUSE_S = 0.1
_NICENESS = 10
"""Of the misuser, which would have its own machine: its own work should not affect the measurement."""
_SMALL = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}


@dataclass(slots=True, kw_only=True)
class Waits:
    """How long things took, in seconds."""

    plain: list[float] = field(default_factory=list)
    schema: list[float] = field(default_factory=list)
    ready: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


class Other:
    """The key that must be served."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http, self._url = http, url
        self._names = itertools.count()
        self.waits = Waits()

    async def ask(self, *, with_schema: bool) -> float:
        """Asks, and returns how long the first token took."""
        more = {}
        if with_schema:
            form = {"name": f"s{next(self._names)}", "schema": _SMALL | {"title": str(next(self._names))}}
            more = {"response_format": {"type": "json_schema", "json_schema": form}}
        began = time.monotonic()
        async with self._post(chat("hi", max_tokens=1, stream=True, **more)) as answer:
            if answer.status != 200:
                self.waits.refused.append(await answer.text())
            async for line in answer.content:
                if line.startswith(b"data: {") and b'"content":"' in line.replace(b'"content":""', b""):
                    break
        return time.monotonic() - began

    async def listen(self, number: int) -> None:
        """Keeps a stream running, and records the gaps between its events."""
        while True:
            async with self._post(chat(f"Go on, number {number}.", max_tokens=8000, stream=True)) as answer:
                if answer.status != 200:
                    self.waits.refused.append(await answer.text())
                last = time.monotonic()
                async for _ in answer.content.iter_any():
                    now = time.monotonic()
                    self.waits.gaps.append(now - last)
                    last = now

    async def look(self, seconds: float) -> Waits:
        """Asks repeatedly for `seconds`; returns all waits."""
        self.waits = waits = Waits()
        until = time.monotonic() + seconds
        while time.monotonic() < until or not waits.schema:
            waits.plain.append(await self.ask(with_schema=False))
            waits.schema.append(await self.ask(with_schema=True))
            began = time.monotonic()
            async with self._http.get(f"{self._url}/ready") as answer:
                await answer.read()
            waits.ready.append(time.monotonic() - began)
            await asyncio.sleep(_PAUSE_S)
        return waits

    @contextlib.asynccontextmanager
    async def _post(self, body: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Authorization": f"Bearer {_OTHER}", "Content-Type": "application/json"}
        async with self._http.post(f"{self._url}/v1/chat/completions", data=body, headers=headers) as answer:
            yield answer


@contextlib.contextmanager
def misused(name: str, service: Service, given: argparse.Namespace) -> Iterator[None]:
    """Misuses the service from another process."""
    command = [sys.executable, __file__, "--misuse", name, "--at", service.http, service.grpc]
    command += ["--body-mb", str(given.body_mb), "--side", str(given.side)]
    process = subprocess.Popen(command)
    try:
        yield
        assert process.poll() is None, "the misuser has ended"
    finally:
        process.kill()
        process.wait()


async def measure(service: Service, given: argparse.Namespace) -> dict[str, Waits]:
    """Measures how long the other key waits, alone and during each kind of misuse."""
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        other = Other(http, service.http)
        await other.look(0)
        running = [asyncio.create_task(other.listen(number)) for number in range(given.streams)]
        await asyncio.sleep(given.settle)
        found = {"alone": await other.look(given.seconds)}
        for name in given.ways:
            with misused(name, service, given):
                await asyncio.sleep(given.settle)
                found[name] = await other.look(given.seconds)
            await asyncio.sleep(given.settle)
        for task in running:
            assert not task.done()
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return found


def bars_of(found: dict[str, Waits]) -> list[Bar]:
    """Compares the waits with their limits."""
    alone, bars = found["alone"], list[Bar]()
    for name, waits in found.items():
        plain, schema = (max(_TIMES_ALONE * max(one), _FIRST_TOKEN_S) for one in (alone.plain, alone.schema))
        bars += [
            Bar.at_most(f"{name}: first token, longest", 1000 * max(waits.plain), 1000 * plain, "ms"),
            Bar.at_most(
                f"{name}: first token with a small schema, longest", 1000 * max(waits.schema), 1000 * schema, "ms"
            ),
            Bar.at_most(f"{name}: gap in a stream, longest", 1000 * max(waits.gaps), 1000 * _GAP_S, "ms"),
            Bar.at_most(f"{name}: /ready, longest", 1000 * max(waits.ready), 1000 * _READY_S, "ms"),
            Bar.none(f"{name}: refused", waits.refused),
        ]
    return bars


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--model", type=Path, help="the checkpoint whose prompts are made (default: the demo model)")
    add("--ways", nargs="+", choices=WAYS, default=[*WAYS], metavar="WAY", help=f"of misuse: {', '.join(WAYS)}")
    add("--streams", type=int, default=4, help="that the other key has (default: %(default)s)")
    add("--seconds", type=float, default=15.0, help="for each way (default: %(default)s)")
    add("--settle", type=float, default=2.0, help="seconds between two ways (default: %(default)s)")
    add("--step-ms", type=float, default=10.0, help="how long a step takes (default: %(default)s)")
    add("--body-mb", type=int, default=BODY_BYTES >> 20, help="of a large body (default: %(default)s)")
    add("--side", type=int, default=6300, help="of a large picture, in pixels (default: %(default)s)")
    add("--verbose", action="store_true", help="shows what server and bridge say")
    add("--misuse", help=argparse.SUPPRESS)  # for the misuser's process
    add("--at", nargs=2, help=argparse.SUPPRESS)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    given = parser().parse_args(arguments)
    if given.misuse:
        url, grpc = given.at
        os.nice(_NICENESS)
        size = {"body_bytes": given.body_mb << 20, "side": given.side}
        asyncio.run(misuse(given.misuse, url=url, grpc=grpc, key=_WORST, **size))
        return 0
    model = checkpoint_or_demo(given.model)
    with (
        tempfile.TemporaryDirectory() as folder,
        Service.started(
            model,
            Path(folder),
            step_ms=given.step_ms,
            keys=(_WORST, _OTHER),
            bridge_options=("--allow-image-host", "127.0.0.1"),
            verbose=given.verbose,
        ) as service,
    ):
        found = asyncio.run(measure(service, given))
    return report(bars_of(found))


if __name__ == "__main__":
    sys.exit(main())
