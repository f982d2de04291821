"""Sends many requests of every kind, cancels some, and checks what is left of them.

    python benchmarks/soak.py
    python benchmarks/soak.py --requests 2000 --engine model

They go to a server with a scripted or a real model, and a bridge. Memory must not grow with the requests after the
first ones; afterwards there must be no more open files, threads, tasks, admitted requests, pages of the KV cache and
tiles than before; and the usage ledger must agree with the clients' counts.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np

from bars import Bar, report
from left_behind import bars_left_behind, holdings, shared_blocks, shares_mb
from mix import Caller, Ending, Seen
from processes import checkpoint_or_demo
from records import Known, known
from service import Service
from spyglass_client import AsyncClient
from spyglass_client.account import UsageSummary
from spyglass_server.database import sqlite_url

_KEY = "sk-soak"
_SMALL_CACHES = ("--cache-bytes", 16 << 20, "--image-cache-bytes", 16 << 20)
"""Small enough to be full after the warm-up: a cache's memory counts only once it has been written to."""
_SLOPE_MB = 1.0
"""Per 1,000 requests."""


@dataclass(slots=True, kw_only=True)
class Run:
    """Results of all requests."""

    seen: list[Seen] = field(default_factory=list)
    samples: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """Number of requests so far, and the memory of each process then, in MB."""
    left: list[Bar] = field(default_factory=list)
    took_s: float = 0.0


async def soak(service: Service, given: argparse.Namespace) -> tuple[Run, UsageSummary]:
    """Sends all requests; a part first, to warm up."""
    run, chance = Run(), random.Random(given.seed)
    first = int(given.requests * given.warm_up)
    began = time.monotonic()
    await send(service, given, chance, run, range(first))
    await asyncio.sleep(given.settle)
    before, blocks = holdings(service), shared_blocks()
    await send(service, given, chance, run, range(first, given.requests))
    run.took_s = time.monotonic() - began
    run.left = await bars_left_behind(service, before, blocks)
    async with AsyncClient(service.grpc, api_key=_KEY) as grpc:
        return run, await grpc.usage()


async def send(
    service: Service, given: argparse.Namespace, chance: random.Random, run: Run, numbers: Iterable[int]
) -> None:
    """Sends the requests with these numbers, several at once, over their own connections."""
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=120)
    waiting = iter(numbers)
    async with (
        AsyncClient(service.grpc, api_key=_KEY) as grpc,
        aiohttp.ClientSession(connector=connector, timeout=timeout) as http,
    ):
        caller = Caller(
            http=http,
            url=service.http,
            grpc=grpc,
            key=_KEY,
            chance=chance,
            cancelled=given.cancelled,
            longest_s=given.longest_ms / 1000,
            letters=given.engine == "scripted",
        )

        async def worker() -> None:
            for number in waiting:
                run.seen.append(await caller.ask(number))
                if len(run.seen) % given.every == 0:
                    run.samples.append((len(run.seen), await asyncio.to_thread(shares_mb, service)))

        async with asyncio.TaskGroup() as group:
            for _ in range(given.concurrency):
                group.create_task(worker())


def memory_bars(run: Run, given: argparse.Namespace) -> list[Bar]:
    """Checks how fast each process's memory grows after the warm-up: the median slope between any two samples."""
    samples = [one for one in run.samples if one[0] >= given.requests * given.warm_up]
    if len(samples) < 2:
        sys.exit("too few samples of memory: lower --every")
    counts = [count for count, _ in samples]
    return [
        Bar.at_most(
            f"memory of the {name} for 1,000 requests ({samples[0][1][name]:.0f} to {samples[-1][1][name]:.0f} MB)",
            1000 * _slope(counts, [shares[name] for _, shares in samples]),
            _SLOPE_MB,
            "MB",
        )
        for name in samples[0][1]
    ]


def _slope(x: Sequence[int], y: Sequence[float]) -> float:
    """Theil-Sen slope: one outlier, because memory was just being released, has no effect."""
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((np.array(y)[second] - np.array(y)[first]) / (np.array(x)[second] - np.array(x)[first])))


