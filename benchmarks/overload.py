"""Measures how the service behaves under ten times the load that it can handle.

    python benchmarks/overload.py
    python benchmarks/overload.py --seconds 10 --times 20

First a closed loop finds how many answers per second a server with a scripted model can give. Then a multiple of that
rate is sent for a while, whatever comes back: by clients that accept a refusal, and by clients that retry twice, as
openai-python does. The client has its own core if there are two.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from bars import Bar, report
from load import percentile
from mix import chat
from processes import checkpoint_or_demo
from service import Service

_KEY = "sk-overload"
_GOODPUT, _REFUSED_MS, _NORMAL_AGAIN_S = 0.9, 100.0, 5.0
_NORMAL_TIMES, _NORMAL_MORE_S = 1.5, 0.1
"""A latency is normal up to this factor of the earlier latency, plus these seconds."""
_RETRIES, _FIRST_PAUSE_S, _LONGEST_PAUSE_S, _LONGEST_RETRY_AFTER_S = 2, 0.5, 8.0, 60.0
_CORES = 2


@dataclass(slots=True, kw_only=True)
class Load:
    """Results of the requests of a period."""

    answered_s: list[float] = field(default_factory=list)
    """When each answer was complete."""
    latencies_s: list[float] = field(default_factory=list)
    refusals_s: list[float] = field(default_factory=list)
    """How long each refusal took."""
    wrong: list[str] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    """How callers' requests ended, including retries."""
    began_s: float = field(default_factory=time.monotonic)

    def goodput(self, seconds: float) -> float:
        """Returns the answers per second in the first `seconds`."""
        return sum(one <= self.began_s + seconds for one in self.answered_s) / seconds


class Caller:
    """Asks for answers of one length."""

    def __init__(self, http: aiohttp.ClientSession, url: str, num_tokens: int) -> None:
        self._http, self._url, self._num_tokens = http, f"{url}/v1/chat/completions", num_tokens
        self._headers = {"Authorization": f"Bearer {_KEY}", "Content-Type": "application/json"}

    async def ask(self, number: int, load: Load) -> float | None:
        """Asks once. Returns None if answered, else how long to wait before the next try."""
        began = time.monotonic()
        body = chat(number, max_tokens=self._num_tokens)
        async with self._http.post(self._url, data=body, headers=self._headers) as answer:
            found = await answer.json()
        took_s = time.monotonic() - began
        if answer.status == 200:
            load.answered_s.append(time.monotonic())
            load.latencies_s.append(took_s)
            if found["usage"]["completion_tokens"] != self._num_tokens:
                load.wrong.append(json.dumps(found["usage"]))
            return None
        load.refusals_s.append(took_s)
        retry_after = answer.headers.get("Retry-After", "")
        if answer.status not in (429, 503) or not retry_after.isdecimal():
            load.wrong.append(f"{answer.status}, Retry-After {retry_after!r}: {json.dumps(found)}")
            return 0.0
        return float(retry_after)

    async def ask_patiently(self, number: int, load: Load, chance: random.Random, retries: int) -> None:
        """Asks, and retries after a refusal, as openai-python does."""
        for tried in range(retries + 1):
            retry_after_s = await self.ask(number, load)
            if retry_after_s is None:
                load.endings["answered"] += 1
                return
            if tried == retries:
                break
            pause_s = min(_FIRST_PAUSE_S * 2**tried, _LONGEST_PAUSE_S) * (1 - 0.25 * chance.random())
            await asyncio.sleep(retry_after_s if 0 < retry_after_s <= _LONGEST_RETRY_AFTER_S else pause_s)
        load.endings["refused"] += 1


async def closed_loop(caller: Caller, concurrency: int, seconds: float) -> Load:
    """Runs `concurrency` callers that ask repeatedly for `seconds`."""
    load = Load()

    async def worker() -> None:
        while time.monotonic() < load.began_s + seconds:
            await caller.ask(len(load.answered_s), load)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    return load


