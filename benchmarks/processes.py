"""The product as its users start it, on free ports of this machine, and the checkpoint that it serves.

Knows nothing about what is measured.
"""

import asyncio
import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from spyglass_demo.folder import default_folder, prepare
from spyglass_server.engine.handle.process import ENVIRONMENT

MODEL = "spyglass-demo"


class Spyglass:
    """The whole product: `spyglass serve`, in float32, with a checkpoint."""

    def __init__(self, http: str, grpc: str, key: str, pid: int) -> None:
        self.http, self.grpc, self.key, self.pid = http, grpc, key, pid

    @classmethod
    @contextlib.contextmanager
    def started(cls, model: Path) -> Iterator["Spyglass"]:
        """Runs the product on free ports, under the demo model's name."""
        http, grpc = (f"127.0.0.1:{port}" for port in free_ports(2))
        key = secrets.token_hex(8)
        with tempfile.TemporaryDirectory() as folder:
            command = [str(Path(sys.executable).parent / "spyglass"), "serve", "--http", http, "--grpc", grpc]
            options = ["--api-key", key, "--data-dir", folder, "--dtype", "float32", "--served-model-name", MODEL]
            options += ["--model", str(model)]
            process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                asyncio.run(until_ready(f"http://{http}/ready", process))
                yield cls(http, grpc, key, process.pid)
            finally:
                process.terminate()
                process.wait()


def checkpoint_or_demo(model: Path | None) -> Path:
    """Returns the checkpoint's folder, by default the demo model's."""
    return model or prepare(default_folder(), print)


def run_as_engine() -> None:
    """Restarts this script if it lacks the environment of the engine's process."""
    missing = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    if missing:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | missing)


def family(pid: int) -> list[int]:
    """Returns a process and all its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += family(int(child))
    return found


def name_of(pid: int) -> str:
    """Returns the name of a process, if it has set one: `spyglass-engine`, `spyglass-images`."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def command_of(pid: int) -> str:
    """Returns the command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()


def free_ports(count: int) -> list[int]:
    """Returns unused ports of this machine."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


async def until_ready(url: str, *processes: "subprocess.Popen[Any]") -> None:
    """Waits until these processes answer at `url`; exits if one of them ends first."""
    async with aiohttp.ClientSession() as session:
        while all(process.poll() is None for process in processes):
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.2)
    sys.exit("what should serve did not start; run it by hand to see why")
