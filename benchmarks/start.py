"""Measures how long the product takes to start, phase by phase: from the start of a process until it serves.

    benchmarks/start.py --times 7

Starts `python -m spyglass_server` and then `spyglass serve`, --times each, after one uncounted start that creates what
is kept: the demo's checkpoint, compiled kernels, and files in the page cache. Prints medians, with the fastest and the
slowest.
"""

import argparse
import asyncio
import os
import re
import secrets
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp

from processes import MODEL, checkpoint_or_demo, family, free_ports
from spyglass_launcher.probes import grpc_is_serving, http_is_ready

_LOOK_S = 0.01
_LINE = re.compile(r" (server|engine): (?:ready|loaded) [\d.]+ s after the process began: (.*)")
_PHASE = re.compile(r"(?:^|, )([^\d]+) ([\d.]+)")
"""A phase's name may contain commas, but no digits."""

Probe = Callable[[], Awaitable[bool]]
Figures = dict[str, list[float]]


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="PATH", help="the checkpoint's folder (default: the demo model)")
    parser.add_argument("--times", type=int, default=5, metavar="N", help="how many starts are measured (default: 5)")
    given = parser.parse_args()
    figures = asyncio.run(measure(checkpoint_or_demo(given.model), given.times))
    print(f"\nseconds, of {given.times} starts; load average {os.getloadavg()[0]:.1f} at the end\n")
    print("| | median | fastest | slowest |\n|---|---:|---:|---:|")
    for name, seconds in figures.items():
        print(f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} | {max(seconds):.2f} |")


async def measure(model: Path, times: int) -> Figures:
    """Measures how many seconds each phase took, every time."""
    figures: Figures = defaultdict(list)
    for number in range(times + 1):
        found = await start_server(model)
        ready, first = await start_both(model)
        found |= {"spyglass serve, until /ready": ready, "its first token after that": first}
        if number:
            for name, seconds in found.items():
                figures[name].append(seconds)
    return figures


async def start_server(model: Path) -> dict[str, float]:
    """Starts the server alone; also returns the phases that it logged."""
    [port] = free_ports(1)
    grpc, phases = f"127.0.0.1:{port}", dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "spyglass_server", "--model", str(model), "--data-dir", folder]
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(*command, "--grpc", grpc, stdout=DEVNULL, stderr=PIPE)
        try:
            await until(lambda: grpc_is_serving(grpc), process)
            taken, worked = time.monotonic() - began, sum(map(processor_s, family(process.pid)))
        finally:
            process.terminate()
            _, log = await process.communicate()
    for part, listed in _LINE.findall(log.decode()):
        phases |= {f"{part}: {name}": float(seconds) for name, seconds in _PHASE.findall(listed)}
    found = {"spyglass-server, until SERVING": taken, "processor time of its processes until then": worked}
    return found | dict(sorted(phases.items(), reverse=True))


async def start_both(model: Path) -> tuple[float, float]:
    """Starts server and bridge, and asks a question as soon as they are ready."""
    http, grpc = (f"127.0.0.1:{port}" for port in free_ports(2))
    key = secrets.token_hex(8)
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).parent / "spyglass"), "serve", "--http", http, "--grpc", grpc]
        command += ["--model", str(model), "--served-model-name", MODEL, "--data-dir", folder, "--api-key", key]
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(*command, stdout=DEVNULL, stderr=DEVNULL)
        try:
            await until(lambda: http_is_ready(http), process)
            ready = time.monotonic()
            await ask(http, key)
            return ready - began, time.monotonic() - ready
        finally:
            process.terminate()
            await process.wait()


async def ask(http: str, key: str) -> None:
    """Asks a question with an answer of one token."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1}
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session,
        session.post(f"http://{http}/v1/chat/completions", json=body) as answer,
    ):
        answer.raise_for_status()
        await answer.read()


def processor_s(pid: int) -> float:
    """Returns the processor time of a process, which other processes on the machine affect little."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def until(is_ready: Probe, process: Process) -> None:
    """Waits until a process is ready; exits if it ends first."""
    while not await is_ready():
        if process.returncode is not None:
            sys.exit("what should serve did not start; run it by hand to see why")
        await asyncio.sleep(_LOOK_S)


if __name__ == "__main__":
    main()