async def open_loop(
    caller: Caller, *, rate: float, seconds: float, chance: random.Random, retries: int, normal_s: float
) -> tuple[Load, float]:
    """Asks `rate` times per second at random moments, whatever comes back.

    Also returns how long it takes after the end until latency is normal again.
    """
    load, due, number = Load(), time.monotonic(), 0
    async with asyncio.TaskGroup() as group:
        while (due := due + chance.expovariate(rate)) < load.began_s + seconds:
            await asyncio.sleep(due - time.monotonic())
            group.create_task(caller.ask_patiently(number, load, chance, retries))
            number += 1
        await asyncio.sleep(load.began_s + seconds - time.monotonic())
        again = group.create_task(normal_again_s(caller, normal_s))
    return load, again.result()


async def normal_again_s(caller: Caller, normal_s: float) -> float:
    """Measures how long it takes until an answer is as fast as without load."""
    began = time.monotonic()
    while True:
        load = Load()
        asked = time.monotonic()
        if await caller.ask(0, load) is None and load.latencies_s[0] <= normal_s:
            return asked - began
        await asyncio.sleep(0.05)


async def measure(service: Service, given: argparse.Namespace) -> list[Bar]:
    """Finds the peak, and exceeds it in both ways."""
    chance = random.Random(given.seed)
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        caller = Caller(http, service.http, given.tokens)
        await closed_loop(caller, 1, 1.0)
        alone = await closed_loop(caller, 1, given.calibrate / 2)
        normal_s = _NORMAL_TIMES * percentile(alone.latencies_s, 0.5) + _NORMAL_MORE_S
        peak = (await closed_loop(caller, given.batch + given.batch // 2, given.calibrate)).goodput(given.calibrate)
        print(f"{peak:.1f} answers a second at best; an answer takes {percentile(alone.latencies_s, 0.5):.2f} s alone")
        bars = []
        for way, retries in (("without retries", 0), (f"with {_RETRIES} retries", _RETRIES)):
            load, again_s = await open_loop(
                caller,
                rate=given.times * peak,
                seconds=given.seconds,
                chance=chance,
                retries=retries,
                normal_s=normal_s,
            )
            refused = [1000 * one for one in load.refusals_s] or [0.0]
            print(
                f"{way}: {given.times * peak:.0f} callers a second; {load.endings['answered']:,} answered, "
                f"{load.endings['refused']:,} not; {len(refused):,} refusals, median {percentile(refused, 0.5):.0f} ms"
            )
            bars += [
                Bar.at_least(f"{way}: answers a second", load.goodput(given.seconds), _GOODPUT * peak),
                Bar.at_most(f"{way}: refusals, p99", percentile(refused, 0.99), _REFUSED_MS, "ms"),
                Bar.at_most(f"{way}: until latency is normal again", again_s, _NORMAL_AGAIN_S, "s"),
                Bar.none(f"{way}: other answers", load.wrong),
            ]
    print()
    return bars


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--model", type=Path, help="the checkpoint whose prompts are made (default: the demo model)")
    add("--times", type=float, default=10.0, help="the peak that is asked for (default: %(default)s)")
    add("--seconds", type=float, default=60.0, help="for each way (default: %(default)s)")
    add("--calibrate", type=float, default=12.0, help="seconds to find the peak (default: %(default)s)")
    add("--batch", type=int, default=8, help="answers that are computed at once (default: %(default)s)")
    add("--pending", type=int, default=16, help="generations in the server, at most (default: %(default)s)")
    add("--tokens", type=int, default=40, help="of an answer (default: %(default)s)")
    add("--step-ms", type=float, default=20.0, help="how long a step takes (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    add("--verbose", action="store_true", help="shows what server and bridge say")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    given = parser().parse_args(arguments)
    model = checkpoint_or_demo(given.model)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= _CORES:
        os.sched_setaffinity(0, cores[:-1])  # child processes get these, and later the client the last one
    options = ("--max-batch", given.batch, "--max-pending", given.pending)
    with (
        tempfile.TemporaryDirectory() as folder,
        Service.started(
            model, Path(folder), step_ms=given.step_ms, keys=(_KEY,), options=options, verbose=given.verbose
        ) as service,
    ):
        os.sched_setaffinity(0, cores[-1:])
        bars = asyncio.run(measure(service, given))
    return report(bars)


if __name__ == "__main__":
    sys.exit(main())