def ledger_bars(seen: Sequence[Seen], records: Sequence[Known], total: UsageSummary) -> list[Bar]:
    """Checks whether the ledger agrees with the clients."""
    by_id = {record.request_id: record for record in records}
    wrong, unknown, fewer = list[str](), list[str](), list[str]()
    prompt_tokens = tokens = generations = 0
    cost_usd = 0.0
    for one in seen:
        record = by_id.get(one.request_id)
        if record is None:
            if one.ending is Ending.WHOLE or one.tokens:
                wrong.append(f"{one.request_id} has no record")
            continue
        told: Seen | Known = one if one.ending is Ending.WHOLE else record
        generations += 1
        prompt_tokens, tokens = prompt_tokens + told.prompt_tokens, tokens + told.tokens
        cost_usd += told.cost_usd
        if one.ending is Ending.REFUSED:
            unknown.append(f"{one.request_id} ({one.kind}) is {record.outcome}")
        elif record.tokens < one.tokens:
            fewer.append(f"{one.request_id}: {record.tokens} recorded, {one.tokens} seen")
        elif one.ending is Ending.WHOLE and record.outcome != "OK":
            wrong.append(f"{one.request_id} is {record.outcome}")
    counted = (generations, prompt_tokens, tokens)
    in_ledger = (total.generations, total.prompt_tokens, total.completion_tokens)
    return [
        Bar.none("requests that ended otherwise than they should", [one.text for one in seen if one.text]),
        Bar.none("answers without a record", wrong),
        Bar.none("refused requests with a record", unknown),
        Bar.none("records with fewer tokens than the client saw", fewer),
        Bar.none("records left open", [record.request_id for record in records if not record.is_closed]),
        Bar.none("records of one request", [name for name, count in Counter(map(_id, records)).items() if count > 1]),
        Bar(
            name="generations, prompt tokens and tokens",
            measured=", ".join(f"{value:,}" for value in in_ledger),
            wanted=", ".join(f"{value:,}" for value in counted),
            is_met=counted == in_ledger,
        ),
        Bar(
            name="cost in US dollars",
            measured=f"{total.estimated_cost:.9f}",
            wanted=f"{cost_usd:.9f}",
            is_met=abs(total.estimated_cost - cost_usd) < 1e-9,
        ),
    ]


def _id(record: Known) -> str:
    return record.request_id


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--model", type=Path, help="a checkpoint (default: the demo model)")
    add("--engine", choices=("scripted", "model"), default="scripted", help="who answers (default: %(default)s)")
    add("--requests", type=int, default=20_000, help="how many are sent (default: %(default)s)")
    add("--concurrency", type=int, default=32, help="how many at once (default: %(default)s)")
    add("--cancelled", type=float, default=0.3, help="the share that is broken off (default: %(default)s)")
    add("--longest-ms", type=float, default=300.0, help="until that happens, at most (default: %(default)s)")
    add("--warm-up", type=float, default=0.25, help="the share that is not looked at (default: %(default)s)")
    add("--every", type=int, default=500, help="requests from one look at memory to the next (default: %(default)s)")
    add("--settle", type=float, default=3.0, help="seconds before things are counted (default: %(default)s)")
    add("--step-ms", type=float, default=2.0, help="how long a step takes (default: %(default)s)")
    add("--seed", type=int, default=0, help="of everything that is random (default: %(default)s)")
    add("--verbose", action="store_true", help="shows what server and bridge say")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    given = parser().parse_args(arguments)
    model = checkpoint_or_demo(given.model)
    with tempfile.TemporaryDirectory() as folder:
        options = ("--engine", given.engine, *_SMALL_CACHES)
        with Service.started(
            model, Path(folder), step_ms=given.step_ms, keys=(_KEY,), options=options, verbose=given.verbose
        ) as service:
            run, total = asyncio.run(soak(service, given))
        records = known(sqlite_url(Path(folder)))
    endings = Counter(one.ending for one in run.seen)
    told = ", ".join(f"{endings[ending]:,} {ending.value}" for ending in Ending)
    print(f"{len(run.seen):,} requests in {run.took_s:.0f} s: {told}\n")
    return report([*memory_bars(run, given), *run.left, *ledger_bars(run.seen, records, total)])


if __name__ == "__main__":
    sys.exit(main())
